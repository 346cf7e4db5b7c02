// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Begins and releases of cached prompts by one process, and beside them the stream floor over as
// many neighbouring descriptors of the same segment.
#pragma once

#include <cstdint>
#include <vector>

#include "tools/bench/spread.h"
#include "tools/bench/workload.h"

namespace kvtrie::bench {

enum Candidate : std::uint8_t {
  kFull,
  kFullTokensStay,
  kHalf,
  kMiss,
  kStream,
  kIndexStream,
  kIndexLine,  // anywhere in the index, where nobody knows before
  kCandidates
};

class Lookups {
 public:
  // `prompts`: of one length, cached in the cache. `now`: a clock, in ns.
  Lookups(const Settings& settings, const BenchCache& cache, std::vector<Prompt> prompts,
          double (*now)() = now_ns);

  // ns a page that is compared; of kMiss, ns a call, of kIndexLine, ns a line. Throws when other pages are hit than should
  // be.
  double time(Candidate candidate);
  // Leases all prompts as long as this object lives: nobody evicts them.
  void hold() const;

 private:
  double time_begins(std::uint32_t expected, std::uint32_t flags) const;  // ns a call
  double time_misses();                                                   // ns a call
  double time_stream() const;                                             // ns a page
  double time_index_stream() const;                                       // ns a page
  double time_index_line();                                               // ns a line
  // ns a call of lookup(prompt), for all prompts in an order in which neighbours do not follow each
  // other.
  template <typename Lookup>
  double each_ns(Lookup&& lookup) const;

  const BenchWorker worker_;
  const replay::Observer observer_;
  double (*const now_)();
  std::vector<Prompt> prompts_;
  const std::uint32_t length_;
  std::vector<std::uint32_t> missing_;   // tokens that nobody has cached
  std::uint64_t line_ = 1;               // of the index, where the last look ended
  std::vector<std::uint32_t> in_order_;  // 0, 1, 2 ...
  std::vector<std::vector<std::uint32_t>> buckets_;  // by prompt: where its pages are entered in the index
};

}  // namespace kvtrie::bench
