// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/log.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/eventually.h"

namespace kvtrie {
namespace {

TEST(LimitedLogTest, SaysHowManyLinesItLeftOut) {
  std::vector<std::string> lines;
  const LogSink log = limited_log([&](std::string_view line) { lines.emplace_back(line); }, 3);
  for (int i = 0; i < 8; ++i) log("event=x");
  ASSERT_EQ(lines.size(), 3U);
  ASSERT_TRUE(test::eventually([&] {
    log("event=y");
    return lines.size() > 3;
  }));
  EXPECT_TRUE(lines[3].starts_with("event=unlogged count=")) << lines[3];
  EXPECT_EQ(lines[4], "event=y");
}

TEST(LogValueTest, CannotBreakTheLine) {
  EXPECT_EQ(log_value("a b\nevent=reap"), "a_b_event_reap");
  EXPECT_EQ(log_value(""), "-");
  EXPECT_EQ(log_value(std::string(100, 'x')).size(), 64U);
}

}  // namespace
}  // namespace kvtrie
