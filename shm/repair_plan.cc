// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/repair_plan.h"

#include <algorithm>
#include <optional>
#include <span>
#include <string_view>

#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/prefix_hash.h"
#include "shm/stripe_index.h"

namespace kvtrie {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

using Tokens = std::array<std::uint32_t, kTokensPerPageMax>;

// What decides about a page, read once.
struct Page {
  StateWord word;
  Handle parent;
  std::uint64_t hash = 0;
  std::uint64_t checksum = 0;
  std::uint32_t scope = 0;
  std::uint32_t depth = 0;
  std::uint32_t token_count = 0;
};

class Planner {
 public:
  Planner(const Segment& segment, const ChecksumFits& checksum_fits)
      : segment_(segment), index_(segment), checksum_fits_(checksum_fits) {}

  RepairPlan run() {
    plan_namespaces();
    plan_.fate.assign(segment_.page_count(), PageFate::kFree);
    plan_.entries.assign(segment_.layout().bucket_count * kBucketEntries, 0);
    for (const std::uint32_t page : pages_parents_first())
      plan_.fate[page] = judge({page});
    sum_up();
    plan_pins();
    return std::move(plan_);
  }

 private:
  Page read(PageIndex page) const {
    const Descriptor& d = segment_.descriptor(page);
    return {{d.state.load(kRelaxed)},     {d.parent.load(kRelaxed)},
            d.prefix_hash.load(kRelaxed), d.checksum.load(kRelaxed),
            d.scope.load(kRelaxed),       depth_in(d.depth_class.load(kRelaxed)),
            d.token_count.load(kRelaxed)};
  }

  bool token_count_possible(const Page& p) const {
    return p.token_count != 0 && p.token_count <= segment_.tokens_per_page();
  }

  // Requires token_count_possible.
  std::span<const std::uint32_t> tokens_of(PageIndex page, const Page& p, Tokens& into) const {
    const AtomicU64* words = segment_.token_words(page);
    for (std::uint32_t i = 0; i < p.token_count; ++i)
      into[i] = static_cast<std::uint32_t>(words[i / 2].load(kRelaxed) >> (i % 2 * 32));
    return {into.data(), p.token_count};
  }

  // --- namespaces

  void plan_namespaces() {
    plan_.namespaces.resize(segment_.namespace_count());
    std::vector<std::string_view> fields;
    for (std::uint32_t i = 0; i < segment_.namespace_count(); ++i) {
      const NamespaceId id{static_cast<std::uint16_t>(i)};
      const NamespaceRecord& record = segment_.name_space(id);
      NamespacePlan& plan = plan_.namespaces[i];
      plan.root_generation = record.root_generation.load(kRelaxed);
      const bool named = record.state.load(kRelaxed) != static_cast<std::uint32_t>(NamespaceState::kFree);
      if (std::string problem = NamespaceTable(segment_).validate(id); !problem.empty()) {
        plan.why = named ? std::move(problem) : "";
      } else if (named) {
        const std::uint32_t bytes = record.fields_bytes.load(kRelaxed);
        const std::string_view mine(record.fields, std::min<std::size_t>(bytes, kNamespaceDescriptorMax));
        plan.kept = std::ranges::find(fields, mine) == fields.end();
        if (!plan.kept) plan.why = "another namespace has its fields";
        fields.push_back(mine);
      }
    }
    for (std::uint32_t i = 0; i < segment_.page_count(); ++i)
      look_for_a_later_root({i});
    for (NamespacePlan& plan : plan_.namespaces) {
      // The next one opened or flushed here needs room for generations of its own.
      if (plan.kept || plan.root_generation <= kGenerationMask >> (kGenerationShift + 1)) continue;
      plan.root_generation = 0;
    }
  }

  // A page just below a root of a later generation, sound in itself: that generation was, so the record went back.
  void look_for_a_later_root(PageIndex page) {
    const Page p = read(page);
    if (!p.word.well_formed() || !p.word.readable() || !p.parent.is_root()) return;
    const NamespaceId id = p.parent.namespace_id();
    if ((p.parent.raw & kIndexMask) >= plan_.namespaces.size()) return;
    NamespacePlan& plan = plan_.namespaces[id.value];
    const std::uint64_t later = p.parent.generation();
    if (!plan.kept || later <= plan.root_generation - (plan.why.empty() ? 0 : 1)) return;
    if (p.scope != scope_of(id, later) || p.depth != 1 || !token_count_possible(p)) return;
    Tokens tokens;
    const std::uint64_t seed = segment_.name_space(id).hash_seed.load(kRelaxed);
    if (hash_page(seed, tokens_of(page, p, tokens)) != p.hash) return;
    plan.root_generation = later + 1;
    plan.why = "its root generation went back: what was flushed could come back";
    if (plan.root_generation <= kGenerationMask >> kGenerationShift) return;
    plan.kept = false;  // there is no generation left
    plan.root_generation = 0;
  }

