// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Writes what is Live in a cache to a file, as an observer: the segment may be mapped read-only,
// and be live or dead. The format is docs/save-format.md.
//
// Pages may be evicted and recycled while they are copied, and an observer has no lease. So, each:
//
//   1 state word (acquire): Live or Condemned, of the life that was planned
//   2 tokens, bytes (a pread of the pool)
//   3 acquire fence, state word again: still readable, same life; else it is taken back
//
// Why that suffices: bytes and tokens of a page change only after it was made Free with the next
// generation (release) and taken by somebody who read that word (compare-and-swap, acq_rel). Who
// sees one new byte in 2 therefore sees the new generation in 3, or a later one. Condemned is as
// good as Live (rule 1); a page that is Retiring at 3 could still be whole, but is going, and is
// left out. A parent's life needs no look: while a child of it is Live the parent is (C2), and its
// record was verified by itself.
//
// A page whose parent was not saved is left out. A namespace that was flushed before the end would
// bring back what was given up: then nothing is saved (kRefused).
//
// Memory: the plan (save_plan.h), 4 bytes a page, 2 MiB of buffers, however large the pool is.
// Not thread-safe for one file; two saves of one cache do not meet.
#pragma once

#include <cstdint>
#include <string>

#include "save/plane_bytes.h"
#include "shm/segment.h"
#include "shm/status.h"

namespace kvtrie {

struct SaveReport {
  std::uint64_t pages = 0;
  std::uint64_t namespaces = 0;
  std::uint64_t file_bytes = 0;
  // Left out:
  std::uint64_t changed = 0;        // evicted while they were saved
  std::uint64_t below_changed = 0;  // whose parent was
  std::uint64_t flushed = 0;        // of roots that are flushed
  std::uint64_t unreachable = 0;    // whose parents lead to no root
};

// To `path`, which then is whole, or as it was. kBusy: another save writes it. kPoisoned: the
// segment was given up. kRefused: a flush came between, or FILE.tmp is another user's. kCorrupt: a
// pool ends too early. kSystem: errno says why.
Result<SaveReport> save_cache(const Segment& segment, const PlaneBytes& planes,
                              const std::string& path);

}  // namespace kvtrie
