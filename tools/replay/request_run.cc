// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/request_run.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <span>
#include <string>
#include <thread>

#include "tools/replay/random.h"

namespace kvtrie::replay {
namespace {

using Clock = std::chrono::steady_clock;

// Who waits holds the pages of its hit, and so keeps others waiting: not for long, unless nobody else is there.
constexpr std::uint32_t kWaitSequentialMs = 2000;
constexpr std::uint32_t kWaitMs = 10;
constexpr std::uint32_t kBackOffMaxMs = 64;
constexpr auto kRoomLimit = std::chrono::minutes(1);
constexpr auto kSettleLimit = std::chrono::milliseconds(2000);
constexpr std::uint64_t kWrongPagesShown = 5;  // by each worker

// Times one call.
class Stopwatch {
 public:
  explicit Stopwatch(Histogram& histogram) : histogram_(histogram) {}
  ~Stopwatch() {
    histogram_.record(static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_).count()));
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  Histogram& histogram_;
  Clock::time_point start_ = Clock::now();
};

}  // namespace

RequestRun::RequestRun(RunContext& context, std::uint32_t index)
    : context_(context),
      index_(index),
      request_(context.plan.request(index)),
      name_space_(namespace_of_request(index, context.plan.settings().namespaces)) {
  const std::uint32_t page_tokens = context_.geometry.tokens_per_page;
  total_pages_ = static_cast<std::uint32_t>(pages_needed(request_, page_tokens));
  prompt_pages_ = static_cast<std::uint32_t>(pages_of_prompt(request_, page_tokens));
  // Several open requests: some publish bit by bit, as an engine does that prefills in chunks.
  if (context_.plan.settings().in_flight > 1) {
    portions_ = 1 + static_cast<std::uint32_t>(mix64(index) % 3);
  }
  derive_digests();
}

void RequestRun::derive_digests() {
  const std::uint32_t page_tokens = context_.geometry.tokens_per_page;
  tokens_of_prompt(request_, tokens_);
  const std::size_t prompt_tokens_count = tokens_.size();
  // What can never be allocated is never written or compared either, and need not be held in memory.
  const bool fits = total_pages_ <= context_.geometry.pages;
  std::vector<std::uint32_t> answer(fits ? request_.output_length : 0);
  if (!request_.hash_ids.empty()) tokens_of_output(request_.hash_ids.back(), answer);
  tokens_.insert(tokens_.end(), answer.begin(), answer.end());
  append_digests(name_space_, tokens_, page_tokens, digests_);
  if (fits && digests_.size() < total_pages_) {
    const PathDigest parent = digests_.empty() ? root_digest(name_space_) : digests_.back();
    digests_.push_back(next_digest(
        parent, std::span<const std::uint32_t>(tokens_).subspan(digests_.size() * page_tokens)));
  }
  for (std::size_t position = prompt_pages_; position < digests_.size(); ++position) {
    digests_[position].low ^= mix64(context_.owner_salt + index_);
  }
  tokens_.resize(prompt_tokens_count);
}

Progress RequestRun::step(bool alone) {
  switch (stage_) {
    case Stage::kBegin:
      begin();
      break;
    case Stage::kAllocate:
      return allocate(alone);
    case Stage::kCompute:
      compute();
      break;
    case Stage::kCheck:
      check();
      break;
    case Stage::kRelease:
      release();
      return finish(true);
  }
  return Progress::kGoesOn;
}

void RequestRun::settle() const {
  if (context_.observer != nullptr && !context_.observer->settle(kSettleLimit)) {
    context_.tally.add(Tally::kUnsettled);
  }
}

