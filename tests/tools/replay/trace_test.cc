// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// KVTRIE_TRACE in the environment names a real trace; without it its test is skipped.
#include "tools/replay/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

namespace kvtrie::replay {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kLine[] =
    R"({"timestamp": 7, "input_length": 600, "output_length": 5, "hash_ids": [46, 2353]})"
    "\n";

TraceResult read(const std::string& text, std::size_t limit = kNoLimit) {
  std::istringstream input(text);
  return read_trace(input, "t", limit);
}

TEST(TraceTest, ReadsARequest) {
  const TraceResult result = read(kLine);
  ASSERT_TRUE(result.ok()) << result.error;
  ASSERT_EQ(result.requests.size(), 1U);
  EXPECT_EQ(result.requests[0], (Request{7, 600, 5, {46, 2353}}));
}

TEST(TraceTest, ReadsIdsOf64Bits) {
  const TraceResult result =
      read(R"({"timestamp":18446744073709551615,"input_length":1,"output_length":4294967295,)"
           R"("hash_ids":[18446744073709551615]})");
  ASSERT_TRUE(result.ok()) << result.error;
  EXPECT_EQ(result.requests[0], (Request{~0ULL, 1, ~0U, {~0ULL}}));
}

TEST(TraceTest, EmptyTraceAndEmptyPromptAreRight) {
  EXPECT_TRUE(read("").ok());
  const TraceResult result =
      read(R"({"timestamp":0,"input_length":0,"output_length":0,"hash_ids":[]})");
  EXPECT_TRUE(result.ok()) << result.error;
  EXPECT_EQ(result.requests.size(), 1U);
}

TEST(TraceTest, BlankLinesMayStandAtTheEndOnly) {
  EXPECT_TRUE(read(kLine + std::string("\n")).ok());
  EXPECT_TRUE(read(kLine + std::string("\r\n  \n")).ok());
  const TraceResult result = read(kLine + std::string("\n") + kLine);
  EXPECT_THAT(result.error, StartsWith("t:2: line is blank"));
  EXPECT_EQ(result.requests.size(), 1U);
}

TEST(TraceTest, OtherKeysAreIgnored) {
  EXPECT_TRUE(
      read(R"({"chat":1,"timestamp":0,"input_length":1,"output_length":1,"hash_ids":[3]})").ok());
}

TEST(TraceTest, LinesAfterTheLimitAreNotLookedAt) {
  const TraceResult result = read(std::string(kLine) + kLine + "nonsense", 2);
  EXPECT_TRUE(result.ok()) << result.error;
  EXPECT_EQ(result.requests.size(), 2U);
  EXPECT_EQ(read(kLine, 0).requests.size(), 0U);
}

struct BadLine {
  const char* line;
  const char* message;
};

// In the test's name: the fault only, with nothing that changes from run to run.
void PrintTo(const BadLine& bad, std::ostream* output) { *output << bad.message; }

class BadTraceTest : public ::testing::TestWithParam<BadLine> {};

TEST_P(BadTraceTest, NamesLineAndFault) {
  const TraceResult result = read(std::string(kLine) + GetParam().line);
  EXPECT_FALSE(result.ok());
  EXPECT_THAT(result.error, StartsWith("t:2: line "));
  EXPECT_THAT(result.error, HasSubstr(GetParam().message));
  EXPECT_EQ(result.requests.size(), 1U);
}

INSTANTIATE_TEST_SUITE_P(
    Lines, BadTraceTest,
    ::testing::Values(
        BadLine{"{\"timestamp\": 8,", "is not JSON; expected one object"},
        BadLine{"[1, 2]", "is array, expected a JSON object"},
        BadLine{R"({"input_length":1,"output_length":1,"hash_ids":[3]})", "has no \"timestamp\""},
        BadLine{R"({"timestamp":8,"output_length":1,"hash_ids":[3]})", "has no \"input_length\""},
        BadLine{R"({"timestamp":8,"input_length":1,"hash_ids":[3]})", "has no \"output_length\""},
        BadLine{R"({"timestamp":8,"input_length":1,"output_length":1})", "has no \"hash_ids\""},
        BadLine{R"({"timestamp":-8,"input_length":1,"output_length":1,"hash_ids":[3]})",
                "\"timestamp\" is -8, expected an integer from 0 to 18446744073709551615"},
        BadLine{R"({"timestamp":8.5,"input_length":1,"output_length":1,"hash_ids":[3]})",
                "\"timestamp\" is 8.5, expected an integer"},
        BadLine{R"({"timestamp":8,"input_length":4294967296,"output_length":1,"hash_ids":[3]})",
                "\"input_length\" is 4294967296, expected an integer from 0 to 4294967295"},
        BadLine{R"({"timestamp":8,"input_length":1,"output_length":"x","hash_ids":[3]})",
                "\"output_length\" is \"x\", expected an integer"},
        BadLine{R"({"timestamp":8,"input_length":1,"output_length":1,"hash_ids":3})",
                "\"hash_ids\" is 3, expected an array"},
        BadLine{R"({"timestamp":8,"input_length":600,"output_length":1,"hash_ids":[3,-1]})",
                "\"hash_ids\" holds -1 at position 1, expected an integer"},
        BadLine{R"({"timestamp":8,"input_length":1,"output_length":1,"hash_ids":[3,4]})",
                "\"hash_ids\" has 2 ids, expected 1: one per 512 tokens"},
        BadLine{R"({"timestamp":6,"input_length":1,"output_length":1,"hash_ids":[3]})",
                "\"timestamp\" is 6, expected at least 7"},
        BadLine{R"({"timestamp":8,"input_length":1,"output_length":1,"hash_ids":[3]} {})",
                "is not JSON"}));

TEST(TraceTest, MissingFileIsNamed) {
  const TraceResult result = read_trace_file("/nonexistent/trace.jsonl");
  EXPECT_THAT(result.error, StartsWith("/nonexistent/trace.jsonl: cannot open the trace: No such"));
}

TEST(TraceTest, WrittenIsReadBack) {
  const std::vector<Request> requests = {{0, 0, 9, {}}, {3, 513, 0, {~0ULL, 1}}};
  std::ostringstream text;
  write_trace(text, requests);
  const TraceResult result = read(text.str());
  ASSERT_TRUE(result.ok()) << result.error;
  EXPECT_EQ(result.requests, requests);
}

TEST(TraceTest, PrefixRuleIsChecked) {
  const Request request{0, 1024, 1, {1, 2}};
  EXPECT_EQ(find_prefix_violation(std::vector<Request>{request, request}), "");
  const Request other_parent{0, 1024, 1, {3, 2}};
  EXPECT_THAT(find_prefix_violation(std::vector<Request>{request, other_parent}),
              StartsWith("request 1: id 2 "));
  const Request no_parent{0, 512, 1, {2}};
  EXPECT_THAT(find_prefix_violation(std::vector<Request>{request, no_parent}),
              StartsWith("request 1: id 2 "));
}

TEST(TraceTest, PageCountsAreOfWholeBlocks) {
  const Request request{0, 600, 5, {46, 2353}};
  EXPECT_EQ(pages_needed(request, 16), 65U);
  EXPECT_EQ(pages_of_prompt(request, 16), 64U);
  EXPECT_EQ(pages_needed(request, 1000), 2U);
  EXPECT_EQ(pages_of_prompt(request, 1000), 1U);
  EXPECT_EQ(blocks_in_pages(31, 16), 0U);
  EXPECT_EQ(blocks_in_pages(32, 16), 1U);
  EXPECT_EQ(blocks_in_pages(1, 1000), 1U);
}

TEST(TraceTest, NamespacesAreAllUsedEvenly) {
  std::vector<std::size_t> counts(3);
  for (std::size_t index = 0; index < 3000; ++index)
    ++counts[namespace_of_request(index, 3)];
  for (const std::size_t count : counts)
    EXPECT_NEAR(static_cast<double>(count), 1000.0, 100.0);
  EXPECT_EQ(namespace_of_request(77, 1), 0U);
}

TEST(TraceTest, RealTraceIsRead) {
  const char* path = std::getenv("KVTRIE_TRACE");
  if (path == nullptr || *path == '\0') {
    GTEST_SKIP() << "KVTRIE_TRACE is not set: no real trace to read";
  }
  const TraceResult result = read_trace_file(path);
  ASSERT_TRUE(result.ok()) << result.error;
  EXPECT_GT(result.requests.size(), 0U);
  EXPECT_EQ(find_prefix_violation(result.requests), "");
  std::ostringstream text;
  write_trace(text, result.requests);
  EXPECT_EQ(read(text.str()).requests, result.requests);
}

}  // namespace
}  // namespace kvtrie::replay
