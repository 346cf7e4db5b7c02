// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/reload.h"

#include <gtest/gtest.h>

#include "coordinator/settings.h"

namespace kvtrie {
namespace {

TEST(ReloadTest, EverySettingSaysWhenItsChangeTakesEffect) {
  for (const Setting& setting : settings()) EXPECT_TRUE(change_of(setting.key)) << setting.key;
  EXPECT_FALSE(change_of("nothing"));
}

TEST(ReloadTest, TakesOverWhatCanChangeAndNamesTheRest) {
  Options now;
  now.pages = 64;
  Options next = now;
  next.low_percent = 5;
  next.allow_uids = {7};
  next.pages = 128;
  next.metrics = "off";
  const Reload done = reload(now, next);
  EXPECT_EQ(now.low_percent, 5);
  EXPECT_EQ(now.allow_uids, std::vector<uid_t>{7});
  EXPECT_EQ(now.pages, 64U);
  EXPECT_EQ(log_lines(done), (std::vector<std::string>{
                                 "event=reload changed=low,allow-uid",
                                 "event=reload_ignored setting=metrics needs=\"a restart\"",
                                 "event=reload_ignored setting=pages needs=\"a new cache (kvtried --fresh)\"",
                             }));
  EXPECT_EQ(log_lines(reload(now, now)), std::vector<std::string>{"event=reload changed="});
}

}  // namespace
}  // namespace kvtrie
