// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/lookups.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "shm/stripe_index.h"
#include "tools/bench/floors.h"
#include "tools/bench/prompts.h"

namespace kvtrie::bench {
namespace {

constexpr std::uint32_t kCallsABlock = 256;  // at least
constexpr std::uint32_t kMissesABlock = 1024;
// So much that reading the clock costs nothing.
constexpr std::uint32_t kMissesABatch = 32;
constexpr std::uint32_t kPagesABatch = 1024;
constexpr std::size_t kStride = 163;  // prime

void expect_hit(std::uint32_t hit, std::uint32_t expected) {
  if (hit != expected)
    throw std::runtime_error("a lookup hit other pages than it should: the run is void");
}

}  // namespace

Lookups::Lookups(const Settings& settings, const BenchCache& cache, std::vector<Prompt> prompts,
                 double (*now)())
    : worker_(settings, cache.own(), cache.model()),
      observer_(cache.own().name()),
      now_(now),
      prompts_(std::move(prompts)),
      length_(static_cast<std::uint32_t>(prompts_.front().pages.size())),
      missing_(random_tokens(~std::uint64_t{7}, prompts_.front().tokens.size())),
      in_order_(length_) {
  std::iota(in_order_.begin(), in_order_.end(), 0U);
  const StripeIndex index(observer_.segment());
  for (const Prompt& prompt : prompts_) {
    std::vector<std::uint32_t>& buckets = buckets_.emplace_back();
    for (const std::uint32_t page : prompt.pages) {
      const IndexPlace place = index.place_of(observer_.segment().descriptor({page}).prefix_hash.load());
      buckets.push_back(static_cast<std::uint32_t>(place.bucket[index.first_candidate(place, 0) == page ? 0 : 1]));
    }
  }
}

double Lookups::time(Candidate candidate) {
  switch (candidate) {
    case kFull:
      return time_begins(length_, 0) / length_;
    case kFullTokensStay:
      return time_begins(length_, KVTRIE_TOKENS_STAY) / length_;
    case kHalf: {
      // One token decides.
      const auto change = [&] {
        for (Prompt& prompt : prompts_)
          prompt.tokens[std::size_t{length_ / 2} * kTokensPerPage] ^= 0x5555'5555;
      };
      change();
      const double ns = time_begins(length_ / 2, 0);
      change();
      return ns / (length_ / 2.0);
    }
    case kMiss:
      return time_misses();
    case kStream:
      return time_stream();
    case kIndexStream:
      return time_index_stream();
    case kIndexLine:
      return time_index_line();
    case kCandidates:
      break;
  }
  return 0;
}

void Lookups::hold() const {
  for (const Prompt& prompt : prompts_) {
    std::uint32_t cached = 0;
    worker_.begin(prompt.tokens, cached);  // detaching releases it
    expect_hit(cached, length_);
  }
}

template <typename Lookup>
double Lookups::each_ns(Lookup&& lookup) const {
  const std::size_t calls = std::max<std::size_t>(prompts_.size(), kCallsABlock * 16 / length_);
  const std::size_t batch = std::max<std::size_t>(kPagesABatch / length_, 1);
  return call_ns(
      calls, batch, [&](std::size_t i) { lookup(i * kStride, prompts_[i * kStride % prompts_.size()]); }, now_);
}

double Lookups::time_begins(std::uint32_t expected, std::uint32_t flags) const {
  return each_ns([&](std::size_t, const Prompt& prompt) {
    expect_hit(worker_.begin_and_release(prompt.tokens, flags), expected);
  });
}

double Lookups::time_misses() {
  return call_ns(
      kMissesABlock, kMissesABatch,
      [&](std::size_t) {
        missing_[0] += 0x9E37'79B9;
        expect_hit(worker_.begin_and_release(missing_, KVTRIE_TOKENS_STAY), 0);
      },
      now_);
}

// Each says where the next one is.
double Lookups::time_index_line() {
  const Segment& segment = observer_.segment();
  const std::uint64_t lines = segment.layout().bucket_count;
  return call_ns(
      kMissesABlock, kMissesABatch,
      [&](std::size_t i) {
        const std::uint64_t entry = segment.bucket(line_ % lines).entries[0].load(std::memory_order_relaxed);
        line_ = replay::mix64(line_ + (entry & 1) + i);
      },
      now_);
}

double Lookups::time_index_stream() const {
  const Segment& segment = observer_.segment();
  std::uint64_t different = 0;
  const double ns = each_ns([&](std::size_t, const Prompt& prompt) {
    different |= stream_by_index(reinterpret_cast<const std::byte*>(&segment.descriptor({0})), prompt.pages,
                                 prompt.tokens.data(), reinterpret_cast<const std::byte*>(&segment.bucket(0)),
                                 buckets_[static_cast<std::size_t>(&prompt - prompts_.data())]);
  });
  if (different != 0) throw std::runtime_error("the floor compared other pages than it should: the run is void");
  return ns / length_;
}

double Lookups::time_stream() const {
  const Segment& segment = observer_.segment();
  const std::size_t places = segment.page_count() / length_;
  return each_ns([&](std::size_t place, const Prompt& prompt) {
           const PageIndex first{static_cast<std::uint32_t>(place % places * length_)};
           keep(stream(reinterpret_cast<const std::byte*>(&segment.descriptor(first)), in_order_,
                       prompt.tokens.data()));
         }) /
         length_;
}

}  // namespace kvtrie::bench
