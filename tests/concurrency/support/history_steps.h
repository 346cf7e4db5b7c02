// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A history as steps (history_check.h): what each call must have done, read off what its sequence had before and after.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/concurrency/support/history_check.h"

namespace kvtrie::test {

inline constexpr int kNobody = -1;

enum class StepKind : std::uint8_t {
  kMatch, kPending, kTake, kAnnounce, kBlocked, kLink, kPublish, kDrop, kAbort, kFree, kRetire
};

struct Step {
  StepKind kind = StepKind::kMatch;
  int life = kNobody;
  std::uint32_t key = 0;       // match: of the page behind the last one, 0 behind the whole path; blocked
  std::vector<int> lives = {};  // match
  std::uint64_t needs = 0;     // steps of the same call that come before, by their bits
};

// One life of a page, as all calls together tell of it.
struct LifeStory {
  Life name = 0;
  std::uint32_t key = 0;  // 0: never announced
  int parent = kNobody;   // nobody: the root
  int before = kNobody;   // life of the same page before this one
  int owner = kNobody;    // process
  int taken_by = kNobody, ended_by = kNobody;  // calls; nobody: never
  bool published = false;

  std::uint32_t page() const { return Handle{name}.page_index().value; }
};

struct StepCall {
  Operation operation;
  int sequence = kNobody;
  std::vector<Step> steps = {};
};

struct Steps {
  std::vector<StepCall> calls;  // of each process in its order
  std::vector<LifeStory> lives;
  std::uint32_t keys = 0;  // all are below
  int sequences = 0;
  Verdict verdict;  // what is wrong whatever the order
};

Steps steps_of(const History& history);

}  // namespace kvtrie::test
