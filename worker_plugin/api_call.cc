// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/api_call.h"

#include <cstring>
#include <optional>

#include "worker_plugin/page_copy.h"

namespace kvtrie {

kvtrie_code stale_worker(const char* call, std::uint64_t id) {
  if (handle_table().inherited(id)) {
    return fail(Code::kStale,
                "{}: this worker is the parent process's; after fork a child attaches by itself",
                call);
  }
  return fail(Code::kStale, "{}: no such worker {:#x}: it was detached, or never attached", call,
              id);
}

namespace {

kvtrie_code no_handle(const char* call) {
  return fail(Code::kFull, "{}: {} sequences and calls are open in this process: release some", call,
              HandleTable::kSlotsMax - 1);
}

}  // namespace

kvtrie_code not_entered(const char* call, kvtrie_worker worker, Code code) {
  if (code == Code::kBusy) return fail(code, "{}: a thread that was detaching this worker ended there", call);
  return code == Code::kStale ? stale_worker(call, worker.id) : no_handle(call);
}

kvtrie_code not_entered(const char* call, kvtrie_sequence sequence, Code code) {
  if (code == Code::kFull) return no_handle(call);  // for its child
  if (code == Code::kBusy && handle_table().lost_sequence(sequence.id)) {
    return fail(code, "{}: a thread ended in a call on sequence {:#x}: what it holds comes back with kvtrie_detach",
                call, sequence.id);
  }
  if (code == Code::kBusy) {
    return fail(code, "{}: another thread is in a call on sequence {:#x}: one at a time", call,
                sequence.id);
  }
  if (handle_table().inherited_sequence(sequence.id)) {
    return fail(code,
                "{}: this sequence is the parent process's; after fork a child attaches by itself",
                call);
  }
  return fail(code, "{}: no such sequence {:#x}: it was released, or its worker was detached", call,
              sequence.id);
}

kvtrie_code null_argument(const char* call, const char* name) {
  return fail(Code::kInvalid, "{}: {} is NULL", call, name);
}

kvtrie_code failed(const char* call, const AttachedCache& cache, const Status& status) {
  const int error = status.system_errno();
  return fail(status.code(), "{}: cache '{}': {}{}{}", call, cache.cache_name(), status.what(), error != 0 ? ": " : "",
              error != 0 ? std::strerror(error) : "");
}

kvtrie_code too_many_tokens(const char* call, std::uint64_t count) {
  return fail(Code::kInvalid, "{}: {} tokens: at most {}", call, count, kTokensMax);
}

kvtrie_code read_begin_options(const char* call, const kvtrie_begin_options* options, SequenceOptions& out) {
  constexpr std::uint8_t kHintMax = 3;
  constexpr std::uint8_t kPriorityMax = 15;
  if (options == nullptr) return KVTRIE_OK;
  if (!size_is_served(*options)) return wrong_size(call, "options", *options);
  const kvtrie_begin_options asked = read_sized(*options);
  if ((asked.flags &
       ~std::uint32_t{KVTRIE_NO_READ | KVTRIE_NO_PUBLISH | KVTRIE_PARTIAL | KVTRIE_TOKENS_STAY}) != 0) {
    return fail(Code::kInvalid,
                "{}: flags {:#x}: only KVTRIE_NO_READ, KVTRIE_NO_PUBLISH, KVTRIE_PARTIAL and KVTRIE_TOKENS_STAY are known",
                call, asked.flags);
  }
  if (asked.reserved[0] != 0 || asked.reserved[1] != 0) {
    return fail(Code::kInvalid, "{}: options->reserved must be 0", call);
  }
  if (asked.hint > kHintMax || asked.priority > kPriorityMax) {
    return fail(Code::kInvalid, "{}: hint {} and priority {} must be at most {} and {}", call,
                asked.hint, asked.priority, kHintMax, kPriorityMax);
  }
  out.read = (asked.flags & KVTRIE_NO_READ) == 0;
  out.publish = (asked.flags & KVTRIE_NO_PUBLISH) == 0;
  out.partial = (asked.flags & KVTRIE_PARTIAL) != 0;
  out.tokens_stay = (asked.flags & KVTRIE_TOKENS_STAY) != 0;
  out.request_tag = asked.request_tag;
  out.retention_ticks = asked.retention_ticks;
  out.hint = asked.hint;
  out.priority = asked.priority;
  return KVTRIE_OK;
}

kvtrie_begin_result result_of(const AttachedCache& cache, const Sequence& sequence, const BeginReport& report) {
  kvtrie_begin_result value{};
  value.cached_pages = report.cached_pages;
  value.cached_tokens = std::uint64_t{report.cached_pages} * cache.segment().tokens_per_page();
  value.pending_pages = report.pending.none() ? 0 : report.pending_pages;
  value.pending_age_ticks = report.pending_age_ticks;
  value.partial_tokens = report.partial_tokens;
  value.partial_page = report.partial_tokens == 0 ? KVTRIE_NO_PAGE : sequence.source.page.page_index().value;
  return value;
}

kvtrie_code no_namespace(const char* call, kvtrie_namespace name_space) {
  return fail(Code::kStale, "{}: no such namespace {:#x} of this worker: open it (again)", call,
              name_space.id);
}

kvtrie_code allocate_flags_problem(const char* call, std::uint32_t flags) {
  if ((flags & ~std::uint32_t{KVTRIE_NO_WAIT | KVTRIE_NO_COPY}) == 0) return KVTRIE_OK;
  return fail(Code::kInvalid, "{}: flags {:#x}: only KVTRIE_NO_WAIT and KVTRIE_NO_COPY are known", call, flags);
}

std::int64_t wait_ns_of(std::uint32_t flags, std::uint32_t wait_ms) {
  return (flags & KVTRIE_NO_WAIT) != 0 ? 0 : std::int64_t{wait_ms} * 1'000'000;
}

void copy_what_is_due(AttachedCache& cache, Sequence& sequence, std::uint32_t flags) {
  const std::optional<PageCopy> copy = cache.worker().copy_due(sequence);
  if (!copy) return;
  if ((flags & KVTRIE_NO_COPY) != 0 || !cache.writes_planes()) return cache.worker().leave_copy_to_caller(sequence);
  copy_page(cache.pool_view(), copy->from.value, copy->to.value);
  cache.worker().copied(sequence);
}

kvtrie_code no_pages(const char* call, const AttachedCache& cache, const Status& status, std::uint64_t tokens) {
  const Segment& segment = cache.segment();
  return fail(status.code(), "{}: cache '{}': {} ({} tokens of {} a page; {} pages, about {} free)", call,
              cache.cache_name(), status.what(), tokens, segment.tokens_per_page(), segment.page_count(),
              segment.superblock().free_hint.load(std::memory_order_relaxed));
}

}  // namespace kvtrie
