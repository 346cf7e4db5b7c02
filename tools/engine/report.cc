// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>

#include "tools/engine/hash_engine.h"
#include "tools/engine/reference.h"

namespace kvtrie::engine {
namespace {

Spread spread_of(std::vector<std::uint64_t>& times_ns) {
  if (times_ns.empty()) return {};
  std::ranges::sort(times_ns);
  const std::uint64_t sum = std::accumulate(times_ns.begin(), times_ns.end(), std::uint64_t{0});
  return {.count = times_ns.size(),
          .median_us = static_cast<double>(times_ns[times_ns.size() / 2]) * 1e-3,
          .mean_us = static_cast<double>(sum) * 1e-3 / static_cast<double>(times_ns.size()),
          .most_us = static_cast<double>(times_ns.back()) * 1e-3};
}

// Of a prompt that all workers had: who computed more than its last page.
std::uint32_t computed_much(const Board& board, const EngineOptions& options, std::uint32_t group) {
  std::uint32_t much = 0;
  for (std::uint32_t worker = 0; worker < board.workers(); ++worker) {
    if (board.record(group * board.workers() + worker).prefilled > options.tokens_per_page) ++much;
  }
  return much;
}

std::string stages_text(const std::array<std::uint64_t, kStages>& counts) {
  std::string text = fmt::format("{}:", std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}));
  for (std::size_t i = 0; i < kStages; ++i)
    text += fmt::format(" {} {}", kStageNames[i], counts[i]);
  return text;
}

nlohmann::ordered_json stages_json(const std::array<std::uint64_t, kStages>& counts) {
  nlohmann::ordered_json json;
  for (std::size_t i = 0; i < kStages; ++i)
    json[kStageNames[i]] = counts[i];
  return json;
}

nlohmann::ordered_json llama_json(const LlamaResult& llama) {
  nlohmann::ordered_json json = {{"batches", llama.batches},
                                 {"tokens", llama.tokens},
                                 {"pages", llama.pages},
                                 {"pages_equal_bits", llama.pages_equal_bits},
                                 {"page_off_max", llama.page_most},
                                 {"choices", llama.choices},
                                 {"choices_equal_bits", llama.choices_equal_bits},
                                 {"logit_off_max", llama.logit.by},
                                 {"gap_median", llama.gap_median},
                                 {"unexplained", llama.unexplained},
                                 {"alone", llama.alone},
                                 {"alone_differ", llama.alone_differ},
                                 {"seconds", llama.seconds},
                                 {"first_wrong", llama.first_wrong()},
                                 {"differences", nlohmann::ordered_json::array()},
                                 {"wrong_pages", nlohmann::ordered_json::array()}};
  for (const TokenDifference& one : llama.differences) {
    json["differences"].push_back({{"request", one.request},
                                   {"position", one.position},
                                   {"cached", one.cached},
                                   {"plain", one.plain},
                                   {"gap", one.gap}});
  }
  for (const WrongPage& one : llama.wrong_pages) {
    json["wrong_pages"].push_back(
        {{"request", one.request}, {"position", one.position}, {"page", one.page}, {"off", one.off}});
  }
  return json;
}

}  // namespace

void add_board(const Board& board, const EngineOptions& options, RunResult& result) {
  for (std::uint32_t worker = 0; worker < board.workers(); ++worker) {
    const WorkerTally& tally = board.tally(worker);
    for (std::size_t i = 0; i < kCounts; ++i)
      result.counts[i] += tally.counts[i].load();
    for (std::size_t i = 0; i < kStages; ++i) {
      result.failures[i] += tally.failures[i].load();
      result.kills[i] += tally.kills[i].load();
    }
  }
  result.finished = board.finished();
  std::vector<std::uint64_t> first_token;
  std::vector<std::uint64_t> woken;
  const bool same = options.run.same_tokens > 0;
  for (std::uint32_t index = 0; index < board.requests(); ++index) {
    const RequestRecord& record = board.record(index);
    if (record.owner.load() != RequestRecord::kDone) continue;
    // Of a killed owner's successor the time begins late: left out.
    const bool slow = same && options.run.slow_worker > 1 && index % board.workers() == 0;
    if (!slow && record.attempts.load() == 1) first_token.push_back(record.first_token_ns);
    // Those who took over. The others' waits went on, for these.
    if (record.woken_ns > 0 && record.prefilled > options.tokens_per_page) woken.push_back(record.woken_ns);
  }
  result.first_token = spread_of(first_token);
  result.woken = spread_of(woken);
  if (!same) return;
  const std::uint32_t groups = board.requests() / board.workers();
  result.tokens_a_prompt =
      static_cast<double>(result.counts[static_cast<std::size_t>(Count::kPrefilled)]) / static_cast<double>(groups);
  for (std::uint32_t group = 0; group < groups; ++group)
    result.takeovers_max = std::max(result.takeovers_max, computed_much(board, options, group));
}

