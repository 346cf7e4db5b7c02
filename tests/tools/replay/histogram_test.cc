// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
#include "tools/replay/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "tools/replay/random.h"

namespace kvtrie::replay {
namespace {

constexpr double kErrorMax = 0.02;

TEST(HistogramTest, EmptyAnswersZero) {
  const Histogram histogram;
  EXPECT_EQ(histogram.count(), 0U);
  EXPECT_EQ(histogram.percentile(50), 0U);
  EXPECT_EQ(histogram.max(), 0U);
  EXPECT_EQ(histogram.mean(), 0.0);
}

TEST(HistogramTest, ZeroedMemoryIsEmpty) {
  auto histogram = std::make_unique<Histogram>();
  histogram->record(5);
  const Histogram empty;
  std::memset(static_cast<void*>(histogram.get()), 0, sizeof(Histogram));
  EXPECT_EQ(std::memcmp(histogram.get(), &empty, sizeof(Histogram)), 0);
}

TEST(HistogramTest, SmallValuesAreExact) {
  Histogram histogram;
  for (std::uint64_t value = 1; value <= 60; ++value)
    histogram.record(value);
  EXPECT_EQ(histogram.percentile(0), 1U);
  EXPECT_EQ(histogram.percentile(50), 30U);
  EXPECT_EQ(histogram.percentile(95), 57U);
  EXPECT_EQ(histogram.percentile(100), 60U);
  EXPECT_DOUBLE_EQ(histogram.mean(), 30.5);
}

TEST(HistogramTest, EveryMagnitudeIsWithinTwoPercent) {
  for (unsigned bit = 0; bit < Histogram::kValueBits; ++bit) {
    for (const std::int64_t offset : {-1, 0, 1, 1000}) {
      const std::int64_t signed_value = (std::int64_t{1} << bit) + offset;
      if (signed_value < 0 || signed_value >= std::int64_t{1} << Histogram::kValueBits) continue;
      const auto value = static_cast<std::uint64_t>(signed_value);
      Histogram histogram;
      histogram.record(value);
      histogram.record(std::uint64_t{1} << 50);  // so that the answer is not max()
      const auto answer = static_cast<double>(histogram.percentile(50));
      EXPECT_LE(std::abs(answer - static_cast<double>(value)),
                kErrorMax * static_cast<double>(value))
          << value;
    }
  }
}

TEST(HistogramTest, PercentilesAgreeWithSortedValues) {
  Random random(3);
  std::vector<std::uint64_t> values;
  auto histogram = std::make_unique<Histogram>();
  for (int i = 0; i < 20'000; ++i) {
    const std::uint64_t value = random.below(std::uint64_t{1} << random.between(1, 34));
    values.push_back(value);
    histogram->record(value);
  }
  std::sort(values.begin(), values.end());
  for (const std::size_t percent : {1U, 10U, 50U, 90U, 99U}) {
    const auto right = static_cast<double>(values[values.size() * percent / 100 - 1]);
    const auto answer = static_cast<double>(histogram->percentile(static_cast<double>(percent)));
    EXPECT_LE(std::abs(answer - right), kErrorMax * right) << percent;
  }
  EXPECT_EQ(histogram->percentile(100), values.back());
  EXPECT_EQ(histogram->max(), values.back());
}

TEST(HistogramTest, MergedIsAsIfRecordedInOne) {
  auto all = std::make_unique<Histogram>();
  auto left = std::make_unique<Histogram>();
  auto right = std::make_unique<Histogram>();
  Random random(4);
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t value = random.below(1'000'000);
    all->record(value);
    (i % 3 == 0 ? left : right)->record(value);
  }
  left->merge(*right);
  EXPECT_EQ(std::memcmp(left.get(), all.get(), sizeof(Histogram)), 0);
}

TEST(HistogramTest, ValuesBeyondTheRangeShareTheLastBucket) {
  Histogram histogram;
  histogram.record(~std::uint64_t{0});
  histogram.record(~std::uint64_t{0} - 1);
  EXPECT_EQ(histogram.max(), ~std::uint64_t{0});
  EXPECT_GE(histogram.percentile(50), std::uint64_t{1} << 39);
}

}  // namespace
}  // namespace kvtrie::replay
