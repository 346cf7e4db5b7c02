// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Checks of the superblock, of unused bytes, namespaces and locks.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "shm/namespace_table.h"
#include "shm/prefix_hash.h"
#include "shm/robust_mutex.h"
#include "shm/verify_checks.h"

namespace kvtrie::verify_detail {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr auto kAcquire = std::memory_order_acquire;

}  // namespace

void Wrongs::add(Invariant invariant, Subject subject, std::uint64_t number, std::uint64_t key,
                 std::string text) {
  const std::uint64_t parts[] = {static_cast<std::uint64_t>(invariant),
                                 static_cast<std::uint64_t>(subject), number, key};
  all_.push_back(
      {{invariant, subject, number, std::move(text)}, hash_bytes(0, parts, sizeof parts)});
}

Checks::Checks(const Segment& segment, const VerifyOptions& options)
    : segment_(segment),
      index_(segment),
      at_rest_(options.at_rest),
      adopting_(options.adopting),
      tokens_per_page_(segment.tokens_per_page()) {
  seen_.entries.resize(segment.layout().bucket_count);
}

void Checks::check(const Unit& unit, Wrongs& wrongs) {
  const auto page = PageIndex{static_cast<std::uint32_t>(unit.number)};
  const auto small = static_cast<std::uint16_t>(unit.number);
  switch (unit.kind) {
    case UnitKind::kSuperblock:
      return check_superblock(wrongs);
    case UnitKind::kPadding:
      return check_padding(wrongs);
    case UnitKind::kPage:
      return check_page(page, wrongs);
    case UnitKind::kBucket:
      return check_bucket(unit.number, wrongs);
    case UnitKind::kChunk:
      return check_chunk(page.value, wrongs);
    case UnitKind::kWorker:
      return check_worker(WorkerId{small}, wrongs);
    case UnitKind::kNamespace:
      return check_namespace(NamespaceId{small}, wrongs);
    case UnitKind::kNamespacePair:
      return check_namespace_pair({small}, {static_cast<std::uint16_t>(unit.other)}, wrongs);
    case UnitKind::kStripe:
      return check_stripe(page.value, wrongs);
    case UnitKind::kPagePair:
      return check_pair(page, {static_cast<std::uint32_t>(unit.other)}, wrongs);
  }
}

void Checks::count(const Unit& unit, Totals& totals) const {
  if (unit.kind == UnitKind::kPage) {
    const PageIndex page{static_cast<std::uint32_t>(unit.number)};
    const Descriptor& d = segment_.descriptor(page);
    const StateWord word{d.state.load(kAcquire)};
    if (!word.well_formed()) {
      ++totals.pages_impossible;
      return;
    }
    ++totals.pages[static_cast<std::uint8_t>(word.state())];
    if (!word.readable()) return;
    const Handle parent{d.parent.load(kAcquire)};
    // Equal afterwards: it was this page's parent all the time.
    if (parent.is_page() && segment_.has(parent.page_index()) && d.state.load(kAcquire) == word.raw)
      ++totals.children[parent.page_index().value];
  } else if (unit.kind == UnitKind::kWorker) {
    for (const LeaseSlot& lease : segment_.leases({static_cast<std::uint16_t>(unit.number)})) {
      totals.leases += lease.handle.load(kRelaxed) != 0 ? 1 : 0;
    }
  }
}

void Checks::expect_zero(const void* from, const void* to, Subject subject, std::uint64_t number,
                         const char* what, Wrongs& wrongs) const {
  for (auto* at = static_cast<const std::byte*>(from); at < to; ++at) {
    if (byte_at(at) == 0) continue;
    const auto offset = static_cast<std::uint64_t>(at - segment_.data());
    wrongs.add(Invariant::kUnused, subject, subject == Subject::kSegment ? offset : number, offset,
               fmt::format("{} at offset {} is not zero", what, offset));
    return;
  }
}

