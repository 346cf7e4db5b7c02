// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Where each error of the C calls is provoked for real: a kvtried of its own, the plugin as it is shipped, and a view
// of the segment that sees what a call took or left. A case fails when code or text are not those that it says, or when
// anything that was there before is not there afterwards.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "shm/segment.h"
#include "tests/support/kvtried_process.h"
#include "worker_plugin/kvtrie_device.h"

namespace kvtrie::test {

class ErrorWorld;

// One answer of one call.
struct ErrorCase {
  const char* call;  // its function in kvtrie.h or kvtrie_device.h
  kvtrie_code code;
  const char* says;  // parts of the text in this order, '*' between them: what it is about, what to do
  std::function<kvtrie_code(ErrorWorld&)> provoke;
};
using ErrorCases = std::vector<ErrorCase>;

// Of each situation; documented_errors_test.cc compares all of them with the documents.
ErrorCases argument_cases();
ErrorCases plane_writer_cases();
ErrorCases stale_cases();
ErrorCases busy_cases();
ErrorCases full_table_cases();
ErrorCases full_leases_cases();
ErrorCases full_cache_cases();
ErrorCases page_cases();
ErrorCases flush_storm_cases();
ErrorCases no_coordinator_cases();
ErrorCases silent_coordinator_cases();
ErrorCases refusing_coordinator_cases();
ErrorCases other_owner_cases();
ErrorCases odd_answer_cases();
ErrorCases poisoned_cases();
ErrorCases poisoned_coordinator_cases();
ErrorCases corrupt_cases();
ErrorCases flushed_cases();
ErrorCases memory_cases();
ErrorCases descriptor_cases();
ErrorCases queued_device_cases();
ErrorCases cuda_device_cases();

template <typename T>
T sized() {
  T value{};
  value.size = sizeof value;
  return value;
}

inline constexpr std::uint32_t kPageTokens = 16;
inline constexpr std::uint32_t kWorldPages = 64;

using Tokens = std::vector<std::uint32_t>;
// Whole pages, other ones for each `first`.
inline Tokens prompt(std::uint32_t first, std::uint32_t pages) {
  Tokens tokens;
  for (std::uint32_t i = 0; i < kPageTokens * pages; ++i)
    tokens.push_back(first * 100'000 + i);
  return tokens;
}

class ErrorWorld {
 public:
  // Starts kvtried on 64 pages of 16 tokens, 2 planes of 1 KiB each; `more` are further options. One worker is
  // attached, with a namespace and a sequence of 3 pages, of which the first is published.
  explicit ErrorWorld(std::vector<std::string> more = {}, std::uint32_t timeout = 0);
  // Detaches all; then nothing may be missing.
  ~ErrorWorld();
  ErrorWorld(const ErrorWorld&) = delete;
  ErrorWorld& operator=(const ErrorWorld&) = delete;

  void run(const ErrorCases& cases);

  // Detached at the end, like all that attach() gave.
  kvtrie_worker worker{0};
  kvtrie_namespace space{0};
  kvtrie_sequence sequence{0};
  // For cases that need one more.
  kvtrie_sequence second{0};
  // Of attach(): the cache's own at first.
  std::string directory;
  const std::uint32_t timeout_ms;
  // A detached worker, a released sequence.
  kvtrie_worker gone_worker{0};
  kvtrie_sequence gone_sequence{0};

  kvtrie_worker attach();
  kvtrie_attach_options options() const;
  kvtrie_namespace open(kvtrie_worker of, const std::string& model);
  kvtrie_sequence begin(kvtrie_worker of, kvtrie_namespace in, const Tokens& tokens, std::uint32_t flags = 0);
  // Begins and allocates, and publishes the first `published` tokens.
  kvtrie_sequence allocated(kvtrie_worker of, kvtrie_namespace in, const Tokens& tokens, std::uint64_t published = 0);
  std::uint32_t page_of(kvtrie_sequence of, std::uint32_t position) const;

  KvtriedProcess& daemon() { return *daemon_; }
  const TemporaryCache& cache() const { return cache_; }
  const Segment& segment() const { return *segment_; }
  // SIGKILL; the next one is started at the end.
  void kill_daemon();
  void start_daemon();
  // Until no slot is on its way.
  void settle();

 private:
  struct Snapshot {
    std::array<std::uint64_t, kPageStates> pages{};
    std::uint64_t leases = 0;
    std::array<std::uint32_t, 8> slots{};
    std::uint32_t namespaces = 0;
    std::array<std::uint64_t, 6> counters{};
    std::vector<std::uint32_t> own_pages;
    bool operator==(const Snapshot&) const = default;
    std::string text() const;
  };
  Snapshot snapshot() const;
  void run_one(const ErrorCase& one);

  TemporaryCache cache_{"errors"};
  std::vector<std::string> more_;
  std::unique_ptr<KvtriedProcess> daemon_;
  std::optional<Segment> segment_;
  std::vector<kvtrie_worker> attached_;
};

// The cases in a world of their own.
inline void run_in_world(const ErrorCases& cases, const std::vector<std::string>& more = {}) {
  ErrorWorld world(more);
  world.run(cases);
}

}  // namespace kvtrie::test
