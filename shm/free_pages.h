// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Finding, taking and giving back Free pages, in runs of neighbours where possible.
//
// The state words are the truth; the bitmap (one bit a page, one word a chunk of 64) only says where to look.
//
//   take        1 held[me][chunk] += n     2 bits &= ~claimed     3 each page: CAS Free -> Writing(me)
//               4 held -= pages of the claim that somebody else had
//   give back   1 each page: Free, next generation   2 bits |= pages   3 held -= n
//   publish     1 Live   2 held -= 1                              (sequence.cc)
//   evict       1 Free, next generation   2 bits |= page          (by the coordinator, which rebuilds all at adoption)
//
// Invariants
//   F1  held[w][c] >= pages of chunk c that w owns (Writing or Pending).
//   F2  a Free page whose bit is clear lies in a chunk with held > 0 for a process that is between 2 and 3 of
//       take or 1 and 2 of give back, or died there; or the coordinator is between its two evict steps.
//   F3  a bit is set on a page that is not Free only for a while: the next taker clears it and fails its CAS.
//
// Crash: died after / left behind / repaired by / test
//   take 1, 2, 3 / held too high; bits clear on Free pages; Writing pages / reap_worker: every chunk with
//       held > 0 is walked, its pages given back, its bits set, its count zeroed / FreePagesTest, step_kill
//   give back 1, 2 / Free page without bit; held too high / the same
//   evict 1 / Free page without bit / adopt_pages / step_kill.evict
//
// The model is tests/model/free_bitmap.pml.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shm/ids.h"
#include "shm/segment.h"

namespace kvtrie {

class FreePages {
 public:
  explicit FreePages(const Segment& segment) : segment_(segment) {}

  // Takes up to `wanted` pages as Writing(me) and appends them to `out`, runs first: at `near` (the page after
  // the sequence's last) if that is free, then from `cursor`, which it moves on. Returns how many.
  std::uint32_t take(WorkerId me, std::uint32_t wanted, PageIndex near, std::uint32_t& cursor,
                     std::vector<PageIndex>& out) const;

  // Pages that are Writing(me) or Pending(me) and out of the index: Free with the next generation.
  void give_back(WorkerId me, std::span<const PageIndex> pages) const;

  // Published pages are no longer held.
  void drop_held(WorkerId me, std::span<const PageIndex> pages) const;

  // By the coordinator: the page is Retiring and out of the index.
  void free_retired(PageIndex page) const;

  // Sets the bit of every Free page of the chunk; exact repair after a death (F2).
  void repair_chunk(std::uint32_t chunk) const;

  // Bits set; 10 us a million pages. Sequentially consistent: who waits counts after it has said so (rule 16).
  std::uint64_t count() const;

 private:
  std::uint32_t claim(WorkerId me, std::uint32_t chunk, std::uint64_t mask,
                      std::vector<PageIndex>& out) const;

  const Segment& segment_;
};

}  // namespace kvtrie
