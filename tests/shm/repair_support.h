// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A segment without a name that a repair made of another.
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>

#include "shm/repair.h"
#include "shm/verify.h"
#include "tests/shm/test_support.h"

namespace kvtrie::test {

struct Repaired {
  RepairPlan plan;
  std::optional<Segment> segment;

  bool keeps(PageIndex page) const { return plan.keeps(page); }
};

inline Repaired repaired(const Segment& damaged, const ChecksumFits& checksum_fits = {}) {
  Repaired made{plan_repair(damaged, checksum_fits), {}};
  Result<FileDescriptor> fd = nameless_object(damaged.size_bytes());
  EXPECT_TRUE(fd);
  Result<Mapping> mapping = Mapping::map(fd->get(), damaged.size_bytes(), Access::kReadWrite);
  EXPECT_TRUE(mapping);
  Result<Segment> fresh = Segment::build(std::move(*mapping), damaged.geometry(), identity_of(damaged));
  EXPECT_TRUE(fresh);
  made.segment.emplace(std::move(*fresh));
  write_repaired(damaged, made.plan, *made.segment);
  return made;
}

// Empty, or what `verify` finds in it at rest.
inline std::string findings_in(const Segment& segment) {
  std::string text;
  for (const Finding& finding : verify(segment, {.at_rest = true, .settle_ms = 0}).findings)
    text += to_string(finding) + "\n";
  return text;
}

}  // namespace kvtrie::test
