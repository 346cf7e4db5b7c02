// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Copies between a pool and an engine's memory. Knows nothing of states and devices: the callers look whose the pages
// are, and whether this process may touch the planes.
//
//   page bytes in a plane   layers x kv x tokens x heads x head_bytes, dense
//   engine's bytes          base + layer * layer_stride + kv * kv_stride + token * token_stride + head * head_stride
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "worker_plugin/handle_table.h"
#include "worker_plugin/kvtrie.h"

namespace kvtrie {

enum class CopyDirection : std::uint8_t { kIn, kOut };  // of the pool

// From so many bytes on, a copy goes past the caches (streaming_copy.h). What goes into the pool is read by others,
// later; what comes out is read by the engine at once, and up to there the caches keep it for that.
constexpr std::uint64_t streaming_min_bytes(CopyDirection direction) {
  return direction == CopyDirection::kIn ? 256U << 10 : 1U << 20;
}

// Bytes of whole pages, one page after the other at `base`; neighbouring pages are copied at once.
void copy_pages(const PoolView& pool, std::uint32_t plane, std::span<const std::uint32_t> pages, std::byte* base,
                CopyDirection direction);

// `token_count` tokens from token `first_token` of pages[0] on; token 0 of the copy is at `base`.
void copy_tokens(const PoolView& pool, std::uint32_t plane, std::span<const std::uint32_t> pages,
                 std::uint32_t tokens_per_page, std::uint64_t first_token, std::uint64_t token_count,
                 const kvtrie_layout& layout, std::byte* base, CopyDirection direction);

// All bytes of a page into another one, in every plane.
void copy_page(const PoolView& pool, std::uint32_t from, std::uint32_t to);

}  // namespace kvtrie
