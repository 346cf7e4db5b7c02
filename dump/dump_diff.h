// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Where two dumps first differ: `kvtrie diff-dumps`, and tests that name the page when they fail.
//
// Requests are compared by their tokens, batches by what they compute, pages by their bytes at the same request,
// position and plane. Page numbers, process, time and how much was cached may differ: they do between any two runs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace kvtrie::dump {

// The first difference of one kind. What does not apply is absent.
struct Difference {
  std::string text;  // for people: the whole of it
  std::uint64_t request = 0;
  std::optional<std::uint64_t> token;     // index of the first other token
  std::optional<std::uint64_t> entry;     // of the batch
  std::optional<std::uint64_t> position;  // of the page
  std::optional<std::uint64_t> plane;
  std::optional<std::uint64_t> page_a;  // page numbers
  std::optional<std::uint64_t> page_b;
  std::string part;                   // empty: not known, or outside of all parts
  std::optional<std::uint64_t> item;  // index into the part; only when both dumps have raw bytes
  std::vector<std::uint64_t> index;   // the same by its dimensions
  std::optional<double> value_a;
  std::optional<double> value_b;
};

struct DumpDiff {
  std::optional<Difference> tokens;
  std::optional<Difference> batch;
  std::optional<Difference> pages;
  std::uint64_t pages_compared = 0;
  std::uint64_t pages_differing = 0;
  bool raw = false;  // both have raw bytes

  bool same() const { return !tokens && !batch && !pages; }
};

struct DumpDiffOutcome {
  DumpDiff diff;
  bool missing = false;  // a directory or its info.json is not there
  std::string error;     // not empty: one of them is no dump, and why
};

DumpDiffOutcome diff_dumps(const std::string& a, const std::string& b);

}  // namespace kvtrie::dump
