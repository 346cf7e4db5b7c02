// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie.h's calls that start several sequences, or one of another: prepare_batch, fork.

#include <algorithm>
#include <deque>
#include <optional>
#include <vector>

#include "worker_plugin/api_call.h"
#include "worker_plugin/page_copy.h"

namespace kvtrie {
namespace {

constexpr std::size_t kBatchMax = 1024;

// The items of a call, whose structs may be shorter than ours.
class ItemArray {
 public:
  ItemArray(kvtrie_batch_item* items, std::size_t count)
      : bytes_(reinterpret_cast<std::byte*>(items)), stride_(items->size), count_(count) {}

  std::size_t size() const { return count_; }
  kvtrie_batch_item& operator[](std::size_t i) const {
    return *reinterpret_cast<kvtrie_batch_item*>(bytes_ + i * stride_);
  }
  void clear_results() const {
    for (std::size_t i = 0; i < count_; ++i) {
      kvtrie_batch_item cleared = read_sized((*this)[i]);
      cleared.sequence = {};
      cleared.cached_tokens = cleared.shared_tokens = 0;
      cleared.partial_tokens = 0;
      cleared.partial_page = KVTRIE_NO_PAGE;
      write_sized((*this)[i], cleared);
    }
  }

 private:
  std::byte* bytes_;
  std::size_t stride_;
  std::size_t count_;
};

kvtrie_code item_problem(const char* call, std::size_t index, const kvtrie_batch_item& item) {
  if (item.tokens == nullptr && item.token_count != 0)
    return fail(Code::kInvalid, "{}: items[{}].tokens is NULL", call, index);
  if (item.token_count > kTokensMax) return too_many_tokens(call, item.token_count);
  return KVTRIE_OK;
}

void write_computers(const BatchItem& item, std::uint32_t index, std::uint64_t positions,
                     std::uint32_t* computed_by) {
  if (computed_by == nullptr) return;
  std::uint32_t* next = std::fill_n(computed_by, std::min<std::uint64_t>(item.report.cached_pages, positions),
                                    KVTRIE_CACHED);
  next = std::copy(item.computed_by.begin(), item.computed_by.end(), next);
  std::fill(next, computed_by + positions, index);
}

void write_item(const AttachedCache& cache, const BatchItem& item, std::uint32_t index,
                kvtrie_batch_item& out) {
  const std::uint64_t page_tokens = cache.segment().tokens_per_page();
  const kvtrie_begin_result begun = result_of(cache, *item.sequence, item.report);
  kvtrie_batch_item value = read_sized(out);
  value.cached_tokens = begun.cached_tokens;
  value.shared_tokens = item.borrowed_pages * page_tokens;
  // Others compute that page.
  value.partial_tokens = item.borrowed_pages == 0 ? begun.partial_tokens : 0;
  value.partial_page = item.borrowed_pages == 0 ? begun.partial_page : KVTRIE_NO_PAGE;
  write_computers(item, index, (item.total_tokens + page_tokens - 1) / page_tokens, value.computed_by);
  write_sized(out, value);
}

// The sequences of the items, inside which the call is until it has handed them out.
class BatchCall {
 public:
  BatchCall(kvtrie_worker worker, const ItemArray& items) : worker_(worker), items_(items) {}
  BatchCall(const BatchCall&) = delete;
  BatchCall& operator=(const BatchCall&) = delete;
  // After a failure, or an exception: whatever has begun ends.
  ~BatchCall() {
    for (Call& call : calls_) {
      if (!call.entered() || kept_) continue;
      if (call.sequence().lease_slot != kNoSlot) call.worker().release(call.sequence());
    }
  }

  kvtrie_code enter(const char* name) {
    for (std::size_t i = 0; i < items_.size(); ++i) {
      Call& call = calls_.emplace_back(handle_table().enter(worker_.id));
      if (!call.entered()) return not_entered(name, worker_, call.code());
      call.end_after();
      BatchItem& item = asked_.emplace_back();
      if (const kvtrie_code code = read_begin_options(name, items_[i].options, item.options); code != KVTRIE_OK)
        return code;
      const std::optional<NamespaceRef> ref = call.cache().find_namespace(items_[i].name_space.id);
      if (!ref) return no_namespace(name, items_[i].name_space);
      item.name_space = *ref;
      item.tokens = {items_[i].tokens, items_[i].token_count};
      item.total_tokens = items_[i].total_tokens;
      item.sequence = &call.sequence();
      item.sequence->lease_slot = kNoSlot;
      tokens_ += item.total_tokens;
    }
    return KVTRIE_OK;
  }

