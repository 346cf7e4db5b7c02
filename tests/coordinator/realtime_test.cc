// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/realtime.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <string>

#include "tests/shm/test_support.h"

namespace kvtrie {
namespace {

using test::Child;
using test::Line;

int policy() { return ::sched_getscheduler(0) & ~SCHED_RESET_ON_FORK; }

TEST(RealtimeTest, OffChangesNothing) {
  Realtime realtime;
  EXPECT_FALSE(realtime.start(0));
  EXPECT_TRUE(realtime.raise());
  EXPECT_EQ(policy(), SCHED_OTHER);
}

TEST(RealtimeTest, RaisesAndLowersWhereItIsPermitted) {
  Child child([](Line) {
    Realtime realtime;
    if (realtime.start(1)) return 77;
    if (policy() != SCHED_RR) return 1;
    realtime.lower();
    if (policy() != SCHED_OTHER) return 2;
    return realtime.raise() && policy() == SCHED_RR ? 0 : 3;
  });
  const int code = child.wait();
  if (code == 77) GTEST_SKIP() << "real-time priority is not permitted here";
  EXPECT_EQ(code, 0);
}

TEST(RealtimeTest, RefusalSaysWhatToConfigure) {
  Child child([](Line) {
    const rlimit none{0, 0};
    if (::setrlimit(RLIMIT_RTPRIO, &none) != 0) return 1;
    if (::geteuid() == 0 && ::setuid(65534) != 0) return 2;
    Realtime realtime;
    const MaybeFailure failure = realtime.start(5);
    if (!failure || policy() != SCHED_OTHER) return 3;
    const bool says = failure->text.find("LimitRTPRIO=5") != std::string::npos &&
                      failure->text.find("CAP_SYS_NICE") != std::string::npos;
    return says && realtime.raise() && policy() == SCHED_OTHER ? 0 : 4;
  });
  EXPECT_EQ(child.wait(), 0);
}

}  // namespace
}  // namespace kvtrie
