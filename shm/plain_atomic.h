// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// std::atomic without being atomic: the same size and the same calls, done by plain loads and
// stores. It is for one purpose, to measure what synchronization costs (kvtrie-bench locks): a
// plugin built with KVTRIE_UNSYNCHRONIZED has it for every Atomic (format.h) and takes no lock
// (robust_mutex.cc). Never for use, not even by one process alone: a coordinator works beside it.
#pragma once

#include <atomic>

namespace kvtrie {

template <typename T>
class PlainAtomic {
 public:
  static constexpr bool is_always_lock_free = true;

  constexpr PlainAtomic() = default;
  constexpr PlainAtomic(T value) : value_(value) {}  // as std::atomic, not explicit
  PlainAtomic(const PlainAtomic&) = delete;
  PlainAtomic& operator=(const PlainAtomic&) = delete;

  T load(std::memory_order = {}) const { return value_; }
  void store(T value, std::memory_order = {}) { value_ = value; }
  T exchange(T value, std::memory_order = {}) {
    const T before = value_;
    value_ = value;
    return before;
  }
  T fetch_add(T by, std::memory_order = {}) { return exchange(static_cast<T>(value_ + by)); }
  T fetch_sub(T by, std::memory_order = {}) { return exchange(static_cast<T>(value_ - by)); }
  T fetch_and(T with, std::memory_order = {}) { return exchange(static_cast<T>(value_ & with)); }
  T fetch_or(T with, std::memory_order = {}) { return exchange(static_cast<T>(value_ | with)); }
  bool compare_exchange_strong(T& expected, T value, std::memory_order = {},
                               std::memory_order = {}) {
    if (value_ == expected) {
      value_ = value;
      return true;
    }
    expected = value_;
    return false;
  }
  bool compare_exchange_weak(T& expected, T value, std::memory_order = {}, std::memory_order = {}) {
    return compare_exchange_strong(expected, value);
  }

 private:
  T value_{};
};

}  // namespace kvtrie
