// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/repair.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "shm/counter_names.h"
#include "shm/crash_point.h"
#include "shm/free_pages.h"
#include "shm/page_table.h"
#include "shm/worker_table.h"

namespace kvtrie {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

template <typename Atomic>
void copy(const Atomic& from, Atomic& to) {
  to.store(from.load(kRelaxed), kRelaxed);
}

// Up to the first zero byte; the last byte of `to` stays zero.
template <std::size_t kBytes>
void copy_text(const char (&from)[kBytes], char (&to)[kBytes]) {
  std::copy_n(from, ::strnlen(from, kBytes - 1), to);
}

class Writer {
 public:
  Writer(const Segment& damaged, const RepairPlan& plan, const Segment& fresh)
      : old_(damaged), plan_(plan), new_(fresh), children_(damaged.page_count()) {}

  void run() {
    copy(old_.superblock().driven_tick, new_.superblock().driven_tick);
    if (const std::uint64_t epoch = old_.superblock().coordinator_epoch.load(kRelaxed); epoch < kCounterMax)
      new_.superblock().coordinator_epoch.store(epoch, kRelaxed);
    write_namespaces();
    for (std::uint32_t i = 0; i < old_.page_count(); ++i)
      write_page({i});
    KVTRIE_CRASH_POINT("repair.after_pages");
    write_counters();
    write_entries();
    write_free_bits();
    write_pins();
    write_slots();
  }

 private:
  void write_namespaces() {
    for (std::uint32_t i = 0; i < plan_.namespaces.size(); ++i) {
      const NamespaceId id{static_cast<std::uint16_t>(i)};
      const NamespaceRecord& from = old_.name_space(id);
      NamespaceRecord& to = new_.name_space(id);
      to.root_generation.store(plan_.namespaces[i].root_generation, kRelaxed);
      if (!plan_.namespaces[i].kept) continue;
      copy(from.hash_seed, to.hash_seed);
      copy(from.fields_hash, to.fields_hash);
      copy(from.fields_bytes, to.fields_bytes);
      copy_text(from.label, to.label);
      std::ranges::copy(from.fields, to.fields);
      const std::uint32_t hint = from.child_hint.load(kRelaxed);
      if (is_child(hint, Handle::root(id, plan_.namespaces[i].root_generation))) to.child_hint.store(hint, kRelaxed);
      copy(from.state, to.state);
    }
  }

  bool is_child(std::uint32_t hint, Handle parent) const {
    return hint != 0 && hint <= old_.page_count() && plan_.keeps({hint - 1}) &&
           Handle{old_.descriptor({hint - 1}).parent.load(kRelaxed)} == parent;
  }

