// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a call of kvtrie answers: a code that the caller can act on, the errno behind it, and a literal.
// No exceptions leave shm, coordinator or metrics; Result<T> is spelled like std::expected.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <variant>

namespace kvtrie {

enum class Code : std::uint8_t {
  kOk = 0,
  kInvalid = 1,        // the caller's argument; nothing was changed
  kNotNow = 2,         // not enough free pages at the moment; ask again
  kNever = 3,          // more than this cache can ever give
  kTimeout = 4,        // the wait that the caller asked for ran out
  kStale = 5,          // handle of an ended sequence, a detached or forked worker, a reused namespace
  kCorrupt = 6,        // bytes of the segment that cannot be; the worker serves misses from now on
  kPoisoned = 7,       // the segment was given up; attach to its successor
  kNotFound = 8,       // no such cache, page or object
  kRefused = 9,        // the coordinator said no; the message says what to do
  kFull = 10,          // a table has no free entry (workers, namespaces, leases)
  kNoCoordinator = 11, // nobody answers on the cache's socket
  kBusy = 12,          // a stripe lock was not had in time, or another coordinator runs
  kOwnerDied = 13,     // the lock's last owner died; repair, then mark consistent
  kSystem = 14,        // a system call failed; errno says why
  kFlushed = 15,       // the namespace was flushed since the sequence began
};

constexpr const char* name_of(Code code) {
  constexpr const char* kNames[] = {"ok",       "invalid",  "not_now",        "never", "timeout",
                                    "stale",    "corrupt",  "poisoned",       "not_found",
                                    "refused",  "full",     "no_coordinator", "busy",  "owner_died",
                                    "system",  "flushed"};
  return kNames[static_cast<std::uint8_t>(code)];
}

// `what` is a literal (static storage). Thread-compatible value type.
class [[nodiscard]] Status {
 public:
  constexpr Status() = default;
  constexpr Status(Code code, const char* what, int system_errno = 0)
      : code_(code), errno_(system_errno), what_(what) {}

  constexpr bool ok() const { return code_ == Code::kOk; }
  constexpr explicit operator bool() const { return ok(); }
  constexpr Code code() const { return code_; }
  constexpr int system_errno() const { return errno_; }
  constexpr const char* what() const { return what_; }

 private:
  Code code_ = Code::kOk;
  int errno_ = 0;
  const char* what_ = "ok";
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : held_(std::in_place_index<0>, std::move(value)) {}
  Result(Status status) : held_(std::in_place_index<1>, status) {}

  bool has_value() const { return held_.index() == 0; }
  explicit operator bool() const { return has_value(); }
  T& value() { return std::get<0>(held_); }
  const T& value() const { return std::get<0>(held_); }
  T& operator*() { return value(); }
  const T& operator*() const { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  Status error() const { return has_value() ? Status{} : std::get<1>(held_); }

 private:
  std::variant<T, Status> held_;
};

}  // namespace kvtrie
