// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/page_copy.h"

#include <algorithm>
#include <cstring>

#include "worker_plugin/streaming_copy.h"

namespace kvtrie {
namespace {

std::byte* page_at(const PoolView& pool, std::uint32_t plane, std::uint32_t page) {
  return pool.plane[plane] + page * pool.page_bytes;
}

// Ends with all bytes moved, and ordered before what this thread stores next.
class Mover {
 public:
  Mover(CopyDirection direction, std::uint64_t bytes)
      : in_(direction == CopyDirection::kIn), streams_(bytes >= streaming_min_bytes(direction)) {}

  void move(std::byte* in_pool, std::byte* outside, std::size_t bytes) {
    std::byte* const to = in_ ? in_pool : outside;
    const std::byte* const from = in_ ? outside : in_pool;
    if (streams_) {
      streaming_.add(to, from, bytes);
    } else {
      std::memcpy(to, from, bytes);
    }
  }

 private:
  bool in_;
  bool streams_;
  StreamingCopy streaming_;
};

// Heads that stand side by side outside, too, are one piece; so are tokens whose heads do.
struct Piece {
  std::uint64_t bytes;
  std::uint64_t heads;   // pieces a token
  std::uint64_t tokens;  // tokens a piece
};

Piece piece_of(const kvtrie_layout& layout, std::uint64_t tokens) {
  const std::uint64_t token_bytes = layout.heads * layout.head_bytes;
  const bool heads_dense =
      layout.heads == 1 || layout.head_stride == static_cast<std::int64_t>(layout.head_bytes);
  if (!heads_dense) return {layout.head_bytes, layout.heads, 1};
  const bool tokens_dense = layout.token_stride == static_cast<std::int64_t>(token_bytes);
  return tokens_dense ? Piece{token_bytes * tokens, 1, tokens} : Piece{token_bytes, 1, 1};
}

}  // namespace

void copy_pages(const PoolView& pool, std::uint32_t plane, std::span<const std::uint32_t> pages,
                std::byte* base, CopyDirection direction) {
  Mover mover(direction, pages.size() * pool.page_bytes);
  for (std::size_t i = 0; i < pages.size();) {
    std::size_t run = 1;
    while (i + run < pages.size() && pages[i + run] == pages[i] + run) ++run;
    mover.move(page_at(pool, plane, pages[i]), base + i * pool.page_bytes, run * pool.page_bytes);
    i += run;
  }
}

void copy_tokens(const PoolView& pool, std::uint32_t plane, std::span<const std::uint32_t> pages,
                 std::uint32_t tokens_per_page, std::uint64_t first_token, std::uint64_t token_count,
                 const kvtrie_layout& layout, std::byte* base, CopyDirection direction) {
  const std::uint64_t token_bytes = layout.heads * layout.head_bytes;
  Mover mover(direction, token_count * token_bytes * layout.layers * layout.kv);
  std::uint64_t done = 0;
  std::uint64_t in_page = first_token;
  for (const std::uint32_t page : pages) {
    const std::uint64_t here = std::min<std::uint64_t>(tokens_per_page - in_page, token_count - done);
    const Piece piece = piece_of(layout, here);
    for (std::uint64_t row = 0; row < std::uint64_t{layout.layers} * layout.kv; ++row) {
      std::byte* const in_pool =
          page_at(pool, plane, page) + (row * tokens_per_page + in_page) * token_bytes;
      std::byte* const outside = base + static_cast<std::int64_t>(row / layout.kv) * layout.layer_stride +
                                 static_cast<std::int64_t>(row % layout.kv) * layout.kv_stride;
      for (std::uint64_t token = 0; token < here; token += piece.tokens) {
        for (std::uint64_t head = 0; head < piece.heads; ++head) {
          mover.move(in_pool + token * token_bytes + head * layout.head_bytes,
                     outside + static_cast<std::int64_t>(done + token) * layout.token_stride +
                         static_cast<std::int64_t>(head) * layout.head_stride,
                     piece.bytes);
        }
      }
    }
    done += here;
    in_page = 0;
  }
}

void copy_page(const PoolView& pool, std::uint32_t from, std::uint32_t to) {
  for (std::uint32_t plane = 0; plane < pool.planes; ++plane)
    std::memcpy(page_at(pool, plane, to), page_at(pool, plane, from), pool.page_bytes);
}

}  // namespace kvtrie
