// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Every byte of a copy arrives where it belongs, and no other byte changes: sizes, alignments and layouts on both sides
// of where copies begin to go past the caches.

#include "worker_plugin/page_copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "worker_plugin/streaming_copy.h"

namespace kvtrie {
namespace {

using Bytes = std::vector<std::byte>;

Bytes random_bytes(std::size_t count, std::uint32_t seed) {
  Bytes bytes(count + sizeof(std::uint64_t));
  std::mt19937_64 random(seed);
  for (std::size_t at = 0; at < count; at += sizeof(std::uint64_t)) {
    const std::uint64_t word = random();
    std::memcpy(bytes.data() + at, &word, sizeof word);
  }
  bytes.resize(count);
  return bytes;
}

// Index of the first difference, for a message that can be read.
std::size_t difference(const Bytes& a, const Bytes& b) {
  return static_cast<std::size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

TEST(StreamingCopyTest, MovesAllBytesAndNoOthers) {
  constexpr std::size_t kRoom = 192;
  for (const std::size_t bytes :
       {0U, 1U, 63U, 64U, 65U, 256U, 1023U, 1024U, 1111U, 2048U, 16383U, 16384U, 40000U, 70001U}) {
    const Bytes source = random_bytes(bytes + 2 * kRoom, 1);
    for (const std::size_t to : {0U, 1U, 16U, 63U, 64U, 100U}) {
      for (const std::size_t from : {0U, 3U, 32U}) {
        Bytes target = random_bytes(bytes + 2 * kRoom, 2);
        Bytes expected = target;
        if (bytes > 0) std::memcpy(expected.data() + to, source.data() + from, bytes);
        StreamingCopy copy;
        copy.reads_in_order(source.data() + from, bytes / 2);  // a hint, not a limit
        copy.add(target.data() + to, source.data() + from, bytes);
        copy.finish();
        ASSERT_TRUE(target == expected) << bytes << " bytes, to " << to << ", from " << from << ": at "
                                        << difference(target, expected);
      }
    }
  }
}

constexpr std::uint32_t kTokens = 16;  // of a page
using Places = std::vector<std::pair<std::size_t, std::size_t>>;

// A pool of one plane, and an engine's memory, each with bytes around it that must stay.
class PageCopyTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kPages = 24;
  static constexpr std::size_t kRoom = 128;

  void set_up(std::uint64_t page_bytes, std::size_t engine_bytes, std::size_t shift) {
    pool_ = random_bytes(kPages * page_bytes + 2 * kRoom, 3);
    engine_ = random_bytes(engine_bytes + 2 * kRoom, 4);
    view_ = {};
    view_.pages = kPages;
    view_.page_bytes = page_bytes;
    view_.planes = 1;
    view_.plane[0] = pool_.data() + kRoom;
    base_ = kRoom + shift;
    pool_before_ = pool_;
    engine_before_ = engine_;
  }
  // Between these places in pool and engine, and nowhere else.
  void expect_copied(CopyDirection direction, const Places& places, std::size_t bytes, const std::string& what) {
    Bytes pool = pool_before_;
    Bytes engine = engine_before_;
    for (const auto& [in_pool, outside] : places) {
      if (direction == CopyDirection::kIn) {
        std::memcpy(pool.data() + (kRoom + in_pool), engine_before_.data() + (base_ + outside), bytes);
      } else {
        std::memcpy(engine.data() + (base_ + outside), pool_before_.data() + (kRoom + in_pool), bytes);
      }
    }
    ASSERT_TRUE(pool_ == pool) << what << ": pool, at " << difference(pool_, pool);
    ASSERT_TRUE(engine_ == engine) << what << ": engine, at " << difference(engine_, engine);
  }

  Bytes pool_;
  Bytes engine_;
  Bytes pool_before_;
  Bytes engine_before_;
  PoolView view_;
  std::size_t base_ = 0;
};

// Runs of three, of one, and backwards.
const std::vector<std::uint32_t> kSomePages = {4, 5, 6, 10, 2, 1, 20, 21, 22, 23, 0, 12};

TEST_F(PageCopyTest, PagesStandOneAfterTheOther) {
  // Twelve pages: below both limits, between them, above both; and of no even size.
  for (const std::uint64_t page_bytes : {2048U, 32U << 10, 96U << 10, (96U << 10) + 24}) {
    for (const std::size_t shift : {0U, 8U}) {
      for (const CopyDirection direction : {CopyDirection::kIn, CopyDirection::kOut}) {
        set_up(page_bytes, kSomePages.size() * page_bytes, shift);
        copy_pages(view_, 0, kSomePages, engine_.data() + base_, direction);
        Places places;
        for (std::size_t i = 0; i < kSomePages.size(); ++i)
          places.emplace_back(kSomePages[i] * page_bytes, i * page_bytes);
        expect_copied(direction, places, page_bytes, "page of " + std::to_string(page_bytes));
        if (HasFatalFailure()) return;
      }
    }
  }
}

struct Engine {
  const char* name;
  std::vector<std::size_t> order;  // of layer, kv, token, head; outermost first
  bool backwards = false;          // its tokens
};

// Strides in an engine that has the axes in that order, dense.
kvtrie_layout layout_of(kvtrie_layout layout, const Engine& engine, std::size_t tokens) {
  const std::size_t counts[] = {layout.layers, layout.kv, tokens, layout.heads};
  std::int64_t* const strides[] = {&layout.layer_stride, &layout.kv_stride, &layout.token_stride, &layout.head_stride};
  auto stride = static_cast<std::int64_t>(layout.head_bytes);
  for (std::size_t i = 4; i-- > 0;) {
    *strides[engine.order[i]] = stride;
    stride *= static_cast<std::int64_t>(counts[engine.order[i]]);
  }
  if (engine.backwards) layout.token_stride = -layout.token_stride;
  return layout;
}

// By head of a token: where in the pool and where in the engine's memory.
Places places_of(const kvtrie_layout& layout, std::span<const std::uint32_t> pages, std::size_t first,
                 std::size_t count) {
  const std::size_t rows = std::size_t{layout.layers} * layout.kv;
  Places places;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t token = first + i;
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t head = 0; head < layout.heads; ++head) {
        const std::size_t line = (pages[token / kTokens] * rows + row) * kTokens + token % kTokens;
        const std::int64_t outside = static_cast<std::int64_t>(row / layout.kv) * layout.layer_stride +
                                     static_cast<std::int64_t>(row % layout.kv) * layout.kv_stride +
                                     static_cast<std::int64_t>(i) * layout.token_stride +
                                     static_cast<std::int64_t>(head) * layout.head_stride;
        places.emplace_back((line * layout.heads + head) * layout.head_bytes, static_cast<std::size_t>(outside));
      }
    }
  }
  return places;
}