  void write_page(PageIndex page) {
    const Descriptor& from = old_.descriptor(page);
    Descriptor& to = new_.descriptor(page);
    const StateWord word{from.state.load(kRelaxed)};
    if (!plan_.keeps(page)) {
      const bool still_free = word.well_formed() && word.state() == PageState::kFree;
      to.state.store(still_free ? word.raw : word.recycled().raw, kRelaxed);
      return;
    }
    copy(from.parent, to.parent);
    copy(from.prefix_hash, to.prefix_hash);
    copy(from.touch, to.touch);
    copy(from.scope, to.scope);
    to.depth_class.store(from.depth_class.load(kRelaxed) & 0x0FFF'FFFF, kRelaxed);  // without a tier
    copy(from.since_tick, to.since_tick);
    copy(from.retain_until, to.retain_until);
    const std::uint32_t hint = from.child_hint.load(kRelaxed);
    if (is_child(hint, Handle::page(page, word))) to.child_hint.store(hint, kRelaxed);
    const std::uint32_t tokens = std::min<std::uint32_t>(from.token_count.load(kRelaxed), old_.tokens_per_page());
    to.token_count.store(static_cast<std::uint16_t>(tokens), kRelaxed);
    const std::uint16_t publisher = from.publisher.load(kRelaxed);
    to.publisher.store(publisher < old_.slot_count() ? publisher : std::uint16_t{0}, kRelaxed);
    if (old_.page_checksums()) copy(from.checksum, to.checksum);
    for (std::uint32_t i = 0; i < tokens; ++i) {
      const std::uint64_t pair = old_.token_words(page)[i / 2].load(kRelaxed);
      new_.token_words(page)[i / 2].fetch_or(pair & std::uint64_t{0xFFFF'FFFF} << (i % 2 * 32), kRelaxed);
    }
    const Handle parent{from.parent.load(kRelaxed)};
    if (parent.is_page() && old_.has(parent.page_index())) ++children_[parent.page_index().value];
    to.state.store(word.with(PageState::kLive).raw, kRelaxed);
  }

  // A counter near its end would pass it, and then be below the children.
  void write_counters() {
    for (std::uint32_t i = 0; i < old_.page_count(); ++i) {
      const std::uint32_t before = old_.announce_counter({i}).load(kRelaxed);
      const bool possible = before >= children_[i] && before < 1U << 31;
      new_.announce_counter({i}).store(possible ? before : children_[i], kRelaxed);
    }
  }

  void write_entries() {
    for (std::uint64_t i = 0; i < plan_.entries.size(); ++i) {
      if (plan_.entries[i] == 0) continue;
      new_.bucket(i / kBucketEntries).entries[i % kBucketEntries].store(plan_.entries[i], kRelaxed);
    }
  }

  // All were set when it was built.
  void write_free_bits() {
    for (std::uint32_t i = 0; i < old_.page_count(); ++i) {
      if (!plan_.keeps({i})) continue;
      new_.free_bits(i / kChunkPages).fetch_and(~(std::uint64_t{1} << i % kChunkPages), kRelaxed);
    }
    new_.superblock().free_hint.store(static_cast<std::int64_t>(FreePages(new_).count()), kRelaxed);
  }

  void write_pins() {
    std::uint32_t mark = 0;
    for (const PinPlan& plan : plan_.pins) {
      if (!plan.kept) continue;
      const std::uint32_t number = plan.pin.number;
      PinRecord& record = new_.pins()[number];
      record.expiry_tick.store(plan.pin.expiry_tick, kRelaxed);
      copy_text(old_.pins()[number].reason, record.reason);
      LeaseSlot& slot = new_.leases(kCoordinatorSlot)[number];
      slot.since_tick.store(plan.pin.since_tick, kRelaxed);
      slot.handle.store(plan.pin.page.raw, kRelaxed);
      mark = std::max(mark, number + 1);
    }
    new_.worker(kCoordinatorSlot).leases_high_water.store(mark, kRelaxed);
  }

  void write_slots() {
    for (std::uint32_t i = 0; i < old_.slot_count(); ++i) {
      const WorkerId slot{static_cast<std::uint16_t>(i)};
      const WorkerRecord& from = old_.worker(slot);
      WorkerRecord& to = new_.worker(slot);
      const SlotWord word{from.slot_state.load(kRelaxed)};
      if (i != 0 && word.well_formed() && word.incarnation() < kCounterMax)
        to.slot_state.store(word.with(SlotState::kFree).raw, kRelaxed);
      for (std::size_t c = 0; c < kCounters; ++c) {
        const bool named = name_of(static_cast<Counter>(c)) != nullptr;
        if (named && from.counters[c].load(kRelaxed) < kCounterMax) copy(from.counters[c], to.counters[c]);
      }
    }
  }

  const Segment& old_;
  const RepairPlan& plan_;
  const Segment& new_;
  std::vector<std::uint32_t> children_;
};

}  // namespace

SegmentIdentity identity_of(const Segment& segment) {
  const Superblock& block = segment.superblock();
  SegmentIdentity identity;
  identity.cache_name.assign(block.cache_name, ::strnlen(block.cache_name, sizeof block.cache_name));
  std::ranges::copy(block.cache_id, identity.cache_id);
  identity.hash_secret = block.hash_secret;
  std::ranges::copy(block.boot_id, identity.boot_id);
  identity.pid_namespace = block.pid_namespace;
  identity.clock = static_cast<ClockKind>(block.clock_kind);
  identity.tick_ns = block.tick_ns;
  identity.device = segment.device();
  identity.page_checksums = segment.page_checksums();
  return identity;
}

void write_repaired(const Segment& damaged, const RepairPlan& plan, const Segment& fresh) {
  Writer(damaged, plan, fresh).run();
}

}  // namespace kvtrie
