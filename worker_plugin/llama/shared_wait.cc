// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Waiting for pages that another process computes.

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <thread>

#include "worker_plugin/llama/kvtrie_llama.h"
#include "worker_plugin/llama/timer.h"

namespace kvtrie::llama {
namespace {

constexpr int kAnnouncesMax = 6;
constexpr std::size_t kSpeedTokens = 32;
constexpr std::size_t kSpeedWorth = 4 * kSpeedTokens;  // announced parts below that are judged by the guess

}  // namespace

WaitSettings::Mode wait_mode(const std::string& name) {
  using enum WaitSettings::Mode;
  if (name == "never") return kNever;
  if (name == "auto") return kAuto;
  if (name == "always") return kAlways;
  throw Refused("to wait is never, auto or always, not " + name);
}

client::WaitPolicy SharedContext::wait_policy(std::uint32_t limit_ms) const {
  client::WaitOptions options;
  options.limit_ms = limit_ms;
  if (wait_.mode == WaitSettings::Mode::kAlways) {
    options.slowness = std::numeric_limits<float>::max();
    options.worth_ms = 0;
  }
  return client::WaitPolicy(attachment_->geometry, options);
}

// By the sequence id that carries pages, which is empty before and after. Costs no time where it is asked for: the
// pages that would be waited for are not there yet.
void SharedContext::learn_speed() {
  if (speed_known_ || wait_.mode != WaitSettings::Mode::kAuto) return;
  speed_known_ = true;  // once, also when it fails
  std::array<llama_token, kSpeedTokens> tokens{};
  std::array<llama_pos, kSpeedTokens> positions{};
  std::array<std::int32_t, kSpeedTokens> counts{};
  std::array<llama_seq_id*, kSpeedTokens> ids{};
  std::array<std::int8_t, kSpeedTokens> outputs{};
  llama_seq_id scratch = scratch_;
  for (std::size_t i = 0; i < kSpeedTokens; ++i) positions[i] = static_cast<llama_pos>(i);
  counts.fill(1);
  ids.fill(&scratch);
  const std::size_t count = std::min<std::size_t>(kSpeedTokens, calls_.llama_n_ubatch(context_));
  const auto start = std::chrono::steady_clock::now();
  if (calls_.llama_decode(context_, {static_cast<std::int32_t>(count), tokens.data(), nullptr, positions.data(),
                                     counts.data(), ids.data(), outputs.data()}) == 0) {
    calls_.llama_synchronize(context_);
    speed_.computed(count, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    counters_.speed_tokens += count;
  }
  (void)calls_.llama_memory_seq_rm(memory_, scratch_, -1, -1);
}

// Between begin and allocate. False: it waited for pages that did not come, and should not again.
bool SharedSequence::wait(bool was_second, std::uint32_t limit_ms) {
  // Not for pages that it computed itself, as it is ahead of their owner then.
  const std::size_t next_page_ends = (std::size_t{cached_} + 1) * context_.tokens_per_page();
  if (begun_.pending_pages == 0 || size_ >= next_page_ends) return true;
  const Timer timer(context_.counters_.wait_ns);
  const std::size_t announced = std::size_t{begun_.pending_pages} * context_.tokens_per_page();
  // Pages come when a batch of their owner ends. A short part of a prompt is computed here sooner than that.
  const bool is_short = announced < context_.calls_.llama_n_ubatch(context_.context_) &&
                        announced < (handed_ - std::size_t{cached_} * context_.tokens_per_page()) / 2;
  if (context_.wait_.mode == WaitSettings::Mode::kAuto && is_short) return true;
  if (announced >= kSpeedWorth) context_.learn_speed();
  const std::uint32_t cached_before = cached_;
  bool known = true;
  bool gave_up = false;
  client::Sequence sequence(kvtrie_get_api(KVTRIE_API_VERSION), sequence_);
  try {
    client::BeginResult begun;
    static_cast<kvtrie_begin_result&>(begun) = begun_;
    const client::WaitPolicy policy = context_.wait_policy(limit_ms);
    const double speed = context_.speed_.tokens_per_s();
    const bool waits = policy.advise(begun_, speed).choice == client::Choice::kWait;
    context_.counters_.waits += waits ? 1 : 0;
    const client::WaitedWhile waited = client::wait_while_it_pays(sequence, begun, policy, speed, was_second);
    if (waited.outcome == KVTRIE_E_FLUSHED) keep_private_ = true;
    match(waited.result);
    gave_up = waits && begun_.pending_pages != 0;
  } catch (const client::Error& error) {
    known = false;  // what it has matched
    ++context_.counters_.other_failures;
    context_.last_failure_ = std::string("wait: ") + error.what();
  }
  (void)sequence.take_handle();
  if (!known) {
    release();
    return false;
  }
  context_.counters_.tokens_awaited += std::size_t{cached_ - cached_before} * context_.tokens_per_page();
  return !gave_up;
}

bool SharedSequence::was_second() const {
  client::Sequence sequence(kvtrie_get_api(KVTRIE_API_VERSION), sequence_);
  bool second = false;
  try {
    second = client::announced_by_another(sequence, handed_, context_.tokens_per_page());
  } catch (const client::Error&) {
  }
  (void)sequence.take_handle();
  return second;
}

// Announcing ends at a page whose lock is busy, as when several announce the same ones; the pages behind it are private.
// Nobody would see them coming, and somebody else would compute them.
void SharedSequence::announce_rest() {
  const std::size_t per_page = context_.tokens_per_page();
  const auto whole = static_cast<std::uint32_t>(handed_ / per_page);
  for (int i = 0; i < kAnnouncesMax; ++i) {
    std::vector<kvtrie_own_page> own(whole - cached_);
    std::uint32_t count = 0;
    if (kvtrie_own_pages(sequence_, own.data(), static_cast<std::uint32_t>(own.size()), &count) != KVTRIE_OK) return;
    own.resize(std::min<std::size_t>(own.size(), count));
    const auto rest = std::ranges::find(own, std::uint32_t{KVTRIE_PAGE_PRIVATE}, [](const kvtrie_own_page& page) {
      return static_cast<std::uint32_t>(page.state);
    });
    if (rest == own.begin() || rest == own.end() || rest->position >= whole) return;
    if (i > 0) std::this_thread::sleep_for(std::chrono::microseconds(100 << i));
    if (kvtrie_give_back(sequence_, rest->position, whole - rest->position) != KVTRIE_OK || !allocate(handed_)) return;
  }
}

void SharedSequence::announce(bool on) {
  if (on == announcing_) return;
  announcing_ = on;
  context_.announcing_ += on ? 1 : std::size_t{0} - 1;
}

}  // namespace kvtrie::llama
