// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A cache that a kvtried of its own serves while a test runs, and whose segment verifies at rest in the end.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "shm/segment.h"
#include "shm/verify.h"
#include "tests/support/kvtried_process.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie::test {

class ServedCacheTest : public testing::Test {
 protected:
  ServedCacheTest(std::uint32_t pages, std::uint32_t workers) : pages_(pages), workers_(workers) {}
  void SetUp() override {
    daemon_ = std::make_unique<KvtriedProcess>(
        cache_, std::vector<std::string>{"--pages", std::to_string(pages_), "--page-bytes", "1K", "--planes", "3",
                                         "--workers", std::to_string(workers_), "--metrics", "off", "--stripes", "8"});
    ASSERT_TRUE(daemon_->ready()) << daemon_->err();
    Result<Segment> segment = open_segment(cache_.name(), Access::kReadWrite);
    ASSERT_TRUE(segment);
    segment_.emplace(std::move(*segment));
  }
  void TearDown() override {
    EXPECT_EQ(daemon_->stop(), 0) << daemon_->err();
    const VerifyReport report = verify(*segment_, {.at_rest = true});
    EXPECT_TRUE(report.clean()) << to_string(report.findings.at(0));
  }

  TemporaryCache cache_{"served"};
  std::unique_ptr<KvtriedProcess> daemon_;
  std::optional<Segment> segment_;

 private:
  std::uint32_t pages_;
  std::uint32_t workers_;
};

}  // namespace kvtrie::test
