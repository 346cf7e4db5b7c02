// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie.h's calls with a sequence: begin, append, allocate, pages, publish, release. Arguments are checked and
// failures put into words here; what a call does is in worker.cc.

#include <algorithm>
#include <optional>
#include <span>
#include <vector>

#include "worker_plugin/api_call.h"

namespace kvtrie {
namespace {

// Positions and token counts of one sequence stay far from 2^32.
constexpr std::uint64_t kTokensMax = INT32_MAX;
constexpr std::uint8_t kHintMax = 3;
constexpr std::uint8_t kPriorityMax = 15;
// A released sequence keeps its vectors for the next one, up to this.
constexpr std::size_t kKeptBytesMax = 512 * 1024;

// Empty vectors of a sensible size for the next sequence in this slot.
void trim(Sequence& sequence) {
  const std::size_t kept = sequence.shared.capacity() * sizeof sequence.shared[0] +
                           sequence.own.capacity() * sizeof sequence.own[0] +
                           sequence.tokens.capacity() * sizeof sequence.tokens[0];
  if (kept <= kKeptBytesMax) return;
  sequence.shared = {};
  sequence.own = {};
  sequence.tokens = {};
}

// For `positions` in all, so that noting pages that were taken cannot fail. Grows by halves, since
// sequences grow by single pages. What no cache can give needs no room.
void make_room(Sequence& sequence, std::uint64_t positions, std::uint64_t pages) {
  if (positions > pages + 1 || positions <= sequence.shared.size()) return;
  const std::size_t own = positions - sequence.shared.size();
  if (own <= sequence.own.capacity()) return;
  sequence.own.reserve(std::max(own, sequence.own.capacity() + sequence.own.capacity() / 2));
}

kvtrie_code begin_problem(const kvtrie_begin_options& options) {
  constexpr const char* kCall = "kvtrie_begin";
  if ((options.flags & ~std::uint32_t{KVTRIE_NO_READ | KVTRIE_NO_PUBLISH}) != 0) {
    return fail(Code::kInvalid,
                "{}: flags {:#x}: only KVTRIE_NO_READ and KVTRIE_NO_PUBLISH are known", kCall,
                options.flags);
  }
  if (options.reserved[0] != 0 || options.reserved[1] != 0) {
    return fail(Code::kInvalid, "{}: options->reserved must be 0", kCall);
  }
  if (options.hint > kHintMax || options.priority > kPriorityMax) {
    return fail(Code::kInvalid, "{}: hint {} and priority {} must be at most {} and {}", kCall,
                options.hint, options.priority, kHintMax, kPriorityMax);
  }
  return KVTRIE_OK;
}

// Throws: only bad_alloc, and then the sequence holds nothing.
Status begin_sequence(Worker& worker, const NamespaceRef& name_space,
                      std::span<const std::uint32_t> tokens, const kvtrie_begin_options& options,
                      Sequence& sequence, BeginReport& report) {
  constexpr std::uint32_t kNoLease = UINT32_MAX;
  SequenceOptions asked;
  asked.read = (options.flags & KVTRIE_NO_READ) == 0;
  asked.publish = (options.flags & KVTRIE_NO_PUBLISH) == 0;
  asked.request_tag = options.request_tag;
  asked.retention_ticks = options.retention_ticks;
  asked.hint = options.hint;
  asked.priority = options.priority;
  sequence.lease_slot = kNoLease;
  try {
    return worker.begin(name_space, tokens, asked, sequence, report);
  } catch (...) {
    if (sequence.lease_slot != kNoLease) worker.release(sequence);
    throw;
  }
}

}  // namespace
}  // namespace kvtrie

using namespace kvtrie;

