// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Why a page can be evicted, or what stands against it: the evictor's conditions (C4, coordinator/evictor.h) in words.
#pragma once

#include <string>
#include <vector>

namespace kvtrie::inspect {

struct PageReport;

struct EvictionVerdict {
  bool possible = false;
  std::vector<std::string> reasons;  // all that stand against it; or the one that says why it is possible
};

// Of a report whose other fields are filled.
EvictionVerdict judge_eviction(const PageReport& report);

}  // namespace kvtrie::inspect
