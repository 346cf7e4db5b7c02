// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What the coordinator answers to administrative requests: text, read from the segment. Read-only.
#pragma once

#include <string>

#include "shm/segment.h"

namespace kvtrie {

// {"cache":..., "counters":{...}, ...}: counters summed over all slots, so the sums only grow.
std::string stats_json(const Segment& segment);

}  // namespace kvtrie
