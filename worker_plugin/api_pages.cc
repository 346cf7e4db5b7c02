// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie.h's calls with the pages of one sequence: which they are, giving some back, copying in and out.

#include <vector>

#include "worker_plugin/api_call.h"
#include "worker_plugin/batch.h"
#include "worker_plugin/page_copy.h"

namespace kvtrie {
namespace {

kvtrie_page_state state_of(const OwnPage& own) {
  if (own.borrowed) return KVTRIE_PAGE_BORROWED;
  switch (own.state) {
    case OwnState::kPending:
      return KVTRIE_PAGE_ANNOUNCED;
    case OwnState::kLive:
      return KVTRIE_PAGE_PUBLISHED;
    case OwnState::kIncomplete:
      return KVTRIE_PAGE_INCOMPLETE;
    default:
      return KVTRIE_PAGE_PRIVATE;
  }
}

bool may_write(const Sequence& sequence, std::uint32_t position) {
  if (position < sequence.shared.size()) return false;
  const OwnPage& own = sequence.own_at(position);
  return !own.borrowed && (own.state == OwnState::kPrivate || own.state == OwnState::kPending);
}

kvtrie_code layout_problem(const char* call, const kvtrie_layout& layout, std::uint32_t tokens_per_page,
                           std::uint64_t page_bytes) {
  if (layout.reserved != 0 || layout.layers == 0 || layout.kv == 0 || layout.heads == 0 ||
      layout.head_bytes == 0) {
    return fail(Code::kInvalid, "{}: layout: layers, kv, heads and head_bytes must be more than 0, reserved 0",
                call);
  }
  std::uint64_t bytes = tokens_per_page;
  for (const std::uint64_t factor : {std::uint64_t{layout.layers}, std::uint64_t{layout.kv},
                                     std::uint64_t{layout.heads}, layout.head_bytes}) {
    if (__builtin_mul_overflow(bytes, factor, &bytes)) bytes = 0;
    if (bytes == 0) break;
  }
  if (bytes == page_bytes) return KVTRIE_OK;
  return fail(Code::kInvalid,
              "{}: layout: {} layers x {} x {} tokens x {} heads x {} bytes are not the {} bytes of a page",
              call, layout.layers, layout.kv, tokens_per_page, layout.heads, layout.head_bytes, page_bytes);
}

// What both directions ask for.
struct CopyRequest {
  const char* call;
  std::uint64_t first_token;
  std::uint64_t token_count;
  std::uint32_t plane;
  const kvtrie_layout* layout;
  std::byte* base;
  CopyDirection direction;
};

// Pages of the tokens, or empty and the code.
std::vector<std::uint32_t> pages_of(const CopyRequest& request, const Sequence& sequence,
                                    std::uint32_t page_tokens, kvtrie_code& code) {
  std::vector<std::uint32_t> pages;
  const std::uint64_t end = request.first_token + request.token_count;
  if (end < request.first_token ||
      end > std::uint64_t{sequence.positions()} * page_tokens) {
    code = fail(Code::kInvalid, "{}: tokens {} to {} of a sequence with pages for {}", request.call,
                request.first_token, end, std::uint64_t{sequence.positions()} * page_tokens);
    return pages;
  }
  for (std::uint64_t token = request.first_token; token < end; token += page_tokens - token % page_tokens) {
    const auto position = static_cast<std::uint32_t>(token / page_tokens);
    if (request.direction == CopyDirection::kIn && !may_write(sequence, position)) {
      code = fail(Code::kInvalid,
                  "{}: the page at position {} is shared, published or another sequence's: it is not to be written",
                  request.call, position);
      return {};
    }
    if (sequence.page_at(position) == kNoPage) {
      code = fail(Code::kInvalid, "{}: the page at position {} was given back", request.call, position);
      return {};
    }
    pages.push_back(sequence.page_at(position).value);
  }
  return pages;
}

kvtrie_code copy(kvtrie_sequence sequence, const CopyRequest& request) noexcept {
  if (request.base == nullptr && request.token_count != 0) return null_argument(request.call, "base");
  if (request.layout != nullptr && !size_is_served(*request.layout))
    return wrong_size(request.call, "layout", *request.layout);
  return guarded(request.call, [&] {
    const Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(request.call, sequence, call.code());
    const PoolView pool = call.cache().pool_view();
    if (request.plane >= pool.planes || pool.plane[request.plane] == nullptr) {
      return fail(Code::kInvalid, "{}: plane {} of {}: there is none that this process can touch", request.call,
                  request.plane, pool.planes);
    }
    if (request.direction == CopyDirection::kIn && !call.cache().writes_planes()) {
      return fail(Code::kInvalid, "{}: planes of this device are not written by this process: see kvtrie_device.h", request.call);
    }
    const std::uint32_t page_tokens = call.cache().segment().tokens_per_page();
    const Sequence& open = call.sequence();
    const BatchLock lock(open);
    if (!lock.status()) return failed(request.call, call.cache(), lock.status());
    kvtrie_code code = KVTRIE_OK;
    if (request.layout == nullptr &&
        (request.first_token % page_tokens != 0 || request.token_count % page_tokens != 0)) {
      return fail(Code::kInvalid, "{}: without a layout only whole pages of {} tokens are copied", request.call,
                  page_tokens);
    }
    kvtrie_layout layout{};
    if (request.layout != nullptr) {
      layout = read_sized(*request.layout);
      code = layout_problem(request.call, layout, page_tokens, pool.page_bytes);
      if (code != KVTRIE_OK) return code;
    }
    const std::vector<std::uint32_t> pages = pages_of(request, open, page_tokens, code);
    if (code != KVTRIE_OK) return code;
    if (request.layout == nullptr) {
      copy_pages(pool, request.plane, pages, request.base, request.direction);
    } else {
      copy_tokens(pool, request.plane, pages, page_tokens, request.first_token % page_tokens,
                  request.token_count, layout, request.base, request.direction);
    }
    return KVTRIE_OK;
  });
}

}  // namespace
}  // namespace kvtrie