TEST_F(PageCopyTest, EveryHeadOfEveryTokenIsWhereTheLayoutSays) {
  const Engine engines[] = {{"layer, kv, token, head", {0, 1, 2, 3}},
                            {"layer, kv, head, token", {0, 1, 3, 2}},
                            {"token, layer, kv, head", {2, 0, 1, 3}},
                            {"head, token, kv, layer", {3, 2, 1, 0}},
                            {"tokens backwards", {0, 1, 2, 3}, true}};
  // Layers, kv, heads and bytes of a head: a few bytes, heads of no even size, lines, one latent, large heads.
  const std::size_t shapes[][4] = {{2, 2, 3, 8}, {3, 2, 4, 200}, {4, 2, 8, 256}, {12, 1, 1, 576}, {3, 2, 1, 1152}};
  const std::pair<std::size_t, std::size_t> ranges[] = {{0, 12 * kTokens}, {5, 12 * kTokens - 8}, {3, 2}};  // of tokens
  for (const auto& [layers, kv, heads, head_bytes] : shapes) {
    kvtrie_layout shape{};
    shape.layers = static_cast<std::uint32_t>(layers);
    shape.kv = static_cast<std::uint32_t>(kv);
    shape.heads = static_cast<std::uint32_t>(heads);
    shape.head_bytes = head_bytes;
    for (const Engine& engine : engines) {
      for (const auto& [first, count] : ranges) {
        const kvtrie_layout layout = layout_of(shape, engine, count);
        const std::span<const std::uint32_t> pages(kSomePages.data(), (first + count + kTokens - 1) / kTokens);
        const Places places = places_of(layout, pages, first, count);
        for (const CopyDirection direction : {CopyDirection::kIn, CopyDirection::kOut}) {
          const std::size_t token_bytes = layers * kv * heads * head_bytes;
          set_up(token_bytes * kTokens, token_bytes * count, head_bytes % 64 == 0 ? 0 : 1);
          if (engine.backwards) base_ += (count - 1) * heads * head_bytes;
          copy_tokens(view_, 0, pages, kTokens, first, count, layout, engine_.data() + base_, direction);
          expect_copied(direction, places, head_bytes,
                        std::string(engine.name) + ", heads of " + std::to_string(head_bytes));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvtrie
