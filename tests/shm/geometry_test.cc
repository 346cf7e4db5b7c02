// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/geometry.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <string>

namespace kvtrie {
namespace {

Geometry valid() {
  Geometry g;
  g.pages = 4096;
  g.page_bytes = 512;
  return g;
}

struct Limit {
  const char* name;
  std::uint64_t low, high;
  std::function<void(Geometry&, std::uint64_t)> set;
};

const Limit kLimits[] = {
    {"pages", kPagesMin, kPagesMax, [](Geometry& g, std::uint64_t v) { g.pages = v; }},
    {"tokens-per-page", 1, kTokensPerPageMax,
     [](Geometry& g, std::uint64_t v) { g.tokens_per_page = static_cast<std::uint32_t>(v); }},
    {"planes", 1, kPlanesMax,
     [](Geometry& g, std::uint64_t v) { g.planes = static_cast<std::uint32_t>(v); }},
    {"workers", 1, kWorkersMax,
     [](Geometry& g, std::uint64_t v) { g.workers = static_cast<std::uint32_t>(v); }},
    {"leases", 2, kLeasesMax,
     [](Geometry& g, std::uint64_t v) { g.leases_per_worker = static_cast<std::uint32_t>(v); }},
    {"namespaces", 1, kNamespacesMax,
     [](Geometry& g, std::uint64_t v) { g.namespaces = static_cast<std::uint32_t>(v); }},
    {"stripes", 1, kStripesMax,
     [](Geometry& g, std::uint64_t v) { g.stripes = static_cast<std::uint32_t>(v); }},
};

bool names(const std::string& problem, const Limit& limit) {
  return problem.find(limit.name) == 0 &&
         problem.find(std::to_string(limit.low)) != std::string::npos &&
         problem.find(std::to_string(limit.high)) != std::string::npos;
}

TEST(GeometryTest, BothEndsOfEachLimitArePossible) {
  for (const Limit& limit : kLimits) {
    for (const std::uint64_t value : {limit.low, limit.high}) {
      Geometry g = valid();
      limit.set(g, value);
      EXPECT_EQ(geometry_problem(g), "") << limit.name << " " << value;
    }
  }
}

TEST(GeometryTest, BeyondEachLimitIsRefusedNamingIt) {
  for (const Limit& limit : kLimits) {
    for (const std::uint64_t value : {limit.low - 1, limit.high + 1, std::uint64_t{0},
                                      std::uint64_t{std::numeric_limits<std::uint32_t>::max()}}) {
      Geometry g = valid();
      limit.set(g, value);
      EXPECT_TRUE(names(geometry_problem(g), limit)) << limit.name << ": " << geometry_problem(g);
    }
  }
}

TEST(GeometryTest, PageCountBeyond32BitsIsRefused) {
  for (const std::uint64_t pages : {std::uint64_t{1} << 32, (std::uint64_t{1} << 32) + 64,
                                    std::numeric_limits<std::uint64_t>::max()}) {
    Geometry g = valid();
    g.pages = pages;
    EXPECT_TRUE(names(geometry_problem(g), kLimits[0])) << geometry_problem(g);
  }
}

TEST(GeometryTest, PageBytesMustBeWordsAndNotZero) {
  for (const std::uint64_t bytes : {0ULL, 1ULL, 7ULL, 9ULL, 513ULL}) {
    Geometry g = valid();
    g.page_bytes = bytes;
    EXPECT_NE(geometry_problem(g).find("page-bytes"), std::string::npos) << bytes;
  }
}

TEST(GeometryTest, PoolThatOverflowsIsRefusedNamingThePool) {
  for (const std::uint64_t bytes :
       {std::uint64_t{1} << 63, std::uint64_t{1} << 60, std::uint64_t{1} << 46,
        std::uint64_t{1} << 44, (std::uint64_t{1} << 52) + 8,
        std::numeric_limits<std::uint64_t>::max() - 7}) {
    Geometry g = valid();
    g.page_bytes = bytes;
    EXPECT_NE(geometry_problem(g).find("page-bytes"), std::string::npos) << bytes;
  }
}

TEST(GeometryTest, LargestPoolIsPossibleAndOneWordMoreIsNot) {
  Geometry g = valid();
  g.pages = kPagesMax;
  g.page_bytes = std::uint64_t{1} << 22;
  EXPECT_EQ(geometry_problem(g), "");
  EXPECT_EQ(pool_bytes(g), std::uint64_t{1} << 46);
  g.page_bytes += 8;
  EXPECT_NE(geometry_problem(g), "");
}

void expect_sound(const Geometry& g) {
  const SegmentLayout layout = layout_of(g);
  SCOPED_TRACE(testing::Message() << g.pages << " pages, " << g.workers << " workers");
  ASSERT_LE(layout.area_count, kAreasMax);
  std::uint64_t end = sizeof(Superblock);
  std::set<std::uint32_t> kinds;
  for (std::uint32_t i = 0; i < layout.area_count; ++i) {
    const AreaEntry& area = layout.areas[i];
    EXPECT_EQ(area.offset % kAreaAlignment, 0U) << area.kind;
    EXPECT_GE(area.offset, end) << "area " << area.kind << " overlaps the one before";
    EXPECT_LE(area.count, std::numeric_limits<std::uint64_t>::max() / area.stride);
    end = area.offset + area.stride * area.count;
    EXPECT_GE(end, area.offset);
    EXPECT_TRUE(kinds.insert(area.kind).second) << "area twice: " << area.kind;
    EXPECT_NE(area.kind, static_cast<std::uint32_t>(AreaKind::kNone));
  }
  for (std::uint32_t i = layout.area_count; i < kAreasMax; ++i) {
    EXPECT_EQ(layout.areas[i].count, 0U);
    EXPECT_EQ(layout.areas[i].kind, 0U);
  }
  EXPECT_GE(layout.segment_bytes, end);
  EXPECT_LT(layout.segment_bytes - end, kAreaAlignment);
  EXPECT_GE(layout.chunk_count * kChunkPages, g.pages);
  EXPECT_LT((layout.chunk_count - 1) * kChunkPages, g.pages);
  EXPECT_EQ(layout.bucket_count % g.stripes, 0U) << "every stripe guards as many buckets";
  EXPECT_GE(layout.bucket_count * 5, g.pages) << "fewer than 1.6 entries a page";
  EXPECT_GE(layout.descriptor_stride, sizeof(Descriptor) + g.tokens_per_page * 4);
  EXPECT_EQ(layout.descriptor_stride % kLineBytes, 0U);
}

TEST(GeometryTest, AreasAreAlignedInOrderAndApart) {
  expect_sound(valid());
  for (const Limit& limit : kLimits) {
    for (const std::uint64_t value : {limit.low, limit.low + 1, limit.high - 1, limit.high}) {
      Geometry g = valid();
      limit.set(g, value);
      expect_sound(g);
    }
  }
}

TEST(GeometryTest, LargestOfEverythingDoesNotOverflow) {
  Geometry g;
  for (const Limit& limit : kLimits)
    limit.set(g, limit.high);
  g.page_bytes = 8;
  ASSERT_EQ(geometry_problem(g), "");
  expect_sound(g);
  EXPECT_LT(layout_of(g).segment_bytes, std::uint64_t{1} << 40);
}

TEST(GeometryTest, EveryAreaThatHoldsElementsHasItsLineAlignment) {
  const SegmentLayout layout = layout_of(valid());
  for (std::uint32_t i = 0; i < layout.area_count; ++i) {
    const auto kind = static_cast<AreaKind>(layout.areas[i].kind);
    if (kind == AreaKind::kDescriptors || kind == AreaKind::kStripes ||
        kind == AreaKind::kBuckets) {
      EXPECT_EQ(layout.areas[i].stride % kLineBytes, 0U);
    }
  }
}

TEST(GeometryTest, MetadataOfAPageStaysUnderItsBudget) {
  Geometry g;
  g.pages = 1U << 20;
  g.page_bytes = 512;
  g.tokens_per_page = 16;
  g.workers = 64;
  g.leases_per_worker = 1024;
  ASSERT_EQ(geometry_problem(g), "");
  const double per_page =
      static_cast<double>(layout_of(g).segment_bytes) / static_cast<double>(g.pages);
  RecordProperty("bytes_per_page", std::to_string(per_page));
  EXPECT_LE(per_page, 164.0);
  EXPECT_EQ(layout_of(g).descriptor_stride, 128U);
}

TEST(GeometryTest, TokensFollowTheHeaderInWholeLines) {
  EXPECT_EQ(descriptor_stride(1), 128U);
  EXPECT_EQ(descriptor_stride(16), 128U);
  EXPECT_EQ(descriptor_stride(17), 192U);
  EXPECT_EQ(descriptor_stride(kTokensPerPageMax), 64U + 4096U);
}

TEST(GeometryTest, ChecksumCoversEveryConstantByte) {
  auto block = std::make_unique<Superblock>();
  const std::uint64_t before = constant_checksum(*block);
  auto* bytes = reinterpret_cast<unsigned char*>(block.get());
  for (std::size_t i = 0; i < offsetof(Superblock, constant_checksum); ++i) {
    bytes[i] ^= 0x40;
    EXPECT_NE(constant_checksum(*block), before) << "offset " << i;
    bytes[i] ^= 0x40;
  }
  block->poison_state.store(1);
  block->doorbell.word.store(7);
  EXPECT_EQ(constant_checksum(*block), before) << "changing words are not covered";
}

TEST(GeometryTest, FingerprintIsStableWithinABuild) {
  EXPECT_NE(struct_fingerprint(), 0U);
  EXPECT_EQ(struct_fingerprint(), struct_fingerprint());
}

}  // namespace
}  // namespace kvtrie
