// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A fuzzer's bytes as a script: numbers are taken from the front; an input that has ended gives zeros.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

namespace kvtrie::fuzz {

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(data, size) {}

  bool ended() const { return rest_.empty(); }
  template <typename Number>
  Number take() {
    Number value = 0;
    const std::size_t bytes = std::min(sizeof value, rest_.size());
    if (bytes != 0) std::memcpy(&value, rest_.data(), bytes);
    rest_ = rest_.subspan(bytes);
    return value;
  }
  std::uint8_t byte() { return take<std::uint8_t>(); }
  // One of 0 .. end-1. Takes a byte where that is enough.
  std::uint32_t below(std::uint32_t end) {
    if (end <= 1) return 0;
    return (end <= 256 ? byte() : take<std::uint16_t>() | (end > 65536 ? std::uint32_t{byte()} << 16 : 0U)) % end;
  }
  std::span<const std::uint8_t> bytes(std::size_t count) {
    const std::span<const std::uint8_t> taken = rest_.first(std::min(count, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return taken;
  }

 private:
  std::span<const std::uint8_t> rest_;
};

}  // namespace kvtrie::fuzz
