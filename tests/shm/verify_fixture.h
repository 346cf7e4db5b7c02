// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A small cache that `verify` looks at, live and at rest.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "shm/verify.h"
#include "tests/shm/cache_fixture.h"

namespace kvtrie::test {

inline std::string in_lines(const VerifyReport& report) {
  std::string text = std::to_string(report.findings_total) + " findings\n";
  for (const Finding& finding : report.findings)
    text += to_string(finding) + "\n";
  return text;
}

class VerifyTest : public CacheFixture {
 protected:
  static VerifyOptions live() { return {.at_rest = false, .findings_max = 100, .settle_ms = 3}; }
  static VerifyOptions at_rest() { return {.at_rest = true, .findings_max = 100, .settle_ms = 0}; }
  void expect_clean(const VerifyOptions& options) const {
    const VerifyReport report = verify(*segment_, options);
    EXPECT_TRUE(report.clean()) << (options.at_rest ? "at rest: " : "live: ") << in_lines(report);
  }
};

}  // namespace kvtrie::test