void RequestRun::begin() {
  settle();
  if (context_.drives_clock) {
    context_.plugin.expect(
        context_.plugin->drive_clock(context_.worker, context_.plan.planned(index_).tick),
        "drive_clock");
  }
  kvtrie_begin_options options{};
  options.size = sizeof options;
  options.request_tag = index_;
  kvtrie_begin_result result{};
  result.size = sizeof result;
  WorkerTally& tally = context_.tally;
  tally.begin_pages.store(prompt_pages_, std::memory_order_release);
  kvtrie_code code = KVTRIE_OK;
  {
    const Stopwatch watch(tally.timing(Timing::kLookup));
    code = context_.plugin->begin(context_.worker, context_.namespaces[name_space_], tokens_.data(),
                                  tokens_.size(), &options, &result, &sequence_);
  }
  context_.plugin.expect(code, "begin");
  hits_ = written_ = result.cached_pages;
  tally.add(Tally::kPagesHit, hits_);
  tally.begin_pages.store(0, std::memory_order_release);
  tally.add(Tally::kBegins);
  tally.add(Tally::kPagesAsked, prompt_pages_);
  if (hits_ > prompt_pages_) throw PluginError("begin: more pages hit than the prompt has");
  look_up_pages();
  count_hit_runs();
  compare(0, hits_, "after begin");
  stage_ = Stage::kAllocate;
}

void RequestRun::look_up_pages() {
  std::uint32_t count = 0;
  context_.plugin.expect(context_.plugin->page_count(sequence_, &count), "page_count");
  pages_.resize(count);
  if (count == 0) return;
  context_.plugin.expect(context_.plugin->get_pages(sequence_, 0, count, pages_.data()),
                         "get_pages");
}

void RequestRun::count_hit_runs() const {
  std::uint64_t runs = hits_ > 0 ? 1 : 0;
  for (std::uint32_t i = 1; i < hits_; ++i)
    runs += pages_[i] != pages_[i - 1] + 1 ? 1 : 0;
  context_.tally.add(Tally::kRuns, runs);
}

Progress RequestRun::allocate(bool alone) {
  kvtrie_allocate_options options{};
  options.size = sizeof options;
  options.wait_ms = context_.plan.settings().sequential != 0 ? kWaitSequentialMs : kWaitMs;
  kvtrie_code code = KVTRIE_OK;
  {
    const Stopwatch watch(context_.tally.timing(Timing::kAllocate));
    code = context_.plugin->allocate(sequence_, prompt_tokens(request_) + request_.output_length,
                                     &options);
  }
  if (code == KVTRIE_OK) {
    look_up_pages();
    if (pages_.size() != total_pages_) throw PluginError("allocate: not the pages asked for");
    stage_ = Stage::kCompute;
    return Progress::kGoesOn;
  }
  const bool later = code == KVTRIE_E_NOT_NOW || code == KVTRIE_E_TIMEOUT;
  if (!later && code != KVTRIE_E_NEVER) context_.plugin.fail(code, "allocate");
  check_holds_no_more_than_hits();
  release();
  if (later && (!alone || back_off())) {
    context_.tally.add(Tally::kRetries);
    stage_ = Stage::kBegin;
    return Progress::kNoRoom;
  }
  return finish(false);
}

// Holds nothing meanwhile. Everybody for a while of its own, so that those who crowd each other out part.
bool RequestRun::back_off() {
  const auto now = Clock::now();
  if (retries_ == 0) no_room_since_ = now;
  if (now - no_room_since_ > kRoomLimit) return false;
  const std::uint64_t longest = std::min<std::uint64_t>(kBackOffMaxMs, 2ULL << std::min(retries_, 16U));
  ++retries_;
  const std::uint64_t draw = mix64(context_.owner_salt + mix64(index_) + retries_);
  std::this_thread::sleep_for(std::chrono::milliseconds(draw % longest));
  return true;
}

void RequestRun::check_holds_no_more_than_hits() const {
  std::uint32_t count = 0;
  context_.plugin.expect(context_.plugin->page_count(sequence_, &count), "page_count");
  if (count != hits_) {
    throw PluginError(fmt::format("allocate: failed and left {} pages behind", count - hits_));
  }
}

// One portion of what is left.
void RequestRun::compute() {
  const std::uint32_t left = total_pages_ - written_;
  const std::uint32_t end = portions_ <= 1 ? total_pages_ : written_ + left / portions_;
  fill(written_, end);
  written_ = end;
  if (portions_ > 1) --portions_;
  const std::uint64_t page_tokens = context_.geometry.tokens_per_page;
  publish(std::min<std::uint64_t>(written_ * page_tokens, prompt_tokens(request_)));
  if (written_ == total_pages_) stage_ = Stage::kCheck;
}

