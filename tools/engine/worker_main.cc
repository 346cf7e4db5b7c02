// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/worker_main.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tools/engine/board.h"
#include "tools/engine/dumping_engine.h"
#include "tools/engine/engine_loop.h"
#include "tools/engine/hash_engine.h"
#include "tools/engine/llama_part.h"

namespace kvtrie::engine {
namespace {

constexpr auto kPatience = std::chrono::seconds(15);
constexpr auto kAttachAgainAfter = std::chrono::milliseconds(2);

// A killed predecessor's place is free a moment later.
kv::Worker attach(const kv::Library& library, const RunSettings& settings, const std::string& name) {
  kv::AttachOptions options;
  options.cache = settings.cache;
  options.directory = settings.directory;
  options.name = name.c_str();
  kv::Worker worker;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    const kv::Outcome outcome = worker.attach(library, options);
    if (outcome) return worker;
    if (std::chrono::steady_clock::now() > deadline) throw kv::Error(outcome.code(), library.last_error());
    std::this_thread::sleep_for(kAttachAgainAfter);
  }
}

// As engines do before they serve: a prefill into memory of its own, which says how fast they are.
kv::PrefillSpeed warm_up(Engine& engine, const kv::Geometry& geometry, std::uint32_t tokens) {
  const std::vector<std::uint32_t> prompt(tokens, 1);
  std::vector<std::byte> memory((tokens / geometry.tokens_per_page + 1) * geometry.page_bytes);
  std::vector<std::byte*> pages;
  for (std::size_t at = 0; at < memory.size(); at += geometry.page_bytes)
    pages.push_back(memory.data() + at);
  Work work{prompt, pages, 0, tokens, 0, {}, 0};
  const std::uint64_t start = now_ns();
  engine.step({&work, 1});
  kv::PrefillSpeed speed;
  speed.computed(tokens, static_cast<double>(now_ns() - start) * 1e-9);
  return speed;
}

// Debug dumps of its steps, where they are asked for.
std::unique_ptr<Engine> with_dumps(EngineInNamespace made, const RunSettings& settings, const PageShape& shape,
                                   const char* name) {
  if (settings.dump[0] == '\0') return std::move(made.engine);
  std::string error;
  const auto options = dump::parse_dump_options(settings.dump, error);
  if (!options) throw std::runtime_error(error);
  std::string fields;
  for (const auto& [key, value] : made.fields) fields += key + "=" + value + "\n";
  return std::make_unique<DumpingEngine>(std::move(made.engine), *options, name, fields, shape);
}

// All that its KV depends on: the hash's seed and the size of a token's KV.
std::vector<std::pair<std::string, std::string>> hash_fields(const RunSettings& settings, const PageShape& shape) {
  return {{"model", "hash"},
          {"weights", fmt::format("{:x}", settings.seed)},
          {"kv_bytes", fmt::format("{}", shape.page_bytes / shape.tokens_per_page)}};
}

EngineInNamespace make_hash_engine(const RunSettings& settings, const kv::Geometry& geometry, std::uint32_t number) {
  EngineInNamespace made;
  made.fields = hash_fields(settings, {geometry.tokens_per_page, geometry.page_bytes});
  made.engine = std::make_unique<HashEngine>(
      HashModel{.seed = settings.seed,
                .tokens_per_page = geometry.tokens_per_page,
                .page_bytes = geometry.page_bytes,
                .prefill_token_us = settings.prefill_token_us * (number == 0 ? settings.slow_worker : 1)});
  return made;
}

void serve(Board& board, std::uint32_t number) {
  const RunSettings& settings = board.settings();
  const kv::Library library = kv::Library::linked();
  const kv::Worker worker = attach(library, settings, fmt::format("engine-{}", number));
  const kv::Geometry geometry = worker.geometry();
  EngineInNamespace made = settings.engine == EngineKind::kLlama
                                     ? make_llama_engine(settings, {geometry.tokens_per_page, geometry.page_bytes})
                                     : make_hash_engine(settings, geometry, number);
  std::vector<kvtrie_field> fields;
  for (const auto& [key, value] : made.fields)
    fields.push_back({key.c_str(), value.c_str()});
  const char* const label = settings.engine == EngineKind::kLlama ? "llama.cpp" : "hash";
  const kvtrie_namespace name_space = worker.open_namespace(fields, label);
  const kv::PrefillSpeed measured = warm_up(*made.engine, geometry, settings.chunk);
  const std::unique_ptr<Engine> engine =
      with_dumps(std::move(made), settings, {geometry.tokens_per_page, geometry.page_bytes}, label);
  EngineLoop(worker, name_space, *engine, board, number, measured).run();
}

}  // namespace

AloneInNamespace make_alone_engine(const RunSettings& settings, const PageShape& shape, double page_bound) {
  if (settings.engine == EngineKind::kLlama) return make_alone_llama(settings, shape, page_bound);
  AloneInNamespace made;
  made.fields = hash_fields(settings, shape);
  made.engine = std::make_unique<HashEngine>(
      HashModel{.seed = settings.seed, .tokens_per_page = shape.tokens_per_page, .page_bytes = shape.page_bytes});
  made.is_right = [](std::span<const std::byte> page, std::span<const std::byte> right) {
    return std::ranges::equal(page, right);
  };
  return made;
}

int run_worker(int board_fd, std::uint32_t worker) {
  Board board(board_fd);
  try {
    serve(board, worker);
    return 0;
  } catch (const std::exception& error) {
    WorkerTally& tally = board.tally(worker);
    std::strncpy(tally.error, error.what(), sizeof tally.error - 1);
    return 1;
  }
}

}  // namespace kvtrie::engine