  kvtrie_code prepare(const char* name, const kvtrie_allocate_options& options) {
    AttachedCache& cache = calls_.front().cache();
    const Status status = cache.worker().prepare_batch(asked_, wait_ns_of(options.flags, options.wait_ms));
    if (!status) return no_pages(name, cache, status, tokens_);
    for (const BatchItem& item : asked_)
      copy_what_is_due(cache, *item.sequence, options.flags);
    for (std::uint32_t i = 0; i < items_.size(); ++i) write_item(cache, asked_[i], i, items_[i]);
    kept_ = true;
    for (std::size_t i = 0; i < items_.size(); ++i) items_[i].sequence.id = calls_[i].leave_now();
    return KVTRIE_OK;
  }

 private:
  kvtrie_worker worker_;
  const ItemArray& items_;
  std::deque<Call> calls_;
  std::vector<BatchItem> asked_;
  std::uint64_t tokens_ = 0;
  bool kept_ = false;
};

// A child that a fork did not finish.
struct UnfinishedChild {
  Worker& worker;
  Sequence& child;
  bool kept = false;
  ~UnfinishedChild() {
    if (!kept && child.lease_slot != kNoSlot) worker.release(child);
  }
};

}  // namespace
}  // namespace kvtrie

using namespace kvtrie;

extern "C" {

kvtrie_code kvtrie_prepare_batch(kvtrie_worker worker, kvtrie_batch_item* items, size_t count,
                                 const kvtrie_allocate_options* options) noexcept {
  constexpr const char* kCall = "kvtrie_prepare_batch";
  if (items == nullptr) return null_argument(kCall, "items");
  if (count == 0 || count > kBatchMax)
    return fail(Code::kInvalid, "{}: {} items: give 1 to {}", kCall, count, kBatchMax);
  if (!size_is_served(*items)) return wrong_size(kCall, "items", *items);
  const ItemArray array(items, count);
  for (std::size_t i = 0; i < count; ++i) {
    if (array[i].size != items->size)
      return fail(Code::kInvalid, "{}: items[{}].size is {}, items[0].size is {}: all the same", kCall, i,
                  array[i].size, items->size);
    if (const kvtrie_code code = item_problem(kCall, i, array[i]); code != KVTRIE_OK) return code;
  }
  array.clear_results();
  kvtrie_allocate_options asked{};
  if (options != nullptr) {
    if (!size_is_served(*options)) return wrong_size(kCall, "options", *options);
    asked = read_sized(*options);
    if (const kvtrie_code code = allocate_flags_problem(kCall, asked.flags); code != KVTRIE_OK) return code;
  }
  return guarded(kCall, [&] {
    BatchCall batch(worker, array);
    const kvtrie_code code = batch.enter(kCall);
    return code != KVTRIE_OK ? code : batch.prepare(kCall, asked);
  });
}

kvtrie_code kvtrie_fork(kvtrie_sequence sequence, const kvtrie_fork_options* options,
                        kvtrie_sequence* child) noexcept {
  constexpr const char* kCall = "kvtrie_fork";
  if (child == nullptr) return null_argument(kCall, "child");
  child->id = 0;
  kvtrie_fork_options asked{};
  if (options != nullptr) {
    if (!size_is_served(*options)) return wrong_size(kCall, "options", *options);
    asked = read_sized(*options);
    if (asked.reserved != 0) return fail(Code::kInvalid, "{}: options->reserved must be 0", kCall);
    if (const kvtrie_code code = allocate_flags_problem(kCall, asked.flags); code != KVTRIE_OK) return code;
  }
  return guarded(kCall, [&] {
    const Call parent = enter_sequence(sequence);
    if (!parent.entered()) return not_entered(kCall, sequence, parent.code());
    Call call(handle_table().enter_beside(sequence.id));
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    call.end_after();
    const bool copies_here = (asked.flags & KVTRIE_NO_COPY) == 0;
    if (copies_here && !parent.cache().writes_planes()) {
      return fail(Code::kInvalid, "{}: planes of this device are not written by this process: pass KVTRIE_NO_COPY and copy",
                  kCall);
    }
    std::vector<PageCopy> copies;
    call.sequence().lease_slot = kNoSlot;
    UnfinishedChild unfinished{call.worker(), call.sequence()};
    const Status status = call.worker().fork(parent.sequence(), asked.request_tag,
                                             wait_ns_of(asked.flags, asked.wait_ms), call.sequence(), copies);
    if (!status) {
      return no_pages(kCall, parent.cache(), status,
                      parent.sequence().known_tokens(parent.cache().segment().tokens_per_page()));
    }
    for (const PageCopy& copy : copies) {
      if (!copies_here) break;
      copy_page(parent.cache().pool_view(), copy.from.value, copy.to.value);
      call.worker().count_copy();
    }
    unfinished.kept = true;
    child->id = call.leave_now();
    return KVTRIE_OK;
  });
}

}  // extern "C"
