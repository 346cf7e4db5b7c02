// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <thread>

#include "shm/verify_checks.h"

namespace kvtrie {
namespace {

using verify_detail::Checks;
using verify_detail::PageView;
using verify_detail::Totals;
using verify_detail::Unit;
using verify_detail::UnitKind;
using verify_detail::Wrong;
using verify_detail::Wrongs;

// A segment of garbage has millions of wrong units; these are enough to say so.
constexpr std::size_t kSuspectsMax = 4096;
constexpr int kLooksAtOnce = 4;  // before a unit is a suspect
// Hides the latency of a line from memory behind the looks at this many pages.
constexpr std::uint32_t kPagesAhead = 16;

using Pair = std::pair<std::uint32_t, std::uint32_t>;

struct Suspect {
  Unit unit;
  std::vector<Wrong> wrongs;
};

class Verification {
 public:
  Verification(const Segment& segment, const VerifyOptions& options)
      : segment_(segment), options_(options), checks_(segment, options) {
    totals_.children.resize(segment.page_count());
  }

  VerifyReport run() {
    const Segment& s = segment_;
    look({UnitKind::kSuperblock});
    look({UnitKind::kPadding});
    look_at_all(UnitKind::kWorker, s.slot_count());
    look_at_all(UnitKind::kNamespace, s.namespace_count());
    look_at_all(UnitKind::kStripe, s.geometry().stripes);
    look_at_pages();
    look_at_buckets();
    look_for_equal_pages();
    look_for_equal_namespaces();
    if (!options_.at_rest) settle();
    for (Suspect& suspect : suspects_) {
      for (Wrong& wrong : suspect.wrongs)
        report(std::move(wrong.finding));
    }
    if (!suspects_.empty()) report_.findings_total += overflow_;
    check_counters();
    report_.pages = totals_.pages;
    report_.pages_impossible = totals_.pages_impossible;
    report_.leases = totals_.leases;
    report_.index_entries = totals_.index_entries;
    return std::move(report_);
  }

 private:
  void look_at_all(UnitKind kind, std::uint64_t count) {
    for (std::uint64_t i = 0; i < count; ++i)
      look({kind, i});
  }

  // A chunk after its pages, while their lines are near.
  void look_at_pages() {
    const std::uint32_t pages = segment_.page_count();
    for (std::uint32_t i = 0; i < pages; ++i) {
      if (pages - i > kPagesAhead) checks_.prefetch({i + kPagesAhead}, totals_);
      look({UnitKind::kPage, i});
      if ((i + 1) % kChunkPages == 0 || i + 1 == pages) look({UnitKind::kChunk, i / kChunkPages});
    }
  }

  // Entries that were seen from their page are where they belong.
  void look_at_buckets() {
    for (std::uint64_t b = 0; b < segment_.layout().bucket_count; ++b) {
      const std::uint8_t there = checks_.entries_in(b);
      totals_.index_entries += static_cast<std::uint64_t>(std::popcount(there));
      if ((there & ~checks_.seen().entries[b]) != 0) look({UnitKind::kBucket, b});
    }
  }

  void look(const Unit& unit) {
    checks_.count(unit, totals_);
    Wrongs wrongs;
    for (int i = 0; i < (options_.at_rest ? 1 : kLooksAtOnce); ++i) {
      wrongs.clear();
      checks_.check(unit, wrongs);
      if (wrongs.empty()) return;
    }
    if (suspects_.size() < kSuspectsMax) {
      suspects_.push_back({unit, std::move(wrongs.all())});
    } else {
      overflow_ += wrongs.all().size();
    }
  }

  // Looks at the suspects again and again; keeps what stays wrong in the same words.
  void settle() {
    report_.rechecked = suspects_.size();
    unsigned slept_ms = 0;
    for (unsigned pause_ms = 1; slept_ms < options_.settle_ms && !suspects_.empty();
         pause_ms *= 2) {
      pause_ms = std::min(pause_ms, options_.settle_ms - slept_ms);
      std::this_thread::sleep_for(std::chrono::milliseconds(pause_ms));
      slept_ms += pause_ms;
      for (Suspect& suspect : suspects_) {
        Wrongs now;
        checks_.check(suspect.unit, now);
        std::erase_if(suspect.wrongs, [&](const Wrong& before) {
          return std::ranges::find(now.all(), before.key, &Wrong::key) == now.all().end();
        });
      }
      std::erase_if(suspects_, [](const Suspect& suspect) { return suspect.wrongs.empty(); });
    }
  }

  void report(Finding finding) {
    if (report_.findings_total++ < options_.findings_max) {
      report_.findings.push_back(std::move(finding));
    }
  }

