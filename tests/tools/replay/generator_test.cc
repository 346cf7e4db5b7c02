// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
#include "tools/replay/generator.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <string>

namespace kvtrie::replay {
namespace {

constexpr std::size_t kRequests = 2000;
constexpr std::uint64_t kSeed = 1;

std::string written(const std::vector<Request>& requests) {
  std::ostringstream text;
  write_trace(text, requests);
  return text.str();
}

TEST(GeneratorTest, GivesTheSameOnEveryMachine) {
  // Recorded once. Hit ratios in documents are those of this workload.
  const std::string text = written(generate(kRequests, kSeed));
  EXPECT_EQ(XXH3_64bits(text.data(), text.size()), 0x158EC94929015CD3ULL);
}

TEST(GeneratorTest, SeedsDiffer) {
  EXPECT_NE(generate(10, 1), generate(10, 2));
  EXPECT_EQ(generate(10, 2), generate(10, 2));
}

TEST(GeneratorTest, ShorterWorkloadIsThePrefixOfALongerOne) {
  std::vector<Request> longer = generate(500, kSeed);
  longer.resize(120);
  EXPECT_EQ(longer, generate(120, kSeed));
  EXPECT_TRUE(generate(0, kSeed).empty());
}

TEST(GeneratorTest, IsReadBackAsATrace) {
  const std::vector<Request> workload = generate(kRequests, kSeed);
  std::istringstream text(written(workload));
  const TraceResult result = read_trace(text, "generated");
  ASSERT_TRUE(result.ok()) << result.error;
  EXPECT_EQ(result.requests, workload);
}

TEST(GeneratorTest, AnIdAlwaysHasTheSamePredecessors) {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    EXPECT_EQ(find_prefix_violation(generate(kRequests, seed)), "");
  }
}

TEST(GeneratorTest, SystemPromptsAreSharedAndSkewed) {
  std::map<std::uint64_t, std::size_t> starts;
  for (const Request& request : generate(kRequests, kSeed))
    ++starts[request.hash_ids.front()];
  std::vector<std::size_t> counts;
  for (const auto& [id, count] : starts)
    counts.push_back(count);
  std::sort(counts.rbegin(), counts.rend());
  ASSERT_GE(counts.size(), 8U);
  EXPECT_GT(counts[0], kRequests / 3);
  EXPECT_GT(counts[0], 2 * counts[2]);
  // What does not start with a system prompt is a document, asked about once.
  EXPECT_EQ(counts.back(), 1U);
}

TEST(GeneratorTest, ConversationsExtendTheirFormerPrompt) {
  // Turns: requests whose last whole block was the last whole block of an earlier request.
  std::size_t turns = 0;
  std::size_t repeats = 0;
  std::set<std::uint64_t> deepest_seen;
  std::set<std::uint64_t> last_seen;
  for (const Request& request : generate(kRequests, kSeed)) {
    std::vector<std::uint64_t> whole = request.hash_ids;
    if (request.input_length % kBlockTokens != 0) whole.pop_back();
    if (!last_seen.insert(request.hash_ids.back()).second) {
      ++repeats;
    } else if (std::any_of(whole.begin(), whole.end(),
                           [&](std::uint64_t id) { return deepest_seen.contains(id); })) {
      ++turns;
    }
    if (!whole.empty()) deepest_seen.insert(whole.back());
  }
  EXPECT_GT(turns, kRequests / 2);
  EXPECT_GT(repeats, kRequests / 100);
  EXPECT_LT(repeats, kRequests / 10);
}

TEST(GeneratorTest, SomeDocumentsAreLong) {
  const std::vector<Request> workload = generate(kRequests, kSeed);
  const auto is_long = [](const Request& request) { return request.hash_ids.size() >= 30; };
  EXPECT_GT(std::count_if(workload.begin(), workload.end(), is_long), 20);
}

}  // namespace
}  // namespace kvtrie::replay
