// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <vector>

#include "tools/engine/crew.h"
#include "tools/engine/failure.h"
#include "tools/engine/llama_part.h"
#include "tools/engine/report.h"
#include "tools/replay/mix_report.h"
#include "tools/replay/own_cache.h"

namespace kvtrie::engine {
namespace {

constexpr std::size_t kLlamaSuspectsMax = 50;
constexpr auto kRestLimit = std::chrono::seconds(5);

// The replay's kvtried, on the system's clock. Places for the killed, which are given back a little
// later.
replay::ReplayOptions cache_options(const EngineOptions& options) {
  replay::ReplayOptions cache;
  cache.geometry.pages = options.pages;
  cache.geometry.tokens_per_page = options.tokens_per_page;
  cache.geometry.page_bytes = options.page_bytes;
  cache.geometry.workers = 2 * options.workers + 2;
  cache.geometry.leases_per_worker = 4 * kBeamsMax * options.run.in_flight + 16;
  cache.geometry.namespaces = 2;
  cache.geometry.stripes = 64;
  cache.speed = 1;
  cache.low_percent = 2;
  cache.high_percent = 5;
  return cache;
}

template <std::size_t N>
void put_text(char (&field)[N], const std::string& text) {
  if (text.size() >= N) throw std::runtime_error(fmt::format("{}: too long", text));
  std::memcpy(field, text.c_str(), text.size() + 1);
}

// Those that are wrong first. Of the others, which may have a wrong page of theirs, as many as are compared soon.
std::vector<std::uint32_t> suspects(const RunResult& result, const EngineOptions& options) {
  std::vector<std::uint32_t> all = result.wrong_requests;
  std::size_t most = options.requests;
  if (result.llama) {
    most = kLlamaSuspectsMax;
    for (const WrongPage& wrong : result.llama->wrong_pages) all.push_back(wrong.request);
    for (const TokenDifference& wrong : result.llama->differences) all.push_back(wrong.request);
  }
  for (std::uint32_t index = 0; index < options.requests; ++index) all.push_back(index);
  std::set<std::uint32_t> known;
  std::erase_if(all, [&known](std::uint32_t index) { return !known.insert(index).second; });
  all.resize(std::min(all.size(), most));
  return all;
}

void leave_behind(const Board& board, const EngineOptions& options, Leftovers& leftovers, RunResult& result) {
  leftovers.copy_cache(board.settings().cache);
  const bool outputs_wrong = result.wrong_answers > 0 || (result.llama && !result.llama->first_wrong().empty());
  if (outputs_wrong) {
    result.first_wrong_page =
        dump_first_wrong_page(board, options, suspects(result, options), leftovers.path());
  }
  result.kept = leftovers.keep();
}

RunResult run_on(const EngineOptions& options, const std::string& program, replay::OwnCache& cache,
                 replay::Signals& signals) {
  Leftovers leftovers(options.artifacts);
  RunSettings settings = options.run;
  put_text(settings.schedules, leftovers.path());
  put_text(settings.cache, cache.name());
  put_text(settings.directory, cache.directory());
  settings.start_ns = now_ns();
  Board board(settings, options.requests, options.workers);
  const replay::Observer observer(cache.name());
  RunResult result;
  result.failure = Crew(board, program).run(signals, std::chrono::seconds(options.stall_s), [&]() -> std::string {
    const std::string end = cache.how_it_ended();
    return end.empty() ? "" : fmt::format("kvtried {}\n{}", end, cache.log());
  });
  result.seconds = static_cast<double>(now_ns() - settings.start_ns) * 1e-9;
  add_board(board, options, result);
  if (options.run.engine == EngineKind::kHash) compare_answers(board, options, result);
  const replay::Census census = observer.census_at_rest(kRestLimit);
  result.pages_free = census.free_bits;
  result.pages_cached = census.in(PageState::kLive);
  result.pages_lost = census.lost();
  result.evictions = observer.counters()[static_cast<std::size_t>(Counter::kEvictions)];
  result.verify = replay::verify_problem(observer, true);
  if (options.run.engine == EngineKind::kLlama) {
    result.llama = compare_llama(board, options, [&signals] {
      signals.wait(std::chrono::milliseconds(0));
      return signals.asked_to_end();
    });
  }
  if (!result.right()) leave_behind(board, options, leftovers, result);
  return result;
}

// How large a page of its model is.
bool ask_model(EngineOptions& options) {
  try {
    options.page_bytes = llama_page_bytes(options.run, options.tokens_per_page);
    return true;
  } catch (const std::runtime_error& error) {
    fmt::print(stderr, "kvtrie-engine: {}\n", error.what());
    return false;
  }
}

}  // namespace

ExitCode run_engines(const EngineOptions& asked) {
  try {
    EngineOptions options = asked;
    put_text(options.run.model, options.model);
    put_text(options.run.back_end, options.back_end);
    put_text(options.run.dump, options.dump);
    if (options.run.engine == EngineKind::kLlama && !ask_model(options)) return kExitUsage;
    replay::Signals signals;
    const std::string program = replay::own_path();
    const std::string kvtried = (std::filesystem::path(program).parent_path() / "kvtried").string();
    replay::OwnCache cache(cache_options(options), kvtried, signals);
    const RunResult result = run_on(options, program, cache, signals);
    fmt::print("{}", to_text(result, options));
    if (!options.json.empty() && !(std::ofstream(options.json) << to_json(result, options))) {
      throw std::runtime_error(fmt::format("{}: cannot be written", options.json));
    }
    if (!result.failure.empty()) fmt::print(stderr, "kvtrie-engine: {}\n", result.failure);
    return result.right() ? kExitOk : kExitWrong;
  } catch (const replay::CacheStartError& error) {
    fmt::print(stderr, "kvtrie-engine: {}\n", error.text);
    return error.code == replay::kExitUsage ? kExitUsage : kExitWrong;
  } catch (const std::exception& error) {
    fmt::print(stderr, "kvtrie-engine: {}\n", error.what());
    return kExitWrong;
  }
}

}  // namespace kvtrie::engine
