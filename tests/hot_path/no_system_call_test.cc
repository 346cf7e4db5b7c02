// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// C9 and C10 by strace: lookups make no system call, and neither do allocation, publishing and
// release when nobody must be woken, no stripe is contended and free pages remain. The plugin is
// the one as shipped, its coordinator a real kvtried.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>

#include "tests/support/kvtried_process.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie::test {
namespace {

using CallsByOperation = std::map<std::string, std::vector<std::string>>;

// Lines of strace between a mark and the next "end". A line begins with the process.
CallsByOperation calls_in(const std::string& trace_file) {
  CallsByOperation calls;
  std::vector<std::string>* current = nullptr;
  std::ifstream trace(trace_file);
  for (std::string line; std::getline(trace, line);) {
    static const std::string kMark = "write(-1, \"";
    const std::size_t mark = line.find(kMark);
    if (mark == std::string::npos) {
      if (current != nullptr) current->push_back(line);
      continue;
    }
    const std::size_t name = mark + kMark.size();
    const std::string said = line.substr(name, line.find('"', name) - name);
    current = said == "end" ? nullptr : &calls[said];
  }
  return calls;
}

class NoSystemCallTest : public testing::Test {
 protected:
  NoSystemCallTest()
      : daemon_(cache_,
                {"--pages", "6144", "--page-bytes", "256", "--workers", "4", "--metrics", "off"}) {}
  void SetUp() override {
    ASSERT_TRUE(daemon_.ready()) << daemon_.err();
    if (std::system("strace -V > /dev/null 2>&1") != 0) GTEST_SKIP() << "strace is not installed";
  }
  void TearDown() override { EXPECT_EQ(daemon_.stop(), 0) << daemon_.err(); }

  TemporaryCache cache_{"calls"};
  KvtriedProcess daemon_;
};

TEST_F(NoSystemCallTest, OfHotOperationsAsStraceSeesThem) {
  const std::string trace = cache_.directory() + "/trace";
  const std::string command = "strace -f -s 64 -o " + trace +
                              " " KVTRIE_TEST_OPERATIONS " " KVTRIE_TEST_PLUGIN " " +
                              cache_.directory() + " " + cache_.name();
  if (std::system(("strace -f -o " + trace + " true > /dev/null 2>&1").c_str()) != 0) {
    GTEST_SKIP() << "strace does not work here";
  }
  ASSERT_EQ(std::system(command.c_str()), 0);
  CallsByOperation calls = calls_in(trace);
  const std::vector<std::string> seen = calls["allocate, waits"];
  EXPECT_THAT(seen, testing::Contains(testing::HasSubstr("futex")))
      << "a wait for pages is a system call";
  calls.erase("allocate, waits");
  EXPECT_EQ(calls.size(), 10U);
  for (const auto& [operation, made] : calls)
    EXPECT_THAT(made, testing::IsEmpty()) << operation;
}

}  // namespace
}  // namespace kvtrie::test
