// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Finding, taking and giving back Free pages, in runs of neighbours where possible.
//
// The state words are the truth; two bitmaps (each one bit a page, one word a chunk of 64) only say where to look: for
// takers the pages that are Free, for the reaper those that are somebody's.
//
//   take        1 held[me][chunk] += n     2 free &= ~claimed     3 each page: CAS Free -> Writing(me)
//               4 held -= pages of the claim that somebody else had     5 owned |= taken
//   give back   1 each page: Free, next generation   2 owned &= ~pages, free |= pages   3 held -= n
//   publish     1 Live   2 owned &= ~pages   3 held -= n          (worker.cc)
//   evict       1 Free, next generation   2 free |= page          (by the coordinator, which rebuilds all at adoption)
//
// Invariants
//   F1  held[w][c] >= pages of chunk c that w owns (Writing or Pending).
//   F2  a Free page whose bit is clear lies in a chunk with held > 0 for a process that is between 2 and 3 of
//       take or 1 and 2 of give back, or died there; or the coordinator is between its two evict steps.
//   F3  a bit is set on a page that is not Free only for a while: the next taker clears it and fails its CAS.
//   F4  nothing follows from an owned bit but where recover(dead) looks first. Once it has found as many pages as are
//       held, by F1 there are no others, and by F2 no Free page of the chunk lacks its bit: it looks no further.
//
// Crash: died after / left behind / repaired by / test
//   take 1 to 5 / held too high; bits clear on Free pages; Writing pages / recover(dead): in every chunk with
//       held > 0 its pages are given back, the bits set if fewer than held were found, the count zeroed /
//       FreePagesTest, step_kill
//   give back 1, 2 / Free page without bit; held too high / the same
//   evict 1 / Free page without bit / recover(), at adoption / step_kill evict.leaf
//
// The model is tests/model/free_bitmap.pml.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "shm/ids.h"
#include "shm/segment.h"

namespace kvtrie {

struct FreeStats {
  std::uint64_t free_bits = 0;
  std::vector<std::uint64_t> held_of;  // by slot: sum of its held counts, at least what it owns
};

class FreePages {
 public:
  explicit FreePages(const Segment& segment) : segment_(segment) {}

  // Of zero bytes: every page's bit set, the hint exact.
  void init() const;
  // Empty, or the first thing that cannot be: a bit of a page that is not there, a held count of a slot that nobody
  // has. True at any moment; F1 and F2 are for `verify`.
  std::string validate() const;
  std::string validate(std::uint32_t chunk) const;
  // By a coordinator that holds the cache's lock: the bit of every Free page (F2), the hint exact. Idempotent.
  void recover() const;
  // What a dead worker holds: its pages out of the index and Free, then the bits of those chunks, then the counts.
  // Returns its pages. Idempotent.
  std::uint32_t recover(WorkerId dead) const;
  FreeStats stats() const;

  // Takes up to `wanted` pages as Writing(me) and appends them to `out`, runs first: at `near` (the page after
  // the sequence's last) if that is free; then of the free runs in some chunks from `cursor` on the shortest that is
  // long enough, else the longest and so on (the first that is found, as pages are needed, leaves runs half as long
  // after ageing: kvtrie-bench eviction); then any pages. Few pages come from `cursor` at once. Moves `cursor` to where
  // it ended. Returns how many.
  std::uint32_t take(WorkerId me, std::uint32_t wanted, PageIndex near, std::uint32_t& cursor,
                     std::vector<PageIndex>& out) const;

  // Pages that are Writing(me) or Pending(me) and out of the index: Free with the next generation.
  void give_back(WorkerId me, std::span<const PageIndex> pages) const;

  // Published pages are no longer held.
  void drop_held(WorkerId me, std::span<const PageIndex> pages) const;

  // By the coordinator: the page is Retiring and out of the index.
  void free_retired(PageIndex page) const;

  // Free bits set; some 10 us a million pages. Sequentially consistent loads: who counts after it stored a word that
  // takers look at (evictor_busy, a wish) sees their takes, or they see the word.
  std::uint64_t count() const;

 private:
  class PagesOfTheDead;

  std::uint32_t pages_of_chunk(std::uint32_t chunk) const;
  void repair_chunk(std::uint32_t chunk) const;  // sets the bit of every Free page in it
  std::uint32_t take_runs(WorkerId me, std::uint32_t wanted, std::uint32_t& cursor, std::vector<PageIndex>& out) const;
  std::uint32_t claim(WorkerId me, std::uint32_t chunk, std::uint64_t mask,
                      std::vector<PageIndex>& out) const;

  const Segment& segment_;
};

}  // namespace kvtrie
