// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "dump/statistics.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace kvtrie::dump {
namespace {

template <typename T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

double from_f16(std::uint16_t bits) {
  const int exponent = bits >> 10 & 0x1F;
  const auto fraction = static_cast<double>(bits & 0x3FF);
  double value = 0;
  if (exponent == 0x1F) {
    value = fraction == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  } else if (exponent == 0) {
    value = std::ldexp(fraction, -24);
  } else {
    value = std::ldexp(fraction + 1024, exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

struct LoadRaw {
  static double at(const std::byte* bytes, std::uint64_t i) { return static_cast<double>(bytes[i]); }
};
struct LoadF32 {
  static double at(const std::byte* bytes, std::uint64_t i) { return static_cast<double>(load<float>(bytes + i * 4)); }
};
struct LoadF16 {
  static double at(const std::byte* bytes, std::uint64_t i) { return from_f16(load<std::uint16_t>(bytes + i * 2)); }
};
struct LoadBf16 {
  static double at(const std::byte* bytes, std::uint64_t i) {
    return static_cast<double>(std::bit_cast<float>(std::uint32_t{load<std::uint16_t>(bytes + i * 2)} << 16));
  }
};

class Bins {
 public:
  Bins(double min, double max) {
    if (min == max) {  // of large items 0.5 is nothing
      const double half = std::max(0.5, std::abs(min) * 0x1p-50);
      min -= half;
      max += half;
    }
    const double step = (max - min) / static_cast<double>(kHistogramBins);
    for (std::size_t i = 0; i < kHistogramBins; ++i) edges_[i] = min + static_cast<double>(i) * step;
    edges_[kHistogramBins] = max;
    per_width_ = static_cast<double>(kHistogramBins) / (max - min);
  }
  // The edges decide, not the division, which rounds.
  std::size_t of(double value) const {
    auto bin = static_cast<std::size_t>(std::clamp((value - edges_[0]) * per_width_, 0.0, kHistogramBins - 1.0));
    if (bin > 0 && value < edges_[bin]) --bin;
    if (bin + 1 < kHistogramBins && value >= edges_[bin + 1]) ++bin;
    return bin;
  }

 private:
  std::array<double, kHistogramBins + 1> edges_{};
  double per_width_ = 0;
};

template <typename Load>
Statistics measure(const std::byte* bytes, std::uint64_t items) {
  Statistics all;
  all.items = items;
  double sum = 0;
  double min = std::numeric_limits<double>::infinity();
  double max = -min;
  for (std::uint64_t i = 0; i < items; ++i) {
    const double value = Load::at(bytes, i);
    if (!std::isfinite(value)) {
      ++(std::isnan(value) ? all.nan : all.inf);
      continue;
    }
    sum += value;
    min = std::min(min, value);
    max = std::max(max, value);
  }
  if (all.finite() == 0) return all;
  const auto finite = static_cast<double>(all.finite());
  all.min = min;
  all.max = max;
  all.mean = sum / finite;
  const Bins bins(min, max);
  double squares = 0;
  for (std::uint64_t i = 0; i < items; ++i) {
    const double value = Load::at(bytes, i);
    if (!std::isfinite(value)) continue;
    squares += (value - all.mean) * (value - all.mean);
    ++all.histogram[bins.of(value)];
  }
  all.standard_deviation = std::sqrt(squares / finite);
  return all;
}

}  // namespace

Statistics statistics_of(std::span<const std::byte> bytes, DType dtype) {
  const std::uint64_t items = bytes.size() / item_bytes(dtype);
  switch (dtype) {
    case DType::kF32: return measure<LoadF32>(bytes.data(), items);
    case DType::kF16: return measure<LoadF16>(bytes.data(), items);
    case DType::kBf16: return measure<LoadBf16>(bytes.data(), items);
    case DType::kRaw: break;
  }
  return measure<LoadRaw>(bytes.data(), items);
}

double item_at(std::span<const std::byte> bytes, DType dtype, std::uint64_t index) {
  switch (dtype) {
    case DType::kF32: return LoadF32::at(bytes.data(), index);
    case DType::kF16: return LoadF16::at(bytes.data(), index);
    case DType::kBf16: return LoadBf16::at(bytes.data(), index);
    case DType::kRaw: break;
  }
  return LoadRaw::at(bytes.data(), index);
}

}  // namespace kvtrie::dump