  // Pages of one parent and the same tokens have one prefix hash, so their entries have one tag and
  // stand in the same buckets, where they saw each other. That holds for pages whose hash and entry
  // are right; if any page looked wrong, all contents are compared. (The hash of a page just below
  // a flushed root cannot be known. It is never matched.)
  void look_for_equal_pages() {
    std::vector<Pair> pairs = checks_.seen().twins;
    const bool page_wrong = std::ranges::any_of(suspects_, [](const Suspect& suspect) {
      return suspect.unit.kind == UnitKind::kPage;
    });
    if (page_wrong || overflow_ != 0 || checks_.seen().twins_left_out) add_equal_contents(pairs);
    std::ranges::sort(pairs);
    pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
    for (const auto& [a, b] : pairs)
      look({UnitKind::kPagePair, a, b});
  }

  // Pairs of equal content are neighbours after sorting by a hash of it; check_pair compares them
  // in full.
  void add_equal_contents(std::vector<Pair>& pairs) const {
    std::vector<std::pair<std::uint64_t, std::uint32_t>> contents;  // hash, page
    for (std::uint32_t i = 0; i < segment_.page_count(); ++i) {
      const std::optional<PageView> v = checks_.view({i});
      if (v && v->word.canonical()) contents.emplace_back(checks_.content_hash({i}, *v), i);
    }
    std::ranges::sort(contents);
    for (std::size_t i = 1; i < contents.size(); ++i) {
      if (contents[i].first == contents[i - 1].first)
        pairs.emplace_back(contents[i - 1].second, contents[i].second);
    }
  }

  void look_for_equal_namespaces() {
    struct Fields {
      std::uint64_t hash;
      std::uint32_t id;
    };
    std::vector<Fields> open;
    for (std::uint32_t i = 0; i < segment_.namespace_count(); ++i) {
      const NamespaceRecord& record = segment_.name_space({static_cast<std::uint16_t>(i)});
      if (record.state.load(std::memory_order_acquire) ==
          static_cast<std::uint32_t>(NamespaceState::kOpen)) {
        open.push_back({record.fields_hash.load(std::memory_order_relaxed), i});
      }
    }
    std::ranges::sort(open, [](const Fields& a, const Fields& b) {
      return a.hash != b.hash ? a.hash < b.hash : a.id < b.id;
    });
    for (std::size_t i = 1; i < open.size(); ++i) {
      if (open[i].hash == open[i - 1].hash)
        look({UnitKind::kNamespacePair, open[i - 1].id, open[i].id});
    }
  }

  // Each readable child of a page raised its counter before it was published (rule 5), the counter
  // is never lowered, and it belongs to the page index, over all its lives. So it is never below
  // the readable children counted before it was read. (Nothing can be said of Pending children:
  // their worker may be about to count them. 2^32 announcements below one page would wrap it.)
  std::vector<std::uint32_t> pages_with_low_counters() const {
    std::vector<std::uint32_t> low;
    for (std::uint32_t i = 0; i < segment_.page_count(); ++i) {
      if (totals_.children[i] > segment_.announce_counter({i}).load(std::memory_order_acquire))
        low.push_back(i);
    }
    return low;
  }

  void check_counters() {
    std::vector<std::uint32_t> low = pages_with_low_counters();
    if (!options_.at_rest && !low.empty()) {
      Totals again;
      again.children.resize(segment_.page_count());
      for (std::uint32_t i = 0; i < segment_.page_count(); ++i)
        checks_.count({UnitKind::kPage, i}, again);
      totals_.children = std::move(again.children);
      const std::vector<std::uint32_t> still = pages_with_low_counters();
      std::erase_if(low,
                    [&](std::uint32_t page) { return !std::ranges::binary_search(still, page); });
    }
    for (const std::uint32_t page : low) {
      report({Invariant::kCounter, Subject::kPage, page,
              fmt::format("announce counter {} is below its readable children",
                          segment_.announce_counter({page}).load(std::memory_order_relaxed))});
    }
  }

  const Segment& segment_;
  const VerifyOptions options_;
  Checks checks_;
  Totals totals_;
  VerifyReport report_;
  std::vector<Suspect> suspects_;
  std::uint64_t overflow_ = 0;
};

}  // namespace

const char* name_of(Invariant invariant) {
  static constexpr const char* kNames[] = {
#define KVTRIE_X(constant, name, meaning) name,
      KVTRIE_INVARIANTS(KVTRIE_X)
#undef KVTRIE_X
  };
  return kNames[static_cast<std::uint8_t>(invariant)];
}

const char* meaning_of(Invariant invariant) {
  static constexpr const char* kMeanings[] = {
#define KVTRIE_X(constant, name, meaning) meaning,
      KVTRIE_INVARIANTS(KVTRIE_X)
#undef KVTRIE_X
  };
  return kMeanings[static_cast<std::uint8_t>(invariant)];
}

const char* name_of(Subject subject) {
  static constexpr const char* kNames[] = {"offset", "page",  "bucket",    "chunk",
                                           "worker", "lease", "namespace", "stripe"};
  return kNames[static_cast<std::uint8_t>(subject)];
}

std::string to_string(const Finding& finding) {
  return fmt::format("{} {} {}: {}", name_of(finding.invariant), name_of(finding.subject),
                     finding.number, finding.text);
}

VerifyReport verify(const Segment& segment, const VerifyOptions& options) {
  return Verification(segment, options).run();
}

}  // namespace kvtrie
