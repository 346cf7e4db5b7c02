/* SPDX-License-Identifier: Apache-2.0
 * Copyright The kvtrie authors
 *
 * What the classes of kvtrie.hpp are made of: spans, outcomes, errors, structs that know their size. C++17.
 *
 * Which codes throw. A caller branches on some answers every day: no pages now, the wait was over, the namespace was
 * flushed. These are an Outcome, which the compiler does not let be forgotten. All others are an Error: of arguments,
 * of handles that are over, of a cache that was given up. Each call's comment names the codes of its Outcome; any other
 * code but KVTRIE_OK throws. No code is ever turned into another.
 */
#ifndef KVTRIE_TYPES_HPP
#define KVTRIE_TYPES_HPP

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "kvtrie.h"

namespace kvtrie {
namespace client {

/* Items that stand one after the other and belong to somebody else: std::span, for C++17. Made from anything that has
 * data() and size(), from an array, or from a pointer and a count; std::span takes it as a range. */
template <typename T>
class Span {
 public:
  constexpr Span() noexcept = default;
  constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <std::size_t N>
  constexpr Span(T (&array)[N]) noexcept : data_(array), size_(N) {}
  template <typename Container,
            typename = std::enable_if_t<std::is_convertible_v<
                std::remove_pointer_t<decltype(std::declval<Container&>().data())> (*)[], T (*)[]>>>
  constexpr Span(Container&& items) noexcept : data_(items.data()), size_(items.size()) {}

  constexpr T* data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }
  constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr T* begin() const noexcept { return data_; }
  constexpr T* end() const noexcept { return data_ + size_; }
  constexpr T& operator[](std::size_t i) const noexcept { return data_[i]; }
  constexpr Span first(std::size_t count) const noexcept { return {data_, count}; }
  constexpr Span subspan(std::size_t offset) const noexcept { return {data_ + offset, size_ - offset}; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

using Tokens = Span<const std::uint32_t>;
using Fields = Span<const kvtrie_field>;

/* A call failed with a code that is not one of its outcomes. what() is kvtrie_last_error() of that moment. */
class Error : public std::runtime_error {
 public:
  Error(kvtrie_code code, const char* text) : std::runtime_error(text), code_(code) {}
  kvtrie_code code() const noexcept { return code_; }

 private:
  kvtrie_code code_;
};

/* KVTRIE_OK, or a code that the caller branches on. True when it is KVTRIE_OK. */
class [[nodiscard]] Outcome {
 public:
  constexpr Outcome(kvtrie_code code) noexcept : code_(code) {}
  constexpr kvtrie_code code() const noexcept { return code_; }
  constexpr explicit operator bool() const noexcept { return code_ == KVTRIE_OK; }
  friend constexpr bool operator==(Outcome outcome, kvtrie_code code) noexcept { return outcome.code_ == code; }
  friend constexpr bool operator!=(Outcome outcome, kvtrie_code code) noexcept { return outcome.code_ != code; }

 private:
  kvtrie_code code_;
};

/* A struct of kvtrie.h with its size set and all else 0. */
template <typename T>
struct Sized : T {
  Sized() noexcept : T{} { this->size = sizeof(T); }
};

using AttachOptions = Sized<kvtrie_attach_options>;
using BeginOptions = Sized<kvtrie_begin_options>;
using AllocateOptions = Sized<kvtrie_allocate_options>;
using ForkOptions = Sized<kvtrie_fork_options>;
using Layout = Sized<kvtrie_layout>;
using BeginResult = Sized<kvtrie_begin_result>;
using PublishResult = Sized<kvtrie_publish_result>;
using ProbeResult = Sized<kvtrie_probe_result>;
using Geometry = Sized<kvtrie_geometry>;
using Counters = Sized<kvtrie_counters>;

/* The calls of a library. Those of kvtrie_device.h are not in the table; nullptr: the library is older than they. */
struct Calls {
  const kvtrie_api* table = nullptr;
  kvtrie_code (*worker_id)(kvtrie_worker, std::uint64_t*) = nullptr;
  kvtrie_code (*writer_over)(kvtrie_worker, std::uint64_t) = nullptr;
  kvtrie_code (*plane_descriptor)(kvtrie_worker, std::uint32_t, int*) = nullptr;
  kvtrie_code (*queue_copy)(kvtrie_worker, std::uint32_t, std::uint32_t, std::uint64_t, const void*,
                            std::size_t) = nullptr;
  kvtrie_code (*wait_copies)(kvtrie_worker, std::uint32_t) = nullptr;
};

namespace detail {

constexpr std::uint32_t bit(kvtrie_code code) noexcept { return std::uint32_t{1} << static_cast<unsigned>(code); }

/* The code as an Outcome if it is KVTRIE_OK or in `outcomes`; else an Error. */
inline Outcome checked(const kvtrie_api* table, kvtrie_code code, std::uint32_t outcomes = 0) {
  const auto number = static_cast<unsigned>(code);
  if (code == KVTRIE_OK || (number < 32 && (outcomes >> number & 1) != 0)) return code;
  throw Error(code, table->last_error());
}

/* The table of an object that has one: one that was only declared has not. */
inline const kvtrie_api* opened(const kvtrie_api* table) {
  if (table == nullptr) throw Error(KVTRIE_E_STALE, "kvtrie: this Worker or Sequence was never started");
  return table;
}

}  // namespace detail
}  // namespace client
}  // namespace kvtrie

#endif
