// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Checks of pages, of the index, and of the free bitmap against them.

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "shm/free_pages.h"
#include "shm/prefix_hash.h"
#include "shm/verify_checks.h"

namespace kvtrie::verify_detail {
namespace {

constexpr std::uint32_t kHeadersAhead = 16;  // before what they name is asked for
constexpr int kReads = 16;  // a page that changes at each of them is passed by
constexpr std::size_t kTwinsMax = 1U << 16;  // a sound segment has as good as none

std::string in_words(Handle handle) {
  if (handle.none()) return "none";
  if (handle.is_page()) {
    return fmt::format("page {} of generation {}", handle.page_index().value, handle.generation());
  }
  if (handle.is_root()) {
    return fmt::format("root {} of generation {}", handle.namespace_id().value,
                       handle.generation());
  }
  return fmt::format("impossible handle {:#x}", handle.raw);
}

}  // namespace

std::optional<PageView> Checks::view(PageIndex page) const {
  const Descriptor& d = segment_.descriptor(page);
  constexpr auto kAcquire = std::memory_order_acquire;
  for (int i = 0; i < kReads; ++i) {
    PageView v;
    v.word = {d.state.load(kAcquire)};
    v.parent = {d.parent.load(kAcquire)};
    v.prefix_hash = d.prefix_hash.load(kAcquire);
    v.scope = d.scope.load(kAcquire);
    v.depth_class = d.depth_class.load(kAcquire);
    v.child_hint = d.child_hint.load(kAcquire);
    v.token_count = d.token_count.load(kAcquire);
    v.publisher = d.publisher.load(kAcquire);
    v.checksum = d.checksum.load(kAcquire);
    if (d.state.load(kAcquire) == v.word.raw) return v;
  }
  return std::nullopt;
}

std::span<const std::uint32_t> Checks::tokens_of(PageIndex page, std::uint16_t count,
                                                 TokenBuffer& into) const {
  const std::size_t tokens = std::min<std::uint32_t>(count, tokens_per_page_);
  const AtomicU64* words = segment_.token_words(page);
  std::size_t i = 0;
  for (; i + 1 < tokens; i += 2) {
    const std::uint64_t two = words[i / 2].load(std::memory_order_acquire);
    into[i] = static_cast<std::uint32_t>(two);
    into[i + 1] = static_cast<std::uint32_t>(two >> 32);
  }
  if (i < tokens)
    into[i] = static_cast<std::uint32_t>(words[i / 2].load(std::memory_order_acquire));
  return {into.data(), tokens};
}

std::uint64_t Checks::content_hash(PageIndex page, const PageView& v) const {
  TokenBuffer tokens;
  return hash_page(v.parent.raw ^ v.token_count, tokens_of(page, v.token_count, tokens));
}

void Checks::prefetch(PageIndex page, const Totals& totals) const {
  const Descriptor& d = segment_.descriptor(page);
  if (const PageIndex behind{page.value + kHeadersAhead}; segment_.has(behind)) {
    __builtin_prefetch(&segment_.descriptor(behind));
    __builtin_prefetch(segment_.token_words(behind));
  }
  if (!StateWord{d.state.load(std::memory_order_relaxed)}.canonical()) return;
  const IndexPlace place = index_.place_of(d.prefix_hash.load(std::memory_order_relaxed));
  for (const std::uint64_t b : place.bucket)
    __builtin_prefetch(&segment_.bucket(b));
  const Handle parent{d.parent.load(std::memory_order_relaxed)};
  if (!parent.is_page() || !segment_.has(parent.page_index())) return;
  __builtin_prefetch(&segment_.descriptor(parent.page_index()));
  __builtin_prefetch(&totals.children[parent.page_index().value]);
}

std::uint8_t Checks::entries_in(std::uint64_t bucket) const {
  unsigned there = 0;
  for (unsigned i = 0; i < kBucketEntries; ++i) {
    const std::uint64_t entry =
        segment_.bucket(bucket).entries[i].load(std::memory_order_relaxed);
    there |= (entry != 0 ? 1U : 0U) << i;
  }
  return static_cast<std::uint8_t>(there);
}

void Checks::check_page(PageIndex page, Wrongs& wrongs) {
  const std::optional<PageView> v = view(page);
  if (!v) return;
  const StateWord word = v->word;
  if (!word.well_formed()) {
    wrongs.add(Invariant::kState, Subject::kPage, page.value, word.raw,
               fmt::format("impossible state word {:#018x}", word.raw));
    return;
  }
  if (word.owned() && !slot_in_use(word.owner())) {
    wrongs.add(Invariant::kOwner, Subject::kPage, page.value, word.raw,
               fmt::format("{} of worker slot {}, which is not in use", name_of(word.state()),
                           word.owner().value));
  }
  if (at_rest_ && (word.state() == PageState::kCondemned || word.state() == PageState::kRetiring)) {
    wrongs.add(Invariant::kUnfinished, Subject::kPage, page.value, word.raw,
               fmt::format("left {}", name_of(word.state())));
  }
  const AtomicU64* words = segment_.token_words(page);
  const std::uint64_t last = (segment_.layout().descriptor_stride - sizeof(Descriptor)) / 8;
  std::uint64_t beyond = tokens_per_page_ % 2 == 0
                             ? 0
                             : words[tokens_per_page_ / 2].load(std::memory_order_relaxed) >> 32;
  for (std::uint64_t i = (tokens_per_page_ + 1) / 2; i < last; ++i) {
    beyond |= words[i].load(std::memory_order_relaxed);
  }
  if (beyond != 0) {
    wrongs.add(Invariant::kUnused, Subject::kPage, page.value, beyond,
               "bytes after its last token are not zero");
  }
  if (word.canonical()) check_canonical(page, *v, wrongs);
}

void Checks::check_canonical(PageIndex page, const PageView& v, Wrongs& wrongs) {
  Wrongs found;
  auto add = [&](Invariant invariant, std::uint64_t key, std::string text) {
    found.add(invariant, Subject::kPage, page.value, key ^ v.word.generation(), std::move(text));
  };
  if (v.token_count == 0 || v.token_count > tokens_per_page_) {
    add(Invariant::kTokens, v.token_count, fmt::format("{} tokens", v.token_count));
  }
  if (v.child_hint > segment_.page_count()) {
    add(Invariant::kDescriptor, v.child_hint, fmt::format("child hint {}", v.child_hint));
  }
  // Slot 0: from a save file.
  if (v.publisher >= segment_.slot_count() || (v.publisher == 0 && v.word.owned())) {
    add(Invariant::kDescriptor, v.publisher,
        fmt::format("published by worker slot {}", v.publisher));
  }
  if (v.depth_class >> 28 != 0) {
    add(Invariant::kUnused, v.depth_class, fmt::format("tier {}", v.depth_class >> 28));
  }
  if (v.checksum != 0 && !segment_.page_checksums()) {
    add(Invariant::kUnused, v.checksum, fmt::format("checksum {:#x}", v.checksum));
  }
  if (depth_in(v.depth_class) == 0) add(Invariant::kDepth, v.depth_class, "depth 0");
  if (v.parent.is_root()) {
    check_root(page, v, found);
  } else {
    check_parent(page, v, found);
  }
  check_index(page, v, found);
  // Canonical in the same life all the time? Then what was seen was wrong; else it was on its way
  // out.
  const StateWord after{segment_.descriptor(page).state.load(std::memory_order_acquire)};
  if (!after.canonical() || after.generation() != v.word.generation()) return;
  for (Wrong& wrong : found.all())
    wrongs.all().push_back(std::move(wrong));
}

void Checks::check_root(PageIndex page, const PageView& v, Wrongs& wrongs) const {
  auto add = [&](Invariant invariant, std::uint64_t key, std::string text) {
    wrongs.add(invariant, Subject::kPage, page.value, key ^ v.word.generation(), std::move(text));
  };
  const Invariant parent_rule =
      v.word.state() == PageState::kPending ? Invariant::kPendingParent : Invariant::kParent;
  const std::uint64_t number = v.parent.raw & kIndexMask;
  if (number >= segment_.namespace_count()) {
    add(parent_rule, v.parent.raw,
        fmt::format("parent is root {}, there is no such namespace", number));
    return;
  }
  const NamespaceRecord& record = segment_.name_space(v.parent.namespace_id());
  const std::uint64_t now = record.root_generation.load(std::memory_order_acquire);
  if (v.parent.generation() > now) {
    add(parent_rule, v.parent.raw,
        fmt::format("parent is {}, the namespace is at {}", in_words(v.parent), now));
  }
  if (v.scope != scope_of(v.parent.namespace_id(), v.parent.generation())) {
    add(Invariant::kScope, v.scope,
        fmt::format("scope {:#x} below {}", v.scope, in_words(v.parent)));
  }
  if (depth_in(v.depth_class) != 1) {
    add(Invariant::kDepth, v.depth_class,
        fmt::format("depth {} below a root", depth_in(v.depth_class)));
  }
  if (v.parent.generation() != now) return;  // flushed: the record says nothing about it any more
  if (record.state.load(std::memory_order_acquire) !=
      static_cast<std::uint32_t>(NamespaceState::kOpen)) {
    add(Invariant::kScope, v.parent.raw, fmt::format("namespace {} is not open", number));
  }
  const std::uint64_t seed = record.hash_seed.load(std::memory_order_acquire);
  TokenBuffer tokens;
  if (hash_page(seed, tokens_of(page, v.token_count, tokens)) != v.prefix_hash &&
      record.root_generation.load(std::memory_order_acquire) == now) {
    add(Invariant::kHash, v.prefix_hash,
        fmt::format("prefix hash {:#018x} is not that of its tokens", v.prefix_hash));
  }
}

void Checks::check_parent(PageIndex page, const PageView& v, Wrongs& wrongs) const {
  auto add = [&](Invariant invariant, std::uint64_t key, std::string text) {
    wrongs.add(invariant, Subject::kPage, page.value, key ^ v.word.generation(), std::move(text));
  };
  const bool pending = v.word.state() == PageState::kPending;
  const Invariant parent_rule = pending ? Invariant::kPendingParent : Invariant::kParent;
  const PageIndex up = v.parent.page_index();
  if (!v.parent.is_page() || !segment_.has(up) || up == page) {
    add(parent_rule, v.parent.raw, fmt::format("parent is {}", in_words(v.parent)));
    return;
  }
  const std::optional<PageView> p = view(up);
  if (!p) return;
  const bool same_life = v.parent.same_life(p->word);
  const bool mine =
      pending && p->word.state() == PageState::kPending && p->word.owner() == v.word.owner();
  if (!same_life || !(p->word.readable() || mine)) {
    // An owner that gives up its Pending pages may be between two of them.
    if (!pending || !excused(v.word.owner())) {
      add(parent_rule, v.parent.raw ^ p->word.raw,
          fmt::format("parent is {}, which is {} in generation {}", in_words(v.parent),
                      name_of(p->word.state()), p->word.generation()));
    }
    return;
  }
  if (v.scope != p->scope) {
    add(Invariant::kScope, v.scope,
        fmt::format("scope {:#x}, its parent's is {:#x}", v.scope, p->scope));
  }
  if (depth_in(v.depth_class) != depth_in(p->depth_class) + 1) {
    add(Invariant::kDepth, v.depth_class,
        fmt::format("depth {}, its parent's is {}", depth_in(v.depth_class),
                    depth_in(p->depth_class)));
  }
  if (p->token_count != tokens_per_page_) {
    wrongs.add(Invariant::kTokens, Subject::kPage, up.value, v.parent.raw,
               fmt::format("{} tokens and a child, page {}", p->token_count, page.value));
  }
  TokenBuffer tokens;
  if (hash_page(p->prefix_hash, tokens_of(page, v.token_count, tokens)) != v.prefix_hash) {
    add(Invariant::kHash, v.prefix_hash,
        fmt::format("prefix hash {:#018x} is not that of its parent and tokens", v.prefix_hash));
  }
}

void Checks::check_index(PageIndex page, const PageView& v, Wrongs& wrongs) {
  const IndexPlace place = index_.place_of(v.prefix_hash);
  unsigned times = 0;
  for (const std::uint64_t b : place.bucket) {
    for (unsigned i = 0; i < kBucketEntries; ++i) {
      const std::uint64_t entry = segment_.bucket(b).entries[i].load(std::memory_order_acquire);
      if ((entry ^ place.tagged) > kIndexMask) continue;
      const PageIndex there = StripeIndex::page_in(entry);
      if (there == page) {
        ++times;
        seen_.entries[b] |= static_cast<std::uint8_t>(1U << i);
      } else if (segment_.has(there)) {
        if (seen_.twins.size() < kTwinsMax) {
          seen_.twins.push_back(std::minmax(page.value, there.value));
        } else {
          seen_.twins_left_out = true;
        }
      }
    }
  }
  if (times == 1 || (times == 0 && pending_unlisted(page, v))) return;
  wrongs.add(Invariant::kIndexed, Subject::kPage, page.value, v.prefix_hash ^ times,
             fmt::format("{} page stands {} times in its buckets", name_of(v.word.state()), times));
}

// Between its Pending and its entry (announce.h): its worker will go on, or it is freed when that is reaped.
bool Checks::pending_unlisted(PageIndex page, const PageView& v) const {
  return v.word.state() == PageState::kPending && excused(v.word.owner()) &&
         index_.occurrences(v.prefix_hash, page) == 0;
}

void Checks::check_bucket(std::uint64_t bucket, Wrongs& wrongs) const {
  for (std::uint32_t i = 0; i < kBucketEntries; ++i) {
    const AtomicU64& slot = segment_.bucket(bucket).entries[i];
    const std::uint64_t entry = slot.load(std::memory_order_acquire);
    if (entry == 0) continue;
    auto add = [&](std::uint64_t key, std::string text) {
      if (slot.load(std::memory_order_acquire) != entry)
        return;  // it is gone: it was on its way out
      wrongs.add(Invariant::kEntry, Subject::kBucket, bucket, entry ^ key,
                 fmt::format("entry {} {:#018x} {}", i, entry, text));
    };
    const PageIndex page{static_cast<std::uint32_t>(entry & kIndexMask)};
    if ((entry & StripeIndex::kValid) == 0 || !segment_.has(page)) {
      add(0, "is impossible");
      continue;
    }
    const std::optional<PageView> v = view(page);
    if (!v) continue;
    if (!v->word.canonical()) {
      if (v->word.state() == PageState::kRetiring && !at_rest_) continue;
      add(v->word.raw,
          fmt::format("is of page {}, which is {}", page.value, name_of(v->word.state())));
      continue;
    }
    const IndexPlace place = index_.place_of(v->prefix_hash);
    if (place.tagged != (entry & ~kIndexMask)) {
      add(v->word.generation(), fmt::format("has not the tag of its page {}", page.value));
    } else if (place.bucket[0] != bucket && place.bucket[1] != bucket) {
      add(v->word.generation(), fmt::format("of page {} is in a wrong bucket", page.value));
    }
  }
}

void Checks::check_chunk(std::uint32_t chunk, Wrongs& wrongs) const {
  const std::uint32_t first = chunk * kChunkPages;
  const std::uint32_t count = std::min(kChunkPages, segment_.page_count() - first);
  const std::uint64_t bits = segment_.free_bits(chunk).load(std::memory_order_acquire);
  if (std::string problem = FreePages(segment_).validate(chunk); !problem.empty())
    wrongs.add(Invariant::kFreeBits, Subject::kChunk, chunk, bits, std::move(problem));
  std::array<StateWord, kChunkPages> words{};
  for (std::uint32_t i = 0; i < count; ++i) {
    words[i] = {segment_.descriptor({first + i}).state.load(std::memory_order_acquire)};
    if (words[i].state() != PageState::kFree || !words[i].well_formed()) continue;
    const std::uint64_t now = segment_.free_bits(chunk).load(std::memory_order_acquire);
    if ((now >> i & 1) != 0) continue;
    bool covered = coordinator_excused();
    for (std::uint32_t w = 0; !at_rest_ && !covered && w < segment_.slot_count(); ++w) {
      covered = segment_.held_count({static_cast<std::uint16_t>(w)}, chunk)
                    .load(std::memory_order_acquire) != 0;
    }
    if (covered) continue;
    wrongs.add(Invariant::kLost, Subject::kPage, first + i, words[i].raw,
               "free, but its bit is clear and nobody will set it");
  }
  // F1, for each owner that stands in this chunk, said with its first page.
  std::uint64_t owned_pages = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    if (words[i].owned() && words[i].owner().value < segment_.slot_count())
      owned_pages |= std::uint64_t{1} << i;
  }
  while (owned_pages != 0) {
    const auto i = static_cast<std::uint32_t>(std::countr_zero(owned_pages));
    const WorkerId owner = words[i].owner();
    std::uint64_t mask = 0;
    for (std::uint32_t j = i; j < count; ++j) {
      if (words[j].owned() && words[j].owner() == owner) mask |= std::uint64_t{1} << j;
    }
    owned_pages &= ~mask;
    const auto owned = static_cast<unsigned>(std::popcount(mask));
    const unsigned held = segment_.held_count(owner, chunk).load(std::memory_order_acquire);
    if (held >= owned) continue;
    wrongs.add(Invariant::kHeld, Subject::kPage, first + i, mask ^ held,
               fmt::format("worker {} owns {} pages of chunk {}, its held count is {}", owner.value,
                           owned, chunk, held));
  }
}

void Checks::check_pair(PageIndex a, PageIndex b, Wrongs& wrongs) const {
  const std::optional<PageView> va = view(a);
  const std::optional<PageView> vb = view(b);
  if (!va || !vb || !va->word.canonical() || !vb->word.canonical()) return;
  if (va->parent != vb->parent || va->token_count != vb->token_count) return;
  TokenBuffer of_a;
  TokenBuffer of_b;
  if (!std::ranges::equal(tokens_of(a, va->token_count, of_a), tokens_of(b, vb->token_count, of_b)))
    return;
  // Who died (or its thread did) before its entry was not found by the next announcer of the key.
  if (pending_unlisted(a, *va) || pending_unlisted(b, *vb)) return;
  // Both in their lives at once: `a` was before `b` was read, and is after.
  const StateWord after{segment_.descriptor(a).state.load(std::memory_order_acquire)};
  if (!after.canonical() || after.generation() != va->word.generation()) return;
  wrongs.add(Invariant::kDuplicate, Subject::kPage, b.value,
             va->word.generation() ^ vb->word.generation() << 20,
             fmt::format("has the parent and tokens of page {}", a.value));
}

}  // namespace kvtrie::verify_detail
