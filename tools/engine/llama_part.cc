// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/llama_part.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "tools/engine/llama_engine.h"
#include "tools/engine/llama_replay.h"
#include "worker_plugin/llama/kvtrie_llama.h"

namespace kvtrie::engine {
namespace {

// One a process: back ends are loaded once.
const LlamaModel& model_of(const RunSettings& settings) {
  static const LlamaModel model(settings.model, settings.back_end);
  return model;
}

// llama.cpp with its model, as an engine that has no loop and no cache.
class AloneEngine final : public Engine {
 public:
  AloneEngine(const RunSettings& settings, const PageShape& shape)
      : engine_(model_of(settings), settings, shape, nullptr), chunk_(settings.chunk) {}
  // A long prompt goes in parts: a llama_decode takes no more than the loop's.
  void step(std::span<Work> batch) override {
    for (Work& work : batch) {
      const std::uint64_t first = work.first;
      const std::uint64_t end = work.end;
      for (; work.first < end; work.first = work.end) {
        work.end = std::min<std::uint64_t>(end, work.first + chunk_);
        engine_.step({&work, 1});
      }
      work.first = first;
    }
  }
  [[nodiscard]] const LlamaSession& session() const { return engine_.session(); }

 private:
  LlamaEngine engine_;
  const std::uint32_t chunk_;
};

// All that its KV depends on.
std::vector<std::pair<std::string, std::string>> fields_of(const RunSettings& settings, const LlamaSession& session) {
  const LlamaModel& model = model_of(settings);
  const llama::Calls calls = llama::linked_calls();
  if (const std::string reason = llama::reason_not_to_share(calls, model.get(), session.params()); !reason.empty())
    throw std::runtime_error(reason);
  const llama::ModelSource source =
      llama::describe_model(llama::parts_of_model(settings.model), model.params(), llama_max_devices());
  return llama::fingerprint(calls, source, session.context(), session.params(), {});
}

std::span<const std::uint32_t> answer_of(const RequestRecord& record) {
  return {record.answer, std::min<std::size_t>(record.answer_tokens, std::size(record.answer))};
}

void compare_alone(const Board& board, const EngineOptions& options, const std::function<bool()>& asked_to_end,
                   LlamaResult& result) {
  const std::uint32_t count = std::min(options.alone, board.requests());
  if (count == 0) return;
  const PageShape shape{options.tokens_per_page, options.page_bytes};
  AloneEngine engine(board.settings(), shape);
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t index = static_cast<std::uint32_t>(std::uint64_t{i} * board.requests() / count);
    const RequestRecord& record = board.record(index);
    if (record.owner.load() != RequestRecord::kDone) continue;
    if (asked_to_end()) throw std::runtime_error("stopped by a signal");
    ++result.alone;
    const auto alone = reference_answer(engine, shape, make_request(board.workload(), index));
    if (!std::ranges::equal(answer_of(record), alone)) ++result.alone_differ;
  }
}

// Every token of every answer is one that a schedule chose for that request at that place: so all
// was compared.
std::uint64_t count_unexplained(const Board& board, const Replayed& replayed) {
  std::uint64_t unexplained = 0;
  for (std::uint32_t index = 0; index < board.requests(); ++index) {
    const RequestRecord& record = board.record(index);
    if (record.owner.load() != RequestRecord::kDone) continue;
    const RequestSpec spec = make_request(board.workload(), index);
    const std::span<const std::uint32_t> answer = answer_of(record);
    if (answer.size() != std::size_t{spec.output} * spec.beams) ++unexplained;
    for (std::uint32_t i = 0; i < answer.size(); ++i) {
      const auto position = static_cast<std::uint32_t>(spec.prompt.size()) + i % spec.output;
      if (!std::ranges::binary_search(replayed.choices, std::tuple(index, position, answer[i]))) ++unexplained;
    }
  }
  return unexplained;
}

}  // namespace

bool has_llama() { return true; }

std::uint64_t llama_page_bytes(const RunSettings& settings, std::uint32_t tokens_per_page) {
  const LlamaSession session(model_of(settings), settings);
  return (session.shape().bytes(tokens_per_page) + 63) / 64 * 64;
}

EngineInNamespace make_llama_engine(const RunSettings& settings, const PageShape& shape) {
  const LlamaModel& model = model_of(settings);
  // A worker that replaces a killed one has its number, and a file of its own.
  auto schedule = std::make_unique<ScheduleWriter>(fmt::format("{}/{}.schedule", settings.schedules, ::getpid()));
  auto engine = std::make_unique<LlamaEngine>(model, settings, shape, std::move(schedule));
  EngineInNamespace made;
  made.fields = fields_of(settings, engine->session());
  made.engine = std::move(engine);
  return made;
}

AloneInNamespace make_alone_llama(const RunSettings& settings, const PageShape& shape, double page_bound) {
  RunSettings right = settings;
  right.sabotage = Sabotage::kNone;
  auto engine = std::make_unique<AloneEngine>(right, shape);
  AloneInNamespace made;
  made.fields = fields_of(settings, engine->session());
  made.is_right = [bytes = engine->session().shape().bytes(shape.tokens_per_page), tokens = shape.tokens_per_page,
                   page_bound](std::span<const std::byte> page, std::span<const std::byte> right_page) {
    return deviation(sample_of(page.first(bytes), tokens), sample_of(right_page.first(bytes), tokens)) <= page_bound;
  };
  made.engine = std::move(engine);
  return made;
}

LlamaResult compare_llama(const Board& board, const EngineOptions& options, const std::function<bool()>& asked_to_end) {
  const std::uint64_t start = now_ns();
  const RunSettings& settings = board.settings();
  Replayed replayed = replay_all(settings.schedules, model_of(settings), settings, options.tokens_per_page,
                                 options.page_bound, asked_to_end);
  LlamaResult& result = replayed.result;
  result.page_bound = options.page_bound;
  result.logit_bound = options.logit_bound;
  result.unexplained = count_unexplained(board, replayed);
  if (!replayed.gaps.empty()) {
    const auto middle = replayed.gaps.begin() + static_cast<std::ptrdiff_t>(replayed.gaps.size() / 2);
    std::ranges::nth_element(replayed.gaps, middle);
    result.gap_median = static_cast<double>(*middle);
  }
  result.seconds = static_cast<double>(now_ns() - start) * 1e-9;
  compare_alone(board, options, asked_to_end, result);
  return std::move(result);
}

}  // namespace kvtrie::engine
