// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <algorithm>
#include <chrono>
#include <thread>

#include "worker_plugin/llama/kvtrie_llama.h"
#include "worker_plugin/llama/timer.h"

namespace kvtrie::llama {
namespace {

constexpr std::uint32_t kRoomWaitMs = 100;
constexpr int kSecondMax = 6;
constexpr std::chrono::milliseconds kAnnounces{1};

}  // namespace

void SharedSequence::release() {
  if (sequence_.id != 0) {
    const Timer timer(context_.counters_.release_ns);
    (void)kvtrie_release(sequence_);
  }
  announce(false);
  sequence_ = {};
  begun_ = {};
  handed_ = 0;
  cached_ = written_ = 0;
  private_ = 0;
}

void SharedSequence::cache_lost() {
  release();
  keep_private_ = size_ != 0;
}

// Behind size_ these come now: what was known of that place holds as far as it is the same.
void SharedSequence::take_in(std::span<const llama_token> next) {
  for (std::size_t i = 0; i < next.size(); ++i) {
    const auto token = static_cast<std::uint32_t>(next[i]);
    const std::size_t place = size_ + i;
    if (place < tokens_.size() && tokens_[place] == token) continue;
    if (place < handed_) release();
    tokens_.resize(place);
    tokens_.push_back(token);
  }
}

// Matches whole pages of the first `total` of tokens_, unless that was done and nothing much came (or `again`).
bool SharedSequence::begin(std::size_t total, bool again) {
  const std::size_t per_page = context_.tokens_per_page();
  const std::size_t whole = total / per_page * per_page;
  if (!again && sequence_.id != 0 && (whole <= handed_ || total - size_ < per_page)) return true;
  if (whole <= size_) return false;  // no page is filled by what comes
  if (context_.lost_) {
    if (size_ == 0 && context_.attach_again()) return begin(total, again);  // the next cache may have other pages
    release();
    return false;
  }
  const Timer timer(context_.counters_.begin_ns);
  kvtrie_begin_options options{};
  options.size = sizeof options;
  options.flags = keep_private_ ? std::uint32_t{KVTRIE_NO_PUBLISH} : 0U;
  options.request_tag = tag_;
  kvtrie_begin_result hit{};
  hit.size = sizeof hit;
  kvtrie_sequence fresh{};
  const auto ask = [&] {
    const kvtrie_worker worker = context_.attachment_->worker;
    return kvtrie_begin(worker, context_.namespace_, tokens_.data(), whole, &options, &hit, &fresh);
  };
  kvtrie_code code = ask();
  if (code == KVTRIE_E_STALE && context_.open_namespace()) code = ask();
  if (code != KVTRIE_OK) {
    context_.note_failure(context_.counters_.other_failures, "begin", code);
    release();
    return false;
  }
  // After the begin, so that a flush that comes later still is one that publish answers.
  if (context_.flushes() != flushes_) keep_private_ = true;
  release();
  sequence_ = fresh;
  handed_ = whole;
  match(hit);
  ++context_.counters_.begins;
  context_.counters_.hits += hit.cached_tokens > size_ ? 1 : 0;
  return true;
}

void SharedSequence::match(const kvtrie_begin_result& found) {
  begun_ = found;
  cached_ = written_ = found.cached_pages;
}

void SharedSequence::import_pages(std::size_t limit) {
  const std::size_t per_page = context_.tokens_per_page();
  const auto first_page = static_cast<std::uint32_t>(size_ / per_page);
  std::vector<std::uint32_t> pages((limit + per_page - 1) / per_page - first_page);
  const kvtrie_code code =
      kvtrie_get_pages(sequence_, first_page, static_cast<std::uint32_t>(pages.size()), pages.data());
  if (code != KVTRIE_OK) {
    context_.note_failure(context_.counters_.other_failures, "get pages", code);
    return;
  }
  const std::size_t first = first_page * per_page;
  const std::size_t done = context_.import_pages(id_, pages, first, size_, limit);
  if (done > 0) size_ = std::min(limit, first + done * per_page);
}

bool SharedSequence::allocate(std::size_t whole) {
  const Timer timer(context_.counters_.allocate_ns);
  // A full pool has few free pages, whose number a long prompt exceeds; the coordinator makes more in milliseconds. Where
  // it could not, since all is in use, nobody waits again for a while.
  constexpr std::chrono::seconds kPause{1};
  kvtrie_allocate_options options{};
  options.size = sizeof options;
  options.wait_ms = std::chrono::steady_clock::now() < context_.no_room_until_ ? 0 : kRoomWaitMs;
  const kvtrie_code code = kvtrie_allocate(sequence_, whole, &options);
  if (code == KVTRIE_E_NOT_NOW && options.wait_ms != 0) {
    context_.no_room_until_ = std::chrono::steady_clock::now() + kPause;
  }
  if (code == KVTRIE_E_NOT_NOW || code == KVTRIE_E_NEVER) {
    context_.note_failure(context_.counters_.no_free_pages, "allocate", code);
  } else if (code != KVTRIE_OK) {
    context_.note_failure(context_.counters_.other_failures, "allocate", code);
  }
  if (code == KVTRIE_OK) announce(true);
  return code == KVTRIE_OK;
}

std::size_t SharedSequence::import(std::span<const llama_token> next, std::size_t most, bool may_wait) {
  if (diverged_ || next.empty()) return 0;
  if (size_ == 0) flushes_ = context_.flushes();
  take_in(next);
  const std::size_t before = size_;
  const std::size_t total = before + next.size();
  if (!begin(total)) return 0;
  may_wait = may_wait && context_.waits() && context_.announcing_ == (announcing_ ? 1U : 0U);
  // Whoever was second with announcing the same pages gives its own back and waits for the first. That one announces
  // page by page, some us each, so what is seen of it may still be growing, or nothing yet, when a lock was busy.
  std::uint32_t seen = 0;
  const std::uint64_t waited_before = context_.counters_.wait_ns;
  for (int second = 0;; ++second) {
    const std::uint64_t waited_ms = (context_.counters_.wait_ns - waited_before) / 1'000'000;
    may_wait = may_wait && waited_ms < context_.wait_.limit_ms;
    if (may_wait && !announcing_) {
      may_wait = wait(second > 0, context_.wait_.limit_ms - static_cast<std::uint32_t>(waited_ms));
    }
    if (sequence_.id == 0) break;
    const std::size_t limit =
        std::min(before + std::min(most, next.size()), std::size_t{cached_} * context_.tokens_per_page());
    if (limit > size_) import_pages(limit);
    if (keep_private_ || handed_ / context_.tokens_per_page() <= written_ || !allocate(handed_)) break;
    if (!may_wait || second == kSecondMax) break;
    if (!was_second()) {
      announce_rest();
      break;
    }
    if (second > 0 && begun_.pending_pages != 0 && begun_.pending_pages == seen) break;  // too short to wait for
    seen = begun_.pending_pages;
    if (second > 0) std::this_thread::sleep_for(kAnnounces * (1 << (second - 1)));
    if (!begin(total, true)) break;
  }
  return size_ - before;
}

bool SharedSequence::write_pages(std::uint32_t full) {
  std::vector<std::uint32_t> pages(full - written_);
  const kvtrie_code code = kvtrie_get_pages(sequence_, written_, full - written_, pages.data());
  if (code != KVTRIE_OK) {
    context_.note_failure(context_.counters_.other_failures, "get pages", code);
    return false;
  }
  const std::size_t done = context_.export_pages(id_, pages, std::size_t{written_} * context_.tokens_per_page());
  written_ += static_cast<std::uint32_t>(done);
  return done == pages.size();
}

void SharedSequence::publish() {
  const auto full = static_cast<std::uint32_t>(size_ / context_.tokens_per_page());
  if (sequence_.id == 0 || keep_private_ || full <= written_) return;
  const std::size_t whole = std::size_t{full} * context_.tokens_per_page();
  if (whole > handed_) {
    const kvtrie_code code = kvtrie_append(sequence_, tokens_.data() + handed_, whole - handed_);
    if (code != KVTRIE_OK) {
      context_.note_failure(context_.counters_.other_failures, "append", code);
      release();
      return;
    }
    handed_ = whole;
  }
  if (!allocate(whole)) return;
  if (!write_pages(full)) {
    keep_private_ = true;
    release();
    return;
  }
  const Timer timer(context_.counters_.publish_ns);
  kvtrie_publish_result done{};
  done.size = sizeof done;
  const kvtrie_code code = kvtrie_publish(sequence_, whole, &done);
  if (code != KVTRIE_OK) {
    context_.note_failure(context_.counters_.other_failures, "publish", code);
    keep_private_ = true;
    release();
    return;
  }
  context_.counters_.pages_published += done.pages_published;
  context_.counters_.pages_private += done.pages_private - std::min(done.pages_private, private_);
  private_ = done.pages_private;  // those that it still has are said each time
  if (whole == handed_) announce(false);
}

void SharedSequence::decoded(std::span<const llama_token> tokens) {
  context_.counters_.tokens_decoded += tokens.size();
  if (diverged_) return;
  if (size_ == 0 && tokens_.empty()) flushes_ = context_.flushes_;  // import() did not ask: those noticed before
  take_in(tokens);
  if (sequence_.id == 0) (void)begin(size_ + tokens.size());
  size_ += tokens.size();
  publish();
  rest();
}

// A sequence that nothing happens to holds no pages of the pool, be they evicted meanwhile: begin() takes up again
// where this was when the next page is full.
void SharedSequence::rest() {
  if (handed_ <= size_ && !context_.pages_stay_) release();
}

void SharedSequence::undo_import(std::size_t tokens) {
  context_.counters_.tokens_imported -= tokens;
  size_ -= tokens;  // they come next
}

void SharedSequence::truncated(std::size_t size) {
  if (size > size_) return;
  size_ = size;
  diverged_ = false;
  if (handed_ > size) release();  // announced pages that are perhaps not computed after all, for one
  if (size != 0) return;
  release();
  tokens_.clear();
  keep_private_ = false;
}

void SharedSequence::diverged_at(std::size_t size) {
  if (!diverged_) ++context_.counters_.diverged;
  diverged_ = true;
  size_ = std::min(size_, size);
  release();
  tokens_.resize(size_);
}

void SharedSequence::copied_from(const SharedSequence& other, std::size_t size) {
  truncated(0);
  size_ = std::min(size, other.size_);
  tokens_.assign(other.tokens_.begin(), other.tokens_.begin() + static_cast<std::ptrdiff_t>(size_));
  diverged_ = other.diverged_ && size > other.size_;
  keep_private_ = other.keep_private_;
  flushes_ = other.flushes_;
}

void SharedSequence::end() { truncated(0); }

}  // namespace kvtrie::llama
