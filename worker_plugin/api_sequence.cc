// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie.h's calls on the way of one sequence: begin, wait, append, allocate, publish, release. Arguments are checked and
// failures put into words here; what a call does is in worker.h.

#include <algorithm>
#include <optional>
#include <span>
#include <vector>

#include "worker_plugin/api_call.h"

namespace kvtrie {
namespace {

// A released sequence keeps its vectors for the next one, up to this.
constexpr std::size_t kKeptBytesMax = 2 * 1024 * 1024;

// Empty vectors of a sensible size for the next sequence in this slot.
void trim(Sequence& sequence) {
  const std::size_t kept = sequence.shared.capacity() * sizeof sequence.shared[0] +
                           sequence.own.capacity() * sizeof sequence.own[0] +
                           sequence.tokens.kept_bytes();
  if (kept <= kKeptBytesMax) return;
  sequence.shared = {};
  sequence.own = {};
  sequence.tokens = {};
}

using Publish = Status (Worker::*)(Sequence&, std::uint64_t, PublishReport&);

kvtrie_code publish_by(const char* call_name, Publish publish, kvtrie_sequence sequence,
                       std::uint64_t token_count, kvtrie_publish_result* result) noexcept {
  if (result != nullptr && !size_is_served(*result)) return wrong_size(call_name, "result", *result);
  return guarded(call_name, [&] {
    const Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(call_name, sequence, call.code());
    PublishReport report;
    const Status status = (call.worker().*publish)(call.sequence(), token_count, report);
    if (!status) return failed(call_name, call.cache(), status);
    if (result != nullptr) {
      kvtrie_publish_result value{};
      value.published_tokens =
          std::uint64_t{report.published} * call.cache().segment().tokens_per_page();
      value.pages_published = report.pages_published;
      value.pages_private = report.pages_private;
      value.incomplete_tokens = report.incomplete_tokens;
      write_sized(*result, value);
    }
    return KVTRIE_OK;
  });
}

// What a begin that threw has left.
struct Unwound {
  Worker& worker;
  Sequence& sequence;
  bool kept = false;
  ~Unwound() {
    if (!kept && sequence.lease_slot != kNoSlot) worker.release(sequence);
  }
};

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
    return too_many_tokens(kCall, count);
  }
  SequenceOptions asked;
  if (const kvtrie_code code = read_begin_options(kCall, options, asked); code != KVTRIE_OK) return code;
  return guarded(kCall, [&] {
    Call call = enter_worker(worker);
    if (!call.entered()) return not_entered(kCall, worker, call.code());
    call.end_after();
    const std::optional<NamespaceRef> ref = call.cache().find_namespace(name_space.id);
    if (!ref) return no_namespace(kCall, name_space);
    BeginReport report;
    Unwound unwound{call.worker(), call.sequence()};
    const Status status = call.worker().begin(*ref, {tokens, count}, asked, call.sequence(), report);
    if (!status) return failed(kCall, call.cache(), status);
    write_sized(*result, result_of(call.cache(), call.sequence(), report));
    unwound.kept = true;
    sequence->id = call.leave_now();
    return KVTRIE_OK;
  });
}

kvtrie_code kvtrie_wait_pending(kvtrie_sequence sequence, uint32_t time_ms,
                                kvtrie_begin_result* result) noexcept {
  constexpr const char* kCall = "kvtrie_wait_pending";
  if (result == nullptr) return null_argument(kCall, "result");
  if (!size_is_served(*result)) return wrong_size(kCall, "result", *result);
  return guarded(kCall, [&] {
    const Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    BeginReport report;
    const Status status =
        call.worker().wait_for_pending(call.sequence(), std::int64_t{time_ms} * 1'000'000, report);
    if (status || status.code() == Code::kTimeout) {
      write_sized(*result, result_of(call.cache(), call.sequence(), report));
    }
    return status ? KVTRIE_OK : failed(kCall, call.cache(), status);
  });
}

kvtrie_code kvtrie_append(kvtrie_sequence sequence, const uint32_t* tokens, size_t count) noexcept {
  constexpr const char* kCall = "kvtrie_append";
  if (tokens == nullptr && count != 0) return null_argument(kCall, "tokens");
  return guarded(kCall, [&] {
    const Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    const Sequence& open = call.sequence();
    const std::uint64_t known = open.known_tokens(call.cache().segment().tokens_per_page());
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
    if (const kvtrie_code code = allocate_flags_problem(kCall, asked.flags); code != KVTRIE_OK) return code;
  }
  return guarded(kCall, [&] {
    const Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    Sequence& open = call.sequence();
    const Status status =
        call.worker().allocate(open, total_tokens, wait_ns_of(asked.flags, asked.wait_ms));
    if (!status) return no_pages(kCall, call.cache(), status, total_tokens);
    copy_what_is_due(call.cache(), open, asked.flags);
    return KVTRIE_OK;
  });
}

kvtrie_code kvtrie_publish(kvtrie_sequence sequence, uint64_t token_count,
                           kvtrie_publish_result* result) noexcept {
  return publish_by("kvtrie_publish", &Worker::publish, sequence, token_count, result);
}

kvtrie_code kvtrie_publish_incomplete(kvtrie_sequence sequence, uint64_t token_count,
                                      kvtrie_publish_result* result) noexcept {
  return publish_by("kvtrie_publish_incomplete", &Worker::publish_incomplete, sequence, token_count,
                    result);
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
