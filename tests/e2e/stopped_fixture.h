// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A small cache served by a kvtried of its own, for tests that stop processes; at rest in the end it verifies, and
// free + cached pages are all pages.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "shm/free_pages.h"
#include "shm/segment.h"
#include "shm/verify.h"
#include "shm/worker_table.h"
#include "tests/support/kvtried_process.h"

namespace kvtrie::test {

// The longest that a call may take which nobody keeps waiting. Generous: of two cores that others use, too.
inline constexpr std::chrono::milliseconds kLongest{1500};

class StoppedFixture : public ::testing::Test {
 protected:
  static constexpr std::uint32_t kPages = 256;
  static constexpr std::uint32_t kWorkers = 24;

  void SetUp() override {
    start();
    ASSERT_TRUE(daemon_->ready()) << daemon_->err();
    Result<Segment> segment = open_segment(cache_.name(), Access::kReadWrite);
    ASSERT_TRUE(segment);
    segment_.emplace(std::move(*segment));
  }
  void TearDown() override {
    if (!segment_ || !daemon_) return;
    EXPECT_TRUE(eventually([&] {
      return WorkerTable(*segment_).stats().slots[static_cast<std::size_t>(SlotState::kFree)] == kWorkers;
    }));
    EXPECT_EQ(daemon_->stop(), 0) << daemon_->err();
    const VerifyReport report = verify(*segment_, {.at_rest = true});
    EXPECT_TRUE(report.clean()) << to_string(report.findings.at(0));
    std::uint32_t free = 0;
    std::uint32_t cached = 0;
    for (std::uint32_t i = 0; i < kPages; ++i) {
      const StateWord word{segment_->descriptor({i}).state.load()};
      free += word.state() == PageState::kFree ? 1 : 0;
      cached += word.state() == PageState::kLive ? 1 : 0;
    }
    EXPECT_EQ(free + cached, kPages);
    EXPECT_EQ(FreePages(*segment_).count(), free);
  }
  void start() {
    daemon_ = std::make_unique<KvtriedProcess>(
        cache_,
        std::vector<std::string>{"--pages", std::to_string(kPages), "--page-bytes", "256", "--planes", "2", "--workers",
                                 std::to_string(kWorkers), "--metrics", "off", "--stripes", "8"},
        program_);
  }

  std::string program_ = std::string(KVTRIE_TEST_BIN_DIR) + "/kvtried";
  TemporaryCache cache_{"stopped"};
  std::unique_ptr<KvtriedProcess> daemon_;
  std::optional<Segment> segment_;
};

}  // namespace kvtrie::test
