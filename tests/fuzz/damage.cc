// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//

#include "tests/fuzz/damage.h"

#include <atomic>
#include <cstddef>

#include "shm/ids.h"
#include "shm/stripe_index.h"

namespace kvtrie::fuzz {
namespace {

AtomicU64& word_at(const Segment& segment, std::uint64_t word) {
  return reinterpret_cast<AtomicU64*>(segment.data())[word];
}

template <typename Field>
std::uint64_t word_of(const Segment& segment, const Field& field) {
  const auto* const at = reinterpret_cast<const std::byte*>(&field);
  return static_cast<std::uint64_t>(at - segment.data()) / 8;
}

PageIndex some_page(Input& input, const Segment& segment) {
  // Most are Free: those at the start are not.
  return {input.below(input.byte() % 2 == 0 ? 24 : segment.page_count())};
}

void note_descriptor(std::uint64_t in_descriptor, std::uint64_t value, Damage& damage) {
  switch (in_descriptor) {
    case offsetof(Descriptor, state) / 8:
      damage.words = true;
      damage.states |= (value & 0xF) < kPageStates;
      break;
    case offsetof(Descriptor, parent) / 8:
      damage.links = true;
      damage.parents |= Handle{value}.is_page() || Handle{value}.is_root();
      break;
    case offsetof(Descriptor, scope) / 8:
      damage.depths = true;
      break;
    case offsetof(Descriptor, child_hint) / 8:
      damage.tokens = true;  // with the token count
      break;
    default:
      damage.tokens |= in_descriptor >= sizeof(Descriptor) / 8;
  }
}

void note(const Segment& segment, std::uint64_t word, std::uint64_t value, Damage& damage) {
  for (std::uint32_t i = 0; i < segment.layout().area_count; ++i) {
    const AreaEntry& area = segment.layout().areas[i];
    const std::uint64_t first = area.offset / 8;
    if (word < first || word >= first + area.stride * area.count / 8) continue;
    const std::uint64_t inside = (word - first) % (area.stride / 8 == 0 ? 1 : area.stride / 8);
    switch (static_cast<AreaKind>(area.kind)) {
      case AreaKind::kDescriptors:
        note_descriptor(inside, value, damage);
        break;
      case AreaKind::kLeases:
        damage.leases = true;
        break;
      case AreaKind::kWorkers:
        damage.slots |= inside < offsetof(WorkerRecord, name) / 8;
        damage.leases |= inside == offsetof(WorkerRecord, leases_high_water) / 8;
        break;
      case AreaKind::kNamespaces:
        damage.roots |= inside < offsetof(NamespaceRecord, reserve_pages) / 8;
        break;
      default:
        break;
    }
  }
}

// The word of one structure, more often of those that say where to go next.
std::uint64_t some_word(Input& input, const Segment& segment) {
  const PageIndex page = some_page(input, segment);
  const WorkerId worker{static_cast<std::uint16_t>(input.below(segment.slot_count()))};
  switch (input.below(16)) {
    case 0:
      return word_of(segment, segment.descriptor(page).state);
    case 1:
      return word_of(segment, segment.descriptor(page).parent);
    case 2:
    case 3:
      return word_of(segment, segment.descriptor(page)) + input.below(8);
    case 4:
      return word_of(segment, segment.descriptor(page).child_hint);
    case 5:
      return word_of(segment, segment.leases(worker)[input.below(segment.geometry().leases_per_worker)]) +
             input.byte() % 2;
    case 6:
      return word_of(segment, segment.worker(worker)) + input.below(24);
    case 7:
      return word_of(segment,
                     segment.name_space({static_cast<std::uint16_t>(input.below(segment.namespace_count()))})) +
             input.below(128);
    case 8:
      return word_of(segment, segment.stripe(input.below(segment.geometry().stripes))) + input.below(8);
    case 9:
    case 10:
      return word_of(segment,
                     segment.bucket(input.below(static_cast<std::uint32_t>(segment.layout().bucket_count)))) +
             input.below(8);
    case 11:
      return word_of(segment, segment.free_bits(input.below(segment.chunk_count()))) + input.byte() % 2;
    case 12:
      return word_of(segment, segment.superblock().poison_state) + input.below(36);
    case 13:
      if (input.byte() % 4 == 0)
        return input.below(offsetof(Superblock, constant_checksum) / 8);  // constant, once opened
      return word_of(segment, segment.pins()[input.below(segment.geometry().leases_per_worker)]) + input.below(8);
    default: {  // any area, evenly, small ones too
      const AreaEntry& area = segment.layout().areas[input.below(segment.layout().area_count)];
      return area.offset / 8 + input.below(static_cast<std::uint32_t>(area.stride * area.count / 8));
    }
  }
}

std::uint64_t changed(Input& input, const Segment& segment, std::uint64_t word) {
  const std::uint64_t before = word_at(segment, word).load(std::memory_order_relaxed);
  constexpr std::uint64_t kNextGeneration = std::uint64_t{1} << kGenerationShift;
  switch (input.below(8)) {
    case 0:
      return before ^ (std::uint64_t{1} << input.below(64));
    case 1:
      return before + 1;
    case 2:
      return before - 1;
    case 3:
      return before + kNextGeneration;
    case 4:
      return before - kNextGeneration;  // back in time
    case 5:
      return (before & ~(std::uint64_t{0xFF} << 8 * input.below(8))) | std::uint64_t{input.byte()}
                                                                           << 8 * input.below(8);
    case 6:  // what stands in such a place elsewhere
      return word_at(segment, some_word(input, segment)).load(std::memory_order_relaxed);
    default:
      return plausible_word(input, segment);
  }
}

}  // namespace

std::uint64_t plausible_word(Input& input, const Segment& segment) {
  const PageIndex page =
      input.byte() % 8 == 0 ? PageIndex{input.take<std::uint32_t>() & 0xFF'FFFF} : some_page(input, segment);
  const std::uint64_t generation = input.below(4);
  const WorkerId worker{static_cast<std::uint16_t>(input.below(6))};
  switch (input.below(12)) {
    case 0:
      return 0;
    case 1:
      return ~std::uint64_t{0};
    case 2:
      return StateWord::make(static_cast<PageState>(input.below(8)), generation, worker).raw;
    case 3:
      return Handle::page(page, generation).raw;
    case 4:
      return Handle::page(page, StateWord{segment.has(page) ? segment.descriptor(page).state.load() : 0}).raw;
    case 5:
      return Handle::root({static_cast<std::uint16_t>(input.below(5))}, generation).raw;
    case 6:
      return StripeIndex::kValid | input.take<std::uint64_t>() << kGenerationShift | page.value;
    case 7:
      return input.below(16);
    case 8:
      return std::uint64_t{page.value + 1} | std::uint64_t{input.take<std::uint16_t>()}
                                                 << 32;  // hint and token count
    case 9:
      return static_cast<std::uint64_t>(input.below(6)) | std::uint64_t{input.below(4)} << 8;  // slot state
    case 10:
      return std::uint64_t{1} << input.below(64);
    default:
      return input.take<std::uint64_t>();
  }
}

void damage_word(const Segment& segment, std::uint64_t word, std::uint64_t value, Damage& damage) {
  note(segment, word, value, damage);
  word_at(segment, word).store(value, std::memory_order_relaxed);
}

void damage_some(Input& input, const Segment& segment, Damage& damage) {
  const std::uint32_t kind = input.below(16);
  if (kind == 0) {  // a page below one of its own descendants, or itself
    const PageIndex page = some_page(input, segment);
    const PageIndex below = some_page(input, segment);
    const StateWord word{segment.descriptor(below).state.load()};
    damage_word(segment, word_of(segment, segment.descriptor(page).parent), Handle::page(below, word).raw, damage);
    return;
  }
  if (kind == 1) {  // a run of garbage, through fields and elements
    std::uint64_t word = some_word(input, segment);
    for (std::uint32_t i = input.below(24) + 1; i > 0 && (word + 1) * 8 <= segment.size_bytes(); --i, ++word)
      damage_word(segment, word, input.take<std::uint64_t>(), damage);
    return;
  }
  for (std::uint32_t i = input.below(4) + 1; i > 0; --i) {
    const std::uint64_t word = some_word(input, segment);
    if ((word + 1) * 8 > segment.size_bytes()) continue;
    damage_word(segment, word, changed(input, segment, word), damage);
  }
}

}  // namespace kvtrie::fuzz
