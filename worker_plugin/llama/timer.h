// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
#pragma once

#include <chrono>
#include <cstdint>

namespace kvtrie::llama {

// Adds the ns that it lived.
class Timer {
 public:
  explicit Timer(std::uint64_t& total) : total_(total), start_(std::chrono::steady_clock::now()) {}
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() {
    total_ += static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start_).count());
  }

 private:
  std::uint64_t& total_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace kvtrie::llama