  // --- pages

  // Readable pages by depth; of one depth, those in the index before the others. The fate of all others is said at
  // once.
  std::vector<std::uint32_t> pages_parents_first() {
    struct Place {
      std::uint64_t order;  // depth | not in the index
      std::uint32_t page;
    };
    std::vector<Place> places;
    for (std::uint32_t i = 0; i < segment_.page_count(); ++i) {
      const Page p = read({i});
      if (!p.word.well_formed()) {
        plan_.fate[i] = PageFate::kState;
      } else if (p.word.readable()) {
        plan_.fate[i] = PageFate::kBelow;  // until it is decided: nothing hangs on it before
        places.push_back({std::uint64_t{p.depth} << 1 | (entry_of({i}, p.hash) ? 0U : 1U), i});
      } else if (p.word.state() != PageState::kFree) {
        plan_.fate[i] = PageFate::kUnfinished;
      }
    }
    std::ranges::sort(places, [](const Place& a, const Place& b) {
      return a.order != b.order ? a.order < b.order : a.page < b.page;
    });
    std::vector<std::uint32_t> pages(places.size());
    std::ranges::transform(places, pages.begin(), &Place::page);
    return pages;
  }

  PageFate judge(PageIndex page) {
    const Page p = read(page);
    if (!p.word.well_formed() || !p.word.readable()) return PageFate::kState;  // changed just now
    if (!token_count_possible(p)) return PageFate::kTokens;
    const NamespaceId id = namespace_in(p.scope);
    if (id.value >= plan_.namespaces.size() || !plan_.namespaces[id.value].kept) return PageFate::kNamespace;
    const std::uint64_t generation = plan_.namespaces[id.value].root_generation;
    if (p.scope != scope_of(id, generation)) return scope_fits_parent(p) ? PageFate::kFlushed : PageFate::kScope;
    std::uint64_t hash_above = 0;
    if (const PageFate fate = look_up(page, p, Handle::root(id, generation), hash_above); fate != PageFate::kKept)
      return fate;
    Tokens buffer;
    const auto tokens = tokens_of(page, p, buffer);
    if (hash_page(hash_above, tokens) != p.hash) return PageFate::kHash;
    if (p.checksum != 0 && segment_.page_checksums() && checksum_fits_) {
      ++plan_.checksums_compared;
      if (!checksum_fits_(page, p.checksum)) return PageFate::kChecksum;
    }
    return enter(page, p, tokens);
  }

  bool scope_fits_parent(const Page& p) const {
    if (p.parent.is_root()) return p.scope == scope_of(p.parent.namespace_id(), p.parent.generation());
    return p.parent.is_page() && segment_.has(p.parent.page_index()) &&
           segment_.descriptor(p.parent.page_index()).scope.load(kRelaxed) == p.scope;
  }

  // Whether it may hang where it says; the hash of that.
  PageFate look_up(PageIndex page, const Page& p, Handle root, std::uint64_t& hash_above) const {
    if (p.parent.is_root()) {
      if (p.parent != root) return PageFate::kParent;
      hash_above = segment_.name_space(root.namespace_id()).hash_seed.load(kRelaxed);
      return p.depth == 1 ? PageFate::kKept : PageFate::kDepth;
    }
    const PageIndex up = p.parent.page_index();
    if (!p.parent.is_page() || !segment_.has(up) || up == page) return PageFate::kParent;
    const Page above = read(up);
    if (!above.word.well_formed()) return PageFate::kBelow;
    if (!above.word.readable() || !p.parent.same_life(above.word)) return PageFate::kParent;
    if (p.depth != above.depth + 1) return plan_.keeps(up) ? PageFate::kDepth : PageFate::kBelow;
    if (!plan_.keeps(up)) return PageFate::kBelow;
    if (p.scope != above.scope) return PageFate::kScope;
    if (above.token_count != segment_.tokens_per_page()) return PageFate::kParent;
    hash_above = above.hash;
    return PageFate::kKept;
  }

  // --- the index

