// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/page_copy.h"

#include <algorithm>
#include <array>
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

  void reads_in_order(const std::byte* from, std::size_t bytes) { streaming_.reads_in_order(from, bytes); }
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

// One of the nested ways to go from a piece of bytes to the next.
struct Axis {
  std::uint64_t count;
  std::int64_t in_pool;  // strides
  std::int64_t outside;
};

// Pieces of tokens of one page, and the axes to go along, innermost first.
struct Nest {
  std::uint64_t piece_bytes;
  std::array<Axis, 4> axes;
  std::size_t depth;
};

// In the order of the pool, whichever way: it writes in order, or reads in order.
Nest nest_of(const kvtrie_layout& layout, std::uint32_t tokens_per_page, std::uint64_t tokens) {
  const auto head = static_cast<std::int64_t>(layout.head_bytes);
  const std::int64_t token = head * layout.heads;
  const std::int64_t kv = token * tokens_per_page;
  const std::array<Axis, 4> innermost_first{{{layout.heads, head, layout.head_stride},
                                             {tokens, token, layout.token_stride},
                                             {layout.kv, kv, layout.kv_stride},
                                             {layout.layers, kv * layout.kv, layout.layer_stride}}};
  Nest nest{layout.head_bytes, {}, 0};
  for (const Axis& axis : innermost_first) {
    const auto bytes = static_cast<std::int64_t>(nest.piece_bytes);
    if (axis.count == 1) continue;
    if (nest.depth == 0 && axis.in_pool == bytes && axis.outside == bytes) {
      nest.piece_bytes *= axis.count;  // side by side in both places
    } else {
      nest.axes[nest.depth++] = axis;
    }
  }
  return nest;
}

// Goes along the axes below `depth`.
void move_nest(Mover& mover, const Nest& nest, std::size_t depth, std::byte* in_pool, std::byte* outside) {
  if (depth == 0) {
    mover.move(in_pool, outside, nest.piece_bytes);
    return;
  }
  const Axis& axis = nest.axes[depth - 1];
  const auto count = static_cast<std::int64_t>(axis.count);
  for (std::int64_t i = 0; i < count; ++i) {
    move_nest(mover, nest, depth - 1, in_pool + i * axis.in_pool, outside + i * axis.outside);
  }
}

// The processor finds out by itself how a run goes on, not where the next one begins.
void prefetch_start(const std::byte* from, std::size_t bytes) {
  constexpr std::size_t kLine = 64;
  constexpr std::size_t kStart = 512;
  for (std::size_t at = 0; at < std::min(bytes, kStart); at += kLine) __builtin_prefetch(from + at);
}

std::size_t run_at(std::span<const std::uint32_t> pages, std::size_t first) {
  std::size_t run = 1;
  while (first + run < pages.size() && pages[first + run] == pages[first] + run)
    ++run;
  return run;
}

}  // namespace

void copy_pages(const PoolView& pool, std::uint32_t plane, std::span<const std::uint32_t> pages, std::byte* base,
                CopyDirection direction) {
  Mover mover(direction, pages.size() * pool.page_bytes);
  if (direction == CopyDirection::kIn) mover.reads_in_order(base, pages.size() * pool.page_bytes);
  for (std::size_t i = 0; i < pages.size();) {
    const std::size_t run = run_at(pages, i);
    if (direction == CopyDirection::kOut && i + run < pages.size()) {
      prefetch_start(page_at(pool, plane, pages[i + run]), pool.page_bytes);
    }
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
  std::size_t run_end = 0;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    std::byte* const page = page_at(pool, plane, pages[i]);
    if (i == run_end) {
      run_end += run_at(pages, i);
      if (direction == CopyDirection::kOut) mover.reads_in_order(page, (run_end - i) * pool.page_bytes);
    }
    const std::uint64_t here = std::min<std::uint64_t>(tokens_per_page - in_page, token_count - done);
    const Nest nest = nest_of(layout, tokens_per_page, here);
    move_nest(mover, nest, nest.depth, page + in_page * token_bytes,
              base + static_cast<std::int64_t>(done) * layout.token_stride);
    done += here;
    in_page = 0;
  }
}

void copy_page(const PoolView& pool, std::uint32_t from, std::uint32_t to) {
  for (std::uint32_t plane = 0; plane < pool.planes; ++plane)
    std::memcpy(page_at(pool, plane, to), page_at(pool, plane, from), pool.page_bytes);
}

}  // namespace kvtrie