void compare_answers(const Board& board, const EngineOptions& options, RunResult& result) {
  HashEngine engine({.seed = options.run.seed,
                     .tokens_per_page = options.tokens_per_page,
                     .page_bytes = options.page_bytes,
                     .prefill_token_us = 0});
  const PageShape shape{options.tokens_per_page, options.page_bytes};
  for (std::uint32_t index = 0; index < board.requests(); ++index) {
    const RequestRecord& record = board.record(index);
    if (record.owner.load() != RequestRecord::kDone) continue;
    const std::vector<std::uint32_t> right = reference_answer(engine, shape, make_request(board.workload(), index));
    const std::span given(record.answer, std::min<std::size_t>(record.answer_tokens, std::size(record.answer)));
    if (std::ranges::equal(given, right)) continue;
    result.wrong_requests.push_back(index);
    if (result.wrong_answers++ > 0) continue;
    const auto differs = std::ranges::mismatch(given, right).in1 - given.begin();
    result.first_wrong =
        fmt::format("request {}: answer of {} tokens differs from token {} on", index, right.size(), differs);
  }
}

std::string to_text(const RunResult& result, const EngineOptions& options) {
  std::string text = fmt::format(
      "{} of {} requests in {:.1f} s: {} engines with up to {} each, {} pages of {} tokens\n", result.finished,
      options.requests, result.seconds, options.workers, options.run.in_flight, options.pages, options.tokens_per_page);
  for (std::size_t i = 0; i < kCounts; ++i)
    text += fmt::format("  {:>10} {}\n", result.counts[i], kCountNames[i]);
  text += fmt::format("  {:>10} evictions\n", result.evictions);
  text += fmt::format("  failures injected  {}\n", stages_text(result.failures));
  text += fmt::format("  workers killed     {}\n", stages_text(result.kills));
  text += fmt::format("  first token        median {:.0f} us, mean {:.0f} us, most {:.0f} us\n",
                      result.first_token.median_us, result.first_token.mean_us, result.first_token.most_us);
  if (options.run.same_tokens > 0) {
    text += fmt::format("  computed           {:.1f} tokens a prompt of {}\n", result.tokens_a_prompt,
                        options.run.same_tokens);
  }
  if (options.run.kill_owner != 0) {
    text += fmt::format("  taken over         {} prompts, after median {:.0f} us, most {:.0f} us; by {} at most\n",
                        result.woken.count, result.woken.median_us, result.woken.most_us, result.takeovers_max);
  }
  if (result.llama) text += to_text(*result.llama);
  if (!result.llama) {
    text += fmt::format("  wrong outputs      {}{}{}\n", result.wrong_answers, result.first_wrong.empty() ? "" : ": ",
                        result.first_wrong);
  }
  text += fmt::format("  lost pages         {} (free {}, cached {})\n", result.pages_lost, result.pages_free,
                      result.pages_cached);
  text += fmt::format("  verify             {}\n", result.verify.empty() ? "clean" : result.verify);
  if (!result.first_wrong_page.empty()) text += fmt::format("  wrong in the cache {}\n", result.first_wrong_page);
  if (!result.kept.empty()) text += fmt::format("  left behind        {}\n", result.kept);
  return text;
}

std::string to_json(const RunResult& result, const EngineOptions& options) {
  nlohmann::ordered_json json;
  json["requests"] = options.requests;
  json["finished"] = result.finished;
  json["seconds"] = result.seconds;
  json["workers"] = options.workers;
  json["pages"] = options.pages;
  for (std::size_t i = 0; i < kCounts; ++i)
    json["counts"][kCountKeys[i]] = result.counts[i];
  json["evictions"] = result.evictions;
  json["failures"] = stages_json(result.failures);
  json["kills"] = stages_json(result.kills);
  json["first_token_us"] = {{"median", result.first_token.median_us},
                            {"mean", result.first_token.mean_us},
                            {"max", result.first_token.most_us}};
  json["tokens_per_prompt"] = result.tokens_a_prompt;
  json["takeover_us"] = {
      {"count", result.woken.count}, {"median", result.woken.median_us}, {"max", result.woken.most_us}};
  json["takeovers_max"] = result.takeovers_max;
  json["wrong_outputs"] = result.wrong_answers;
  if (result.llama) json["llama"] = llama_json(*result.llama);
  json["lost_pages"] = result.pages_lost;
  json["pages_free"] = result.pages_free;
  json["pages_cached"] = result.pages_cached;
  json["verify"] = result.verify;
  json["first_wrong_page"] = result.first_wrong_page;
  json["kept"] = result.kept;
  json["failure"] = result.failure;
  return json.dump(2) + "\n";
}

}  // namespace kvtrie::engine