void RequestRun::fill(std::uint32_t first, std::uint32_t end) {
  const std::size_t words = context_.geometry.page_bytes / sizeof(std::uint64_t);
  for (std::uint32_t position = first; position < end; ++position) {
    for (std::uint32_t plane = 0; plane < context_.geometry.planes; ++plane) {
      fill_page({words_of(position, plane), words}, digests_[position], position, plane);
    }
  }
  context_.tally.add(Tally::kPagesWritten, end - first);
}

void RequestRun::publish(std::uint64_t tokens) {
  kvtrie_publish_result result{};
  result.size = sizeof result;
  kvtrie_code code = KVTRIE_OK;
  {
    const Stopwatch watch(context_.tally.timing(Timing::kPublish));
    code = context_.plugin->publish(sequence_, tokens, &result);
  }
  context_.plugin.expect(code, "publish");
  context_.tally.add(Tally::kPagesPublished, result.pages_published);
  if (written_ == total_pages_) context_.tally.add(Tally::kPagesPrivate, result.pages_private);
}

void RequestRun::check() {
  compare(0, total_pages_, "before release");
  stage_ = Stage::kRelease;
}

void RequestRun::release() {
  // Where the model has evicted already; a failed allocation has asked for nothing.
  if (stage_ == Stage::kRelease) settle();
  const Stopwatch watch(context_.tally.timing(Timing::kRelease));
  context_.plugin.expect(context_.plugin->release(sequence_), "release");
}

Progress RequestRun::finish(bool served) {
  WorkerTally& tally = context_.tally;
  const std::uint32_t page_tokens = context_.geometry.tokens_per_page;
  tally.add(served ? Tally::kServed : Tally::kFailed);
  tally.add(Tally::kBlocksAsked, request_.hash_ids.size());
  tally.add(Tally::kBlocksHit, blocks_in_pages(hits_, page_tokens));
  tally.add(Tally::kTokensAsked, prompt_tokens(request_));
  tally.add(Tally::kTokensHit, std::uint64_t{hits_} * page_tokens);
  context_.plan.finish(index_, served);
  return Progress::kFinished;
}

bool RequestRun::chosen(std::uint32_t position) const {
  const double percent = context_.plan.settings().check_percent;
  if (percent >= 100) return true;
  const std::uint64_t draw = mix64(mix64(context_.plan.settings().seed + index_) + position);
  return static_cast<double>(draw >> 11) * 0x1p-53 * 100 < percent;
}

std::uint64_t* RequestRun::words_of(std::uint32_t position, std::uint32_t plane) const {
  void* address = nullptr;
  context_.plugin.expect(
      context_.plugin->page_address(context_.worker, pages_[position], plane, &address),
      "page_address");
  return static_cast<std::uint64_t*>(address);
}

void RequestRun::compare(std::uint32_t first, std::uint32_t end, const char* when) {
  const std::size_t words = context_.geometry.page_bytes / sizeof(std::uint64_t);
  std::uint64_t checked = 0;
  for (std::uint32_t position = first; position < end; ++position) {
    if (!chosen(position)) continue;
    ++checked;
    for (std::uint32_t plane = 0; plane < context_.geometry.planes; ++plane) {
      const std::size_t wrong =
          first_wrong_word({words_of(position, plane), words}, digests_[position], position, plane);
      if (wrong == npos) continue;
      report_wrong(position, plane, wrong, when);
      break;
    }
  }
  context_.tally.add(Tally::kPagesChecked, checked);
}

void RequestRun::report_wrong(std::uint32_t position, std::uint32_t plane, std::size_t word,
                              const char* when) {
  context_.tally.add(Tally::kWrongPages);
  if (context_.tally.get(Tally::kWrongPages) > kWrongPagesShown) return;
  const std::string line = fmt::format(
      "kvtrie-replay: wrong page {} {}: request {}, position {} ({}), plane {}, first wrong word "
      "{}\n",
      pages_[position], when, index_, position, position < hits_ ? "hit" : "own", plane, word);
  // One write, so that lines of several workers stay whole.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace kvtrie::replay
