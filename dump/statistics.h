// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Numbers that say at a glance whether an array is what it should be. Costs two passes over it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "dump/page_layout.h"

namespace kvtrie::dump {

inline constexpr std::size_t kHistogramBins = 16;

// min, max, mean and so on are of the finite items, and 0 when there are none.
struct Statistics {
  std::uint64_t items = 0;
  std::uint64_t nan = 0;
  std::uint64_t inf = 0;  // of either sign
  double min = 0;
  double max = 0;
  double mean = 0;
  double standard_deviation = 0;  // of all items, divided by their count
  // Finite items in bins of equal width from min to max, as numpy.histogram has them: the last bin has its upper end,
  // too; when min is max the bins go from 0.5 below to 0.5 above, or further where that is nothing to a large item.
  std::array<std::uint64_t, kHistogramBins> histogram{};

  std::uint64_t finite() const { return items - nan - inf; }
};

// `bytes` need not be aligned; what is behind the last whole item is left out.
Statistics statistics_of(std::span<const std::byte> bytes, DType dtype);

// Item `index` as a number.
double item_at(std::span<const std::byte> bytes, DType dtype, std::uint64_t index);

}  // namespace kvtrie::dump