using namespace kvtrie;

extern "C" {

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

kvtrie_code kvtrie_own_pages(kvtrie_sequence sequence, kvtrie_own_page* pages, uint32_t capacity,
                             uint32_t* count) noexcept {
  constexpr const char* kCall = "kvtrie_own_pages";
  if (count == nullptr) return null_argument(kCall, "count");
  if (pages == nullptr && capacity != 0) return null_argument(kCall, "pages");
  const Call call = enter_sequence(sequence);
  if (!call.entered()) return not_entered(kCall, sequence, call.code());
  const Sequence& open = call.sequence();
  const BatchLock lock(open);
  if (!lock.status()) return failed(kCall, call.cache(), lock.status());
  std::uint32_t found = 0;
  for (auto position = static_cast<std::uint32_t>(open.shared.size()); position < open.positions(); ++position) {
    const OwnPage& own = open.own_at(position);
    if (own.state == OwnState::kGone) continue;
    if (found < capacity) pages[found] = {position, own.page.value, state_of(own)};
    ++found;
  }
  *count = found;
  return KVTRIE_OK;
}

kvtrie_code kvtrie_give_back(kvtrie_sequence sequence, uint32_t first, uint32_t count) noexcept {
  constexpr const char* kCall = "kvtrie_give_back";
  return guarded(kCall, [&] {
    const Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    const Status status = call.worker().give_back(call.sequence(), first, count);
    return status ? KVTRIE_OK : failed(kCall, call.cache(), status);
  });
}

kvtrie_code kvtrie_copy_in(kvtrie_sequence sequence, uint64_t first_token, uint64_t token_count,
                           uint32_t plane, const kvtrie_layout* layout, const void* base) noexcept {
  // Only read from, in this direction.
  auto* const bytes = const_cast<std::byte*>(static_cast<const std::byte*>(base));
  return copy(sequence, {"kvtrie_copy_in", first_token, token_count, plane, layout, bytes, CopyDirection::kIn});
}

kvtrie_code kvtrie_copy_out(kvtrie_sequence sequence, uint64_t first_token, uint64_t token_count,
                            uint32_t plane, const kvtrie_layout* layout, void* base) noexcept {
  return copy(sequence, {"kvtrie_copy_out", first_token, token_count, plane, layout,
                         static_cast<std::byte*>(base), CopyDirection::kOut});
}

}  // extern "C"
