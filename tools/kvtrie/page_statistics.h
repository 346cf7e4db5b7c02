// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie page N --stats`: what the bytes of a page are like, in every plane.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dump/page_layout.h"
#include "dump/statistics.h"
#include "save/plane_bytes.h"
#include "shm/segment.h"
#include "tools/kvtrie/outcome.h"

namespace kvtrie::inspect {

struct PartStatistics {
  dump::Part part;
  dump::Statistics all;
};

struct PageStatistics {
  bool changed = false;  // the page's state word moved while its bytes were read: they may be of two lives
  std::vector<std::vector<PartStatistics>> planes;
  std::string problem;  // not empty: the bytes could not be read
};

// `dtype` in place of what the page's namespace says.
PageStatistics gather_statistics(const Segment& segment, PageIndex page, const PlaneBytes& bytes,
                                 std::optional<dump::DType> dtype);
std::string to_text(const PageStatistics& statistics);
Json to_json(const PageStatistics& statistics);

}  // namespace kvtrie::inspect