  // Where the page stands in the old one: the number of the entry.
  std::optional<std::uint64_t> entry_of(PageIndex page, std::uint64_t hash) const {
    const IndexPlace place = index_.place_of(hash);
    for (const std::uint64_t bucket : place.bucket) {
      for (std::uint32_t i = 0; i < kBucketEntries; ++i) {
        if (segment_.bucket(bucket).entries[i].load(kRelaxed) == (place.tagged | page.value))
          return bucket * kBucketEntries + i;
      }
    }
    return std::nullopt;
  }

  PageFate enter(PageIndex page, const Page& p, std::span<const std::uint32_t> tokens) {
    const IndexPlace place = index_.place_of(p.hash);
    for (const std::uint64_t bucket : place.bucket) {
      for (std::uint32_t i = 0; i < kBucketEntries; ++i) {
        const std::uint64_t entry = plan_.entries[bucket * kBucketEntries + i];
        if ((entry & ~kIndexMask) != place.tagged) continue;
        const PageIndex there = StripeIndex::page_in(entry);
        if (there != page && PageTable(segment_).matches(there, p.parent, tokens)) return PageFate::kDuplicate;
      }
    }
    std::optional<std::uint64_t> at = entry_of(page, p.hash);
    const std::uint64_t free_bits = segment_.free_bits(page.value / kChunkPages).load(kRelaxed);
    if (!at && (free_bits >> page.value % kChunkPages & 1) != 0) return PageFate::kSaysFree;
    if (!at || plan_.entries[*at] != 0) at = vacancy(place);
    if (!at) return PageFate::kIndexFull;
    plan_.entries[*at] = place.tagged | page.value;
    return PageFate::kKept;
  }

  // Rather one that was empty before, too: others may come to where they were.
  std::optional<std::uint64_t> vacancy(const IndexPlace& place) const {
    std::optional<std::uint64_t> taken_before;
    for (const std::uint64_t bucket : place.bucket) {
      for (std::uint32_t i = 0; i < kBucketEntries; ++i) {
        const std::uint64_t at = bucket * kBucketEntries + i;
        if (plan_.entries[at] != 0) continue;
        if (segment_.bucket(bucket).entries[i].load(kRelaxed) == 0) return at;
        if (!taken_before) taken_before = at;
      }
    }
    return taken_before;
  }

  // --- the rest

  void sum_up() {
    for (std::uint32_t i = 0; i < segment_.page_count(); ++i) {
      const PageFate fate = plan_.fate[i];
      const auto number = static_cast<std::size_t>(fate);
      ++plan_.pages[number];
      if (plan_.examples[number].size() < RepairPlan::kExamples) plan_.examples[number].push_back(i);
      if (fate != PageFate::kKept && !is_loss(fate)) continue;
      const NamespaceId id = namespace_in(segment_.descriptor({i}).scope.load(kRelaxed));
      if (id.value >= plan_.namespaces.size()) continue;
      NamespacePlan& of = plan_.namespaces[id.value];
      ++(fate == PageFate::kKept ? of.pages_kept : of.pages_lost);
      if (!of.kept && of.why.empty()) of.why = "its record says that it is closed";
    }
  }

  void plan_pins() {
    for (Pin& pin : PinTable(segment_).list()) {
      const bool there = pin.page.is_page() && segment_.has(pin.page.page_index());
      const bool kept =
          there && plan_.keeps(pin.page.page_index()) && pin.page.same_life(read(pin.page.page_index()).word);
      plan_.pins.push_back({std::move(pin), kept});
    }
  }

  const Segment& segment_;
  const StripeIndex index_;
  const ChecksumFits& checksum_fits_;
  RepairPlan plan_;
};

}  // namespace

const char* name_of(PageFate fate) {
  static constexpr const char* kNames[] = {
#define KVTRIE_X(constant, name, why) name,
      KVTRIE_PAGE_FATES(KVTRIE_X)
#undef KVTRIE_X
  };
  return kNames[static_cast<std::size_t>(fate)];
}

const char* why_of(PageFate fate) {
  static constexpr const char* kWhy[] = {
#define KVTRIE_X(constant, name, why) why,
      KVTRIE_PAGE_FATES(KVTRIE_X)
#undef KVTRIE_X
  };
  return kWhy[static_cast<std::size_t>(fate)];
}

std::uint64_t RepairPlan::pages_lost() const {
  std::uint64_t lost = 0;
  for (std::size_t i = 0; i < kPageFates; ++i)
    lost += is_loss(static_cast<PageFate>(i)) ? pages[i] : 0;
  return lost;
}

RepairPlan plan_repair(const Segment& segment, const ChecksumFits& checksum_fits) {
  return Planner(segment, checksum_fits).run();
}

}  // namespace kvtrie
