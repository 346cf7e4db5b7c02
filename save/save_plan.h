// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Which pages of a segment are saved, and in which order: those that
// hang on the present root of an open namespace, the most recently
// used first, parents before children (docs/save-format.md, rule 2).
//
// A look at a segment that may be live, or hold any bytes (C7): indices are checked, what a page
// says of its depth is believed only as far as it orders pages. What is planned may be gone when it
// is copied; the copier looks again. Memory: 40 bytes a page.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shm/ids.h"
#include "shm/segment.h"

namespace kvtrie {

struct PlannedNamespace {
  Handle root;
  std::string label;
  std::string fields;
};

struct PlannedPage {
  Handle page;
  Handle parent;          // a page before this one, or a root
  std::uint64_t recency;  // TouchWord: the latest of this page and of all below it
  std::uint32_t source;   // the page whose touch that is: keeps paths of one recency apart
  std::uint32_t depth;
};

struct SavePlan {
  std::vector<PlannedNamespace> namespaces;  // those that have pages
  std::vector<PlannedPage> pages;
  std::uint64_t flushed = 0;  // pages of a root that is no longer the present one
  std::uint64_t unreachable =
      0;  // pages whose parents lead to no root: they changed just now, or damage
};

SavePlan plan_save(const Segment& segment);

}  // namespace kvtrie
