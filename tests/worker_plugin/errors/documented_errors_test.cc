// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The table of docs/plugin.md says which call answers which code. Each of its pairs is provoked by a case of this
// folder, and each case is of a pair; what a call's section and its comment in the header name is in the table.

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>

#include "tests/worker_plugin/errors/error_world.h"

namespace kvtrie::test {
namespace {

using Answers = std::map<std::string, std::set<std::string>>;  // "kvtrie_begin" -> "INVALID", ...

// Pairs that nothing from outside brings about, and why.
struct Unprovoked {
  const char* call;
  const char* code;
  const char* reason;
};
constexpr Unprovoked kUnprovoked[] = {
    {"kvtrie_wait_pending", "FULL",
     "begin leaves one lease slot free for moves, so it is taken only while another thread of the worker is between "
     "two "
     "stores of its own move"},
};

std::string text_of(const std::string& path) {
  std::ifstream file(std::string(KVTRIE_TEST_SOURCE_DIR) + "/" + path);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

bool is_word(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_'; }

// Words of the text that begin with `prefix`, without it.
std::set<std::string> words_with(const std::string& text, const std::string& prefix) {
  std::set<std::string> found;
  for (std::size_t at = text.find(prefix); at != std::string::npos; at = text.find(prefix, at + 1)) {
    if (at > 0 && is_word(text[at - 1])) continue;
    const std::size_t begin = at + prefix.size();
    std::size_t end = begin;
    while (end < text.size() && is_word(text[end]))
      ++end;
    found.insert(text.substr(begin, end - begin));
  }
  return found;
}

// Rows "| `kvtrie_begin` | INVALID, STALE |".
Answers table(const std::string& document) {
  Answers rows;
  std::istringstream lines(document);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("| `kvtrie_")) continue;
    const std::size_t end = line.find("` | ");
    if (end == std::string::npos) continue;
    std::set<std::string> codes;
    std::istringstream words(line.substr(end + 4));
    for (std::string word; words >> word && word != "|";)
      codes.insert(word.substr(0, word.find(',')));
    EXPECT_TRUE(rows.emplace(line.substr(3, end - 3), codes).second) << line;
  }
  return rows;
}

// What the sections "### kvtrie_begin" say in their lines "* Answers: ...".
Answers sections(const std::string& document) {
  Answers found;
  std::istringstream lines(document);
  std::string call;
  bool answers = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("### ")) call = line.substr(4);
    answers = line.starts_with("* Answers: ") || (answers && line.starts_with("  "));
    if (!answers) continue;
    for (const std::string& code : words_with(line, "KVTRIE_E_"))
      found[call].insert(code);
  }
  return found;
}

// What the comment right before each function that answers a code names.
Answers header(const std::string& text) {
  Answers found;
  const std::string declaration = "KVTRIE_API kvtrie_code ";
  for (std::size_t at = text.find(declaration); at != std::string::npos; at = text.find(declaration, at + 1)) {
    const std::size_t name = at + declaration.size();
    const std::string before = text.substr(0, at);
    std::set<std::string>& codes = found[text.substr(name, text.find('(', name) - name)];
    if (!before.ends_with("*/\n")) continue;
    const std::string comment = before.substr(before.rfind("/*"));
    codes = words_with(comment, "E_");
    codes.merge(words_with(comment, "KVTRIE_E_"));
  }
  // Said of the sequences that it concerns.
  EXPECT_EQ(found.contains("kvtrie_flush") ? found["kvtrie_flush"].erase("FLUSHED") : 1, 1U);
  return found;
}

Answers provoked() {
  Answers pairs;
  for (const auto& cases : {argument_cases(),
                            plane_writer_cases(),
                            stale_cases(),
                            busy_cases(),
                            full_table_cases(),
                            full_leases_cases(),
                            full_cache_cases(),
                            page_cases(),
                            flush_storm_cases(),
                            no_coordinator_cases(),
                            silent_coordinator_cases(),
                            refusing_coordinator_cases(),
                            other_owner_cases(),
                            odd_answer_cases(),
                            poisoned_cases(),
                            poisoned_coordinator_cases(),
                            corrupt_cases(),
                            flushed_cases(),
                            memory_cases(),
                            descriptor_cases(),
                            queued_device_cases(),
                            cuda_device_cases()}) {
    for (const ErrorCase& one : cases) {
      std::string code = kvtrie_code_name(one.code);
      std::ranges::transform(code, code.begin(),
                             [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; });
      pairs[one.call].insert(code);
    }
  }
  return pairs;
}

void expect_within(const Answers& said, const Answers& rows, const char* where) {
  for (const auto& [call, codes] : said) {
    for (const std::string& code : codes) {
      EXPECT_TRUE(code == "OK" || (rows.contains(call) && rows.at(call).contains(code)))
          << where << " of " << call << " names " << code << ", which is not in the table of docs/plugin.md";
    }
  }
}

std::size_t pairs_of(const Answers& answers) {
  std::size_t pairs = 0;
  for (const auto& [call, codes] : answers)
    pairs += codes.size();
  return pairs;
}

TEST(AbiErrorsTest, EveryAnswerOfTheTableIsProvoked) {
  const Answers rows = table(text_of("docs/plugin.md"));
  Answers cases = provoked();
  for (const Unprovoked& one : kUnprovoked) {
    EXPECT_TRUE(cases[one.call].insert(one.code).second)
        << one.call << " " << one.code << " is provoked: take it off the list";
  }
  for (const auto& [call, codes] : rows) {
    for (const std::string& code : codes)
      EXPECT_TRUE(cases[call].contains(code)) << call << " " << code << " has no case";
  }
  for (const auto& [call, codes] : cases) {
    for (const std::string& code : codes)
      EXPECT_TRUE(rows.contains(call) && rows.at(call).contains(code))
          << call << " answers " << code << ": say so in docs/plugin.md";
  }
  EXPECT_GT(pairs_of(rows), 150U) << "what is not found passes everything";
  EXPECT_LE(std::size(kUnprovoked), 3U);
}

TEST(AbiErrorsTest, SectionsAndHeadersNameNoOtherAnswers) {
  const Answers rows = table(text_of("docs/plugin.md"));
  Answers said;
  for (const char* const document : {"docs/plugin.md", "docs/plugin-sequences.md", "docs/plugin-devices.md"})
    said.merge(sections(text_of(document)));
  EXPECT_GT(pairs_of(said), 40U);
  expect_within(said, rows, "the section");
  Answers headers = header(text_of("worker_plugin/kvtrie.h"));
  headers.merge(header(text_of("worker_plugin/kvtrie_device.h")));
  EXPECT_GT(pairs_of(headers), 25U);
  expect_within(headers, rows, "the header");
  for (const auto& [call, codes] : headers)
    EXPECT_TRUE(rows.contains(call)) << call << " has no row in docs/plugin.md";
  EXPECT_EQ(headers.size(), rows.size()) << "a row is of no function";
}

}  // namespace
}  // namespace kvtrie::test
