// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
#include "tools/replay/generator.h"

#include <array>
#include <queue>
#include <utility>

#include "tools/replay/random.h"

namespace kvtrie::replay {
namespace {

constexpr std::size_t kSystemPrompts = 8;
constexpr std::size_t kSystemBlocksMax = 8;
constexpr std::uint64_t kArrivalMeanMs = 1000;
constexpr std::uint64_t kDocumentPercent = 12;
constexpr std::uint64_t kRepeatPercent = 4;
// A conversation that has grown to this many tokens ends.
constexpr std::uint64_t kConversationTokensMax = 32 * 1024;

// A prompt as it grows: ids of its whole blocks, and its length in tokens.
struct Prompt {
  std::vector<std::uint64_t> full_blocks;
  std::uint64_t tokens = 0;
  std::uint64_t last_id = 0;  // of the incomplete block at the end, if there is one

  [[nodiscard]] bool ends_in_block() const { return tokens % kBlockTokens != 0; }
};

struct Turn {
  std::uint64_t time_ms = 0;
  std::uint64_t sequence = 0;  // makes the order of equal times a matter of record
  std::uint64_t continue_percent = 0;
  std::uint32_t output_length = 0;
  Prompt prompt;
};

struct LaterTurn {
  bool operator()(const Turn& left, const Turn& right) const {
    return std::pair(left.time_ms, left.sequence) > std::pair(right.time_ms, right.sequence);
  }
};

class Generator {
 public:
  explicit Generator(std::uint64_t seed) : random_(seed) {
    for (Prompt& prompt : system_prompts_) {
      extend(prompt, random_.between(1, kSystemBlocksMax) * kBlockTokens);
    }
    start_next();
  }

  Request next() {
    Turn turn = turns_.top();
    turns_.pop();
    if (turn.sequence == newest_start_) start_next();

    Request request;
    request.timestamp_ms = turn.time_ms;
    request.input_length = static_cast<std::uint32_t>(turn.prompt.tokens);
    request.output_length = turn.output_length;
    request.hash_ids = turn.prompt.full_blocks;
    if (turn.prompt.ends_in_block()) request.hash_ids.push_back(turn.prompt.last_id);
    follow(std::move(turn));
    return request;
  }

 private:
  void extend(Prompt& prompt, std::uint64_t tokens) {
    prompt.tokens += tokens;
    while (prompt.full_blocks.size() < prompt.tokens / kBlockTokens) {
      prompt.full_blocks.push_back(next_id_++);
    }
    if (prompt.ends_in_block()) prompt.last_id = next_id_++;
  }

  // Each system prompt is chosen about half as often as the one before it.
  const Prompt& popular_system_prompt() {
    std::size_t index = 0;
    while (index + 1 < kSystemPrompts && random_.percent(55))
      ++index;
    return system_prompts_[index];
  }

  std::uint32_t output_length() {
    return static_cast<std::uint32_t>(random_.percent(75) ? random_.between(1, 400)
                                                          : random_.between(400, 1600));
  }

  void push(Turn turn) {
    turn.sequence = next_sequence_++;
    turns_.push(std::move(turn));
  }

  // A new conversation or document, one mean interval after the one before on average.
  void start_next() {
    Turn turn;
    arrival_ms_ += random_.below(2 * kArrivalMeanMs);
    turn.time_ms = arrival_ms_;
    turn.output_length = output_length();
    if (random_.percent(kDocumentPercent)) {
      if (!random_.percent(33)) turn.prompt = popular_system_prompt();
      extend(turn.prompt, random_.between(8, 40) * kBlockTokens + random_.below(kBlockTokens));
    } else {
      turn.prompt = popular_system_prompt();
      extend(turn.prompt, random_.between(20, 2000));
      // Skewed on purpose: few conversations make most of the turns.
      turn.continue_percent = random_.percent(25) ? 90 : 50;
    }
    newest_start_ = next_sequence_;
    push(std::move(turn));
  }

  void follow(Turn turn) {
    if (turn.continue_percent == 0) return;
    if (random_.percent(kRepeatPercent)) {
      turn.time_ms += random_.between(1'000, 10'000);
      turn.output_length = output_length();
      push(std::move(turn));
      return;
    }
    if (!random_.percent(turn.continue_percent)) return;
    turn.time_ms += random_.between(3'000, 30'000);
    if (random_.percent(30)) turn.time_ms += random_.between(10'000, 240'000);
    extend(turn.prompt, turn.output_length + random_.between(10, 1'200));
    if (turn.prompt.tokens > kConversationTokensMax) return;
    turn.output_length = output_length();
    push(std::move(turn));
  }

  Random random_;
  std::array<Prompt, kSystemPrompts> system_prompts_;
  std::priority_queue<Turn, std::vector<Turn>, LaterTurn> turns_;
  std::uint64_t arrival_ms_ = 0;
  std::uint64_t next_id_ = 0;
  std::uint64_t next_sequence_ = 0;
  std::uint64_t newest_start_ = 0;
};

}  // namespace

std::vector<Request> generate(std::size_t requests, std::uint64_t seed) {
  Generator generator(seed);
  std::vector<Request> workload;
  workload.reserve(requests);
  while (workload.size() < requests)
    workload.push_back(generator.next());
  return workload;
}

}  // namespace kvtrie::replay