extern "C" {

kvtrie_code kvtrie_begin(kvtrie_worker worker, kvtrie_namespace name_space, const uint32_t* tokens,
                         size_t count, const kvtrie_begin_options* options,
                         kvtrie_begin_result* result, kvtrie_sequence* sequence) noexcept {
  constexpr const char* kCall = "kvtrie_begin";
  if (sequence == nullptr) return null_argument(kCall, "sequence");
  sequence->id = 0;
  if (result == nullptr) return null_argument(kCall, "result");
  if (!size_is_served(*result)) return wrong_size(kCall, "result", *result);
  if (tokens == nullptr && count != 0) return null_argument(kCall, "tokens");
  if (count > kTokensMax) {
    return fail(Code::kInvalid, "{}: {} tokens: at most {}", kCall, count, kTokensMax);
  }
  kvtrie_begin_options asked{};
  if (options != nullptr) {
    if (!size_is_served(*options)) return wrong_size(kCall, "options", *options);
    asked = read_sized(*options);
    if (const kvtrie_code code = begin_problem(asked); code != KVTRIE_OK) return code;
  }
  return guarded(kCall, [&] {
    Call call = enter_worker(worker);
    if (!call.entered()) return not_entered(kCall, worker, call.code());
    call.end_after();
    const std::optional<NamespaceRef> ref = call.cache().find_namespace(name_space.id);
    if (!ref) {
      return fail(Code::kStale, "{}: no such namespace {:#x} of this worker: open it (again)",
                  kCall, name_space.id);
    }
    BeginReport report;
    const Status status =
        begin_sequence(call.worker(), *ref, {tokens, count}, asked, call.sequence(), report);
    if (!status) return failed(kCall, call.cache(), status);
    kvtrie_begin_result value{};
    value.cached_pages = report.cached_pages;
    value.cached_tokens =
        std::uint64_t{report.cached_pages} * call.cache().segment().tokens_per_page();
    value.pending_pages = report.pending_next ? 1 : 0;
    write_sized(*result, value);
    sequence->id = call.leave_now();
    return KVTRIE_OK;
  });
}

kvtrie_code kvtrie_append(kvtrie_sequence sequence, const uint32_t* tokens, size_t count) noexcept {
  constexpr const char* kCall = "kvtrie_append";
  if (tokens == nullptr && count != 0) return null_argument(kCall, "tokens");
  return guarded(kCall, [&] {
    const Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    const Sequence& open = call.sequence();
    const std::uint64_t known =
        open.shared.size() * std::uint64_t{call.cache().segment().tokens_per_page()} +
        open.tokens.size();
    if (count > kTokensMax - std::min(known, kTokensMax)) {
      return fail(Code::kInvalid, "{}: {} tokens after {}: at most {} in all", kCall, count, known,
                  kTokensMax);
    }
    call.worker().append(call.sequence(), {tokens, count});
    return KVTRIE_OK;
  });
}

kvtrie_code kvtrie_allocate(kvtrie_sequence sequence, uint64_t total_tokens,
                            const kvtrie_allocate_options* options) noexcept {
  constexpr const char* kCall = "kvtrie_allocate";
  kvtrie_allocate_options asked{};
  if (options != nullptr) {
    if (!size_is_served(*options)) return wrong_size(kCall, "options", *options);
    asked = read_sized(*options);
    if ((asked.flags & ~std::uint32_t{KVTRIE_NO_WAIT}) != 0) {
      return fail(Code::kInvalid, "{}: flags {:#x}: only KVTRIE_NO_WAIT is known", kCall,
                  asked.flags);
    }
  }
  return guarded(kCall, [&] {
    const Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    const Segment& segment = call.cache().segment();
    Sequence& open = call.sequence();
    // Memory first, pages second: what was taken can then be noted.
    make_room(open, total_tokens / segment.tokens_per_page() + 1, segment.page_count());
    const bool waits = (asked.flags & KVTRIE_NO_WAIT) == 0;
    const Status status = call.worker().allocate(
        open, total_tokens, waits ? std::int64_t{asked.wait_ms} * 1'000'000 : 0);
    if (status) return KVTRIE_OK;
    return fail(
        status.code(), "{}: cache '{}': {} ({} tokens of {} a page; {} pages, about {} free)",
        kCall, call.cache().cache_name(), status.what(), total_tokens, segment.tokens_per_page(),
        segment.page_count(), segment.superblock().free_hint.load(std::memory_order_relaxed));
  });
}

kvtrie_code kvtrie_get_pages(kvtrie_sequence sequence, uint32_t first, uint32_t count,
                             uint32_t* pages) noexcept {
  constexpr const char* kCall = "kvtrie_get_pages";
  if (pages == nullptr && count != 0) return null_argument(kCall, "pages");
  const Call call = enter_sequence(sequence);
  if (!call.entered()) return not_entered(kCall, sequence, call.code());
  const Sequence& open = call.sequence();
  if (std::uint64_t{first} + count > open.positions()) {
    return fail(Code::kInvalid, "{}: positions {} to {} of a sequence that has {}", kCall, first,
                std::uint64_t{first} + count, open.positions());
  }
  for (std::uint32_t i = 0; i < count; ++i)
    pages[i] = open.page_at(first + i).value;
  return KVTRIE_OK;
}

kvtrie_code kvtrie_page_count(kvtrie_sequence sequence, uint32_t* count) noexcept {
  constexpr const char* kCall = "kvtrie_page_count";
  if (count == nullptr) return null_argument(kCall, "count");
  const Call call = enter_sequence(sequence);
  if (!call.entered()) return not_entered(kCall, sequence, call.code());
  *count = call.sequence().positions();
  return KVTRIE_OK;
}

kvtrie_code kvtrie_publish(kvtrie_sequence sequence, uint64_t token_count,
                           kvtrie_publish_result* result) noexcept {
  constexpr const char* kCall = "kvtrie_publish";
  if (result != nullptr && !size_is_served(*result)) return wrong_size(kCall, "result", *result);
  return guarded(kCall, [&] {
    const Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    PublishReport report;
    const Status status = call.worker().publish(call.sequence(), token_count, report);
    if (!status) return failed(kCall, call.cache(), status);
    if (result != nullptr) {
      kvtrie_publish_result value{};
      value.published_tokens =
          std::uint64_t{call.sequence().published} * call.cache().segment().tokens_per_page();
      value.pages_published = report.pages_published;
      value.pages_private = report.pages_private;
      write_sized(*result, value);
    }
    return KVTRIE_OK;
  });
}

kvtrie_code kvtrie_release(kvtrie_sequence sequence) noexcept {
  constexpr const char* kCall = "kvtrie_release";
  return guarded(kCall, [&] {
    Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    // Without memory it stays open: release may be called again.
    call.worker().release(call.sequence());
    call.end_after();
    trim(call.sequence());
    return KVTRIE_OK;
  });
}

}  // extern "C"
