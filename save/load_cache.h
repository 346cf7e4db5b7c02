// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Puts the pages of a save file into a segment that is being made: it has no name yet, so no other
// process maps it, no evictor runs, and a death leaves a temporary object that the next build
// throws away. That is why no page is ever seen half loaded, why no lease is needed before Live
// (rule 6 protects a page from an evictor), and why slot 0 may own a page for a moment, which is no
// state that a named segment may show.
//
// For each record, in the file's order (docs/save-format.md):
//
//   1 its bytes into the next Free page, in every plane
//   2 checksum: wrong: left out, the page is used again
//   3 parent, namespace, token count: cannot be: left out
//   4 announce_page: Pending, index entry (announce.h)
//   5 Live
//
// At the end the free bits of these pages. Pages come to lie in the file's order: a path is a run.
//
// Crash: anywhere / temporary objects / the next build / WarmStartTest.DiesWhileItLoads
// Memory: 4 bytes a record read, a buffer. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>

#include "save/plane_bytes.h"
#include "save/saved_file.h"
#include "shm/segment.h"
#include "shm/status.h"

namespace kvtrie {

struct LoadReport {
  std::uint64_t records = 0;  // in the file, whole or not
  std::uint64_t pages = 0;    // loaded
  std::uint64_t namespaces = 0;
  bool whole = false;  // the file was finished
  // Left out:
  std::uint64_t namespaces_left_out = 0;  // damaged, or the table has no room
  std::uint64_t damaged = 0;
  std::uint64_t impossible = 0;      // intact, and no save wrote it
  std::uint64_t below_left_out = 0;  // whose parent or namespace was left out
  std::uint64_t no_entry = 0;        // the index has no room for its key
  std::uint64_t no_room = 0;         // the pool is full; the least recently used
};

// `segment` was just built and has no page; `file`'s head is intact and its difference() empty.
// `stopped` is told every MiB or so how far the load is: true ends it with kRefused, and the
// segment is to be thrown away; so is it after kSystem (a pool could not be written).
Result<LoadReport> load_cache(SavedFile& file, const Segment& segment, const PlaneBytes& planes,
                              const std::function<bool(const LoadReport&)>& stopped);

}  // namespace kvtrie