void Checks::check_superblock(Wrongs& wrongs) const {
  const Superblock& b = segment_.superblock();
  auto add = [&](Invariant invariant, const void* field, std::uint64_t value, std::string text) {
    const auto offset =
        static_cast<std::uint64_t>(static_cast<const std::byte*>(field) - segment_.data());
    wrongs.add(invariant, Subject::kSegment, offset, value, std::move(text));
  };
  const std::uint64_t checksum = constant_checksum(b);
  if (b.magic != kSegmentMagic || b.layout_version != kLayoutVersion ||
      b.struct_fingerprint != struct_fingerprint() || b.constant_checksum != checksum ||
      geometry_of(b) != segment_.geometry()) {
    add(Invariant::kConstant, &b.magic, checksum,
        "the constant part of the superblock was overwritten");
  }
  const std::uint32_t poison = b.poison_state.load(kRelaxed);
  const std::uint32_t reason = b.poison_reason.load(kRelaxed);
  if (poison > 1 || reason > static_cast<std::uint32_t>(PoisonReason::kPoolGone) ||
      (poison == 0 && reason != 0) || (poison == 1 && reason == 0)) {
    add(Invariant::kWords, &b.poison_state, poison ^ std::uint64_t{reason} << 32,
        fmt::format("poison state {} with reason {}", poison, reason));
  } else if (poison != 0) {
    add(Invariant::kPoisoned, &b.poison_state, reason, fmt::format("given up, reason {}", reason));
  }
  const std::uint32_t state = b.coordinator_state.load(kRelaxed);
  if (state > static_cast<std::uint32_t>(CoordinatorState::kDraining)) {
    add(Invariant::kWords, &b.coordinator_state, state, fmt::format("coordinator state {}", state));
  }
  const std::uint32_t busy = b.evictor_busy.load(kRelaxed);
  if (busy > 1 || (at_rest_ && busy != 0)) {
    add(Invariant::kWords, &b.evictor_busy, busy, fmt::format("evictor busy {}", busy));
  }
  for (const AtomicU64* pages : {&b.low_pages, &b.high_pages}) {
    if (pages->load(kRelaxed) > segment_.page_count()) {
      add(Invariant::kWords, pages, pages->load(kRelaxed), "a watermark beyond the last page");
    }
  }
  auto zero = [&](const void* from, const void* to) {
    expect_zero(from, to, Subject::kSegment, 0, "superblock", wrongs);
  };
  zero(end_of(b.constant_checksum), &b.poison_state);
  zero(end_of(b.reserved_until), &b.coordinator_epoch);
  zero(&b.coordinator_reserved, end_of(b.coordinator_reserved));
  zero(end_of(b.eviction_shortfall), &b.free_hint);
  zero(end_of(b.free_hint), &b.doorbell);
  zero(end_of(b.doorbell), end_of(b));
}

void Checks::check_padding(Wrongs& wrongs) const {
  const SegmentLayout& layout = segment_.layout();
  for (std::uint32_t i = 0; i < layout.area_count; ++i) {
    const AreaEntry& area = layout.areas[i];
    const std::uint64_t end = area.offset + area.stride * area.count;
    const std::uint64_t next =
        i + 1 < layout.area_count ? layout.areas[i + 1].offset : layout.segment_bytes;
    expect_zero(segment_.data() + end, segment_.data() + next, Subject::kSegment, 0,
                "after an area", wrongs);
  }
}

void Checks::check_namespace(NamespaceId id, Wrongs& wrongs) const {
  const NamespaceRecord& r = segment_.name_space(id);
  const std::uint32_t state = r.state.load(kAcquire);
  auto zero = [&](const void* from, const void* to) {
    expect_zero(from, to, Subject::kNamespace, id.value, "namespace record", wrongs);
  };
  zero(&r.reserve_pages, end_of(r.default_retention_ticks));  // nobody may set them yet
  zero(end_of(r.child_hint), end_of(r.reserved));
  auto add = [&](std::string text) {
    const std::uint64_t what = hash_bytes(0, text.data(), text.size());
    wrongs.add(Invariant::kNamespace, Subject::kNamespace, id.value,
               what ^ r.root_generation.load(kAcquire), std::move(text));
  };
  if (std::string problem = NamespaceTable(segment_).validate(id); !problem.empty())
    add(std::move(problem));
  if (at_rest_ && state == static_cast<std::uint32_t>(NamespaceState::kFree) &&
      (r.fields_bytes.load(kRelaxed) != 0 || r.fields_hash.load(kRelaxed) != 0)) {
    add("free, but still with fields");
  }
}

void Checks::check_namespace_pair(NamespaceId a, NamespaceId b, Wrongs& wrongs) const {
  const NamespaceRecord& ra = segment_.name_space(a);
  const NamespaceRecord& rb = segment_.name_space(b);
  constexpr auto kOpen = static_cast<std::uint32_t>(NamespaceState::kOpen);
  if (ra.state.load(kAcquire) != kOpen || rb.state.load(kAcquire) != kOpen) return;
  for (std::size_t i = 0; i < sizeof ra.fields; ++i) {
    if (byte_at(ra.fields + i) != byte_at(rb.fields + i)) return;
  }
  wrongs.add(Invariant::kNamespaceTwice, Subject::kNamespace, b.value,
             ra.root_generation.load(kRelaxed) ^ rb.root_generation.load(kRelaxed) << 32,
             fmt::format("has the fields of namespace {}", a.value));
}

void Checks::check_stripe(std::uint32_t stripe, Wrongs& wrongs) const {
  const StripeRecord& r = segment_.stripe(stripe);
  if (const Status status = RobustMutex::validate(r.mutex); !status) {
    wrongs.add(Invariant::kLock, Subject::kStripe, stripe,
               static_cast<std::uint64_t>(status.code()), status.what());
  }
  expect_zero(&r.reserved, end_of(r.reserved), Subject::kStripe, stripe, "stripe record", wrongs);
}

}  // namespace kvtrie::verify_detail
