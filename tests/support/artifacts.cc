// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/support/artifacts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "dump/dump_diff.h"

namespace kvtrie::test {
namespace {

// In the order in which they were written; of one process.
std::vector<std::string> dumps_after(const std::string& folder) {
  std::vector<std::string> found;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(folder, none)) {
    if (entry.path().filename().string().ends_with("-after")) found.push_back(entry.path().string());
  }
  std::ranges::sort(found);
  return found;
}

// All tokens of all requests: what it is a dump of.
std::string tokens_of(const std::string& dump) {
  std::ifstream file(dump + "/info.json");
  const nlohmann::json info = nlohmann::json::parse(file, nullptr, false);
  std::string tokens;
  if (info.is_discarded()) return tokens;
  for (const auto& request : info["requests"]) tokens += request["tokens"].dump();
  return tokens;
}

std::string said_of(const dump::Difference& page, const std::string& alone, const std::string& shared) {
  std::string text = "first page that differs: ";
  if (page.page_b) text += "page " + std::to_string(*page.page_b) + " of the cache, ";
  if (!page.part.empty()) text += "part " + page.part + ", ";
  return text + page.text + "\n  kvtrie diff-dumps " + alone + " " + shared + "\n";
}

}  // namespace

Artifact::Artifact() {
  const char* const asked = std::getenv("KVTRIE_ARTIFACTS");
  const testing::TestInfo& test = *testing::UnitTest::GetInstance()->current_test_info();
  std::string name = std::string(test.test_suite_name()) + "." + test.name();
  std::ranges::replace(name, '/', '.');
  path_ = (asked != nullptr && *asked != '\0' ? asked : KVTRIE_TEST_ARTIFACTS) + ("/" + name);
  std::error_code ignored;  // then there is less to look into
  std::filesystem::remove_all(path_, ignored);
  std::filesystem::create_directories(path_, ignored);
}

void Artifact::keep(const TemporaryCache& cache) const {
  const std::string folder = path_ + "/cache";
  std::error_code ignored;
  std::filesystem::create_directories(folder, ignored);
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm", ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("kvtrie." + cache.name() + ".")) {
      std::filesystem::copy_file(entry.path(), folder + "/" + name, ignored);
    }
  }
}

std::string Artifact::says() const {
  const std::string page = first_page_that_differs(alone(), shared());
  const std::string none = "no page differs in the dumps of the same once more\n";
  return (page.empty() ? none : page) + "left behind: " + path_ + "\n";
}

std::string first_page_that_differs(const std::string& alone, const std::string& shared) {
  std::map<std::string, std::string> by_tokens;
  for (const std::string& dump : dumps_after(alone)) by_tokens.emplace(tokens_of(dump), dump);
  std::string missing;
  for (const std::string& dump : dumps_after(shared)) {
    const auto other = by_tokens.find(tokens_of(dump));
    if (other == by_tokens.end()) continue;
    const dump::DumpDiffOutcome outcome = dump::diff_dumps(other->second, dump);
    if (!outcome.error.empty() || !outcome.diff.pages) continue;
    const std::string said = said_of(*outcome.diff.pages, other->second, dump);
    if (outcome.diff.pages->page_b) return said;
    if (missing.empty()) missing = said;  // not there in one of them: rather one that both have
  }
  return missing;
}

}  // namespace kvtrie::test
