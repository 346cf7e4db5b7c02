// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/pins.h"

#include <algorithm>
#include <cstring>

#include "shm/crash_point.h"
#include "shm/lease.h"
#include "shm/namespace_table.h"

namespace kvtrie {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

}  // namespace

std::string PinTable::validate(std::uint32_t number, bool at_rest) const {
  const PinRecord& record = segment_.pins()[number];
  const auto byte_at = [&](std::size_t i) {
    return __atomic_load_n(record.reason + i, __ATOMIC_RELAXED);
  };
  if (byte_at(sizeof record.reason - 1) != '\0') return "the reason of a pin has no end";
  if (record.flags.load(kRelaxed) != 0) return "a pin has flags that nobody sets";
  const bool zero = record.expiry_tick.load(kRelaxed) == 0 && byte_at(0) == '\0';
  if (at_rest && !zero && slot(number).handle.load(std::memory_order_acquire) == 0) {
    return "a record of no pin is not zero";
  }
  return {};
}

void PinTable::recover() const {
  for (std::uint32_t i = 0; i < segment_.pins().size(); ++i) {
    const Handle page{slot(i).handle.load(kRelaxed)};
    if (page.none()) {
      if (!is_zero(i) && !KVTRIE_MUTANT(pins_keep_leftovers)) clear_record(i);
    } else if (!protects(page) && !KVTRIE_MUTANT(pins_keep_lost_leases)) {
      clear(i);
    }
    KVTRIE_CRASH_POINT("pins.after_recover");
  }
}

std::vector<Pin> PinTable::list() const {
  std::vector<Pin> pins;
  for (std::uint32_t i = 0; i < segment_.pins().size(); ++i) {
    const PinRecord& record = segment_.pins()[i];
    const std::uint64_t handle = slot(i).handle.load(std::memory_order_acquire);
    if (handle == 0) continue;
    Pin pin{i,
            Handle{handle},
            slot(i).since_tick.load(kRelaxed),
            record.expiry_tick.load(std::memory_order_acquire),
            {}};
    char reason[sizeof record.reason];
    for (std::size_t c = 0; c < sizeof reason; ++c) {
      reason[c] = __atomic_load_n(record.reason + c, __ATOMIC_ACQUIRE);
    }
    pin.reason.assign(reason, ::strnlen(reason, sizeof reason));
    if (slot(i).handle.load(std::memory_order_acquire) == handle) pins.push_back(std::move(pin));
  }
  return pins;
}

std::optional<std::uint32_t> PinTable::free_slot() const {
  for (std::uint32_t i = 0; i < segment_.pins().size(); ++i) {
    if (slot(i).handle.load(kRelaxed) == 0) return i;
  }
  return std::nullopt;
}

Result<std::uint32_t> PinTable::pin(Handle page, std::string_view reason,
                                    std::uint32_t expiry_tick) const {
  if (!page.is_page() || !segment_.has(page.page_index())) {
    return Status{Code::kNotFound, "no such page"};
  }
  const std::optional<std::uint32_t> free = free_slot();
  if (!free) return Status{Code::kFull, "every pin is taken"};
  clear_record(*free);
  if (!KVTRIE_MUTANT(pin_before_record)) write_record(*free, reason, expiry_tick);
  KVTRIE_CRASH_POINT("pin.after_record");
  if (!KVTRIE_MUTANT(pin_above_high_water)) raise_mark(*free);
  if (acquire_lease(segment_, slot(*free), page) == LeaseOutcome::kLost &&
      !KVTRIE_MUTANT(pin_without_verification)) {
    clear(*free);
    return Status{Code::kNotFound, "the page is not cached any more"};
  }
  KVTRIE_CRASH_POINT("pin.after_lease");
  if (KVTRIE_MUTANT(pin_before_record)) write_record(*free, reason, expiry_tick);
  if (KVTRIE_MUTANT(pin_above_high_water)) raise_mark(*free);
  return *free;
}

void PinTable::write_record(std::uint32_t number, std::string_view reason, std::uint32_t expiry_tick) const {
  PinRecord& record = segment_.pins()[number];
  record.expiry_tick.store(expiry_tick, kRelaxed);
  for (std::size_t c = 0; c < std::min(reason.size(), sizeof record.reason - 1); ++c) {
    __atomic_store_n(record.reason + c, reason[c], __ATOMIC_RELAXED);
  }
  slot(number).since_tick.store(segment_.now_tick(), kRelaxed);
}

// So that the evictor reads the slot.
void PinTable::raise_mark(std::uint32_t number) const {
  AtomicU32& mark = segment_.worker(kCoordinatorSlot).leases_high_water;
  if (mark.load(kRelaxed) <= number) mark.store(number + 1, std::memory_order_seq_cst);
}

Status PinTable::unpin(std::uint32_t number, Handle page) const {
  if (number >= segment_.pins().size() || page.none() ||
      slot(number).handle.load(kRelaxed) != page.raw) {
    return {Code::kNotFound, "no such pin"};
  }
  clear(number);
  return {};
}

std::uint32_t PinTable::drop_ended(std::uint32_t now_tick) const {
  std::uint32_t dropped = 0;
  for (std::uint32_t i = 0; i < segment_.pins().size(); ++i) {
    const Handle page{slot(i).handle.load(kRelaxed)};
    if (page.none()) continue;
    const std::uint32_t expiry = segment_.pins()[i].expiry_tick.load(kRelaxed);
    const bool expired = expiry != 0 && static_cast<std::int32_t>(now_tick - expiry) >= 0;
    if ((!expired || KVTRIE_MUTANT(pin_never_ends)) && protects(page) &&
        (scope_is_current(segment_, segment_.descriptor(page.page_index()).scope.load(kRelaxed)) ||
         KVTRIE_MUTANT(pin_outlives_flush))) {
      continue;
    }
    clear(i);
    ++dropped;
  }
  return dropped;
}

bool PinTable::any() const {
  const std::uint32_t mark =
      std::min<std::uint32_t>(segment_.worker(kCoordinatorSlot).leases_high_water.load(kRelaxed),
                              static_cast<std::uint32_t>(segment_.pins().size()));
  for (std::uint32_t i = 0; i < mark; ++i) {
    if (slot(i).handle.load(kRelaxed) != 0) return true;
  }
  return false;
}

// The lease first: who sees the record go saw the handle go, or reads it again (list).
void PinTable::clear(std::uint32_t number) const {
  if (KVTRIE_MUTANT(unpin_record_first)) {
    clear_record(number);
    KVTRIE_CRASH_POINT("unpin.after_record");
  }
  drop_lease(slot(number));
  KVTRIE_CRASH_POINT("unpin.after_lease");
  clear_record(number);
}

// Most records are, at a recovery: they are read by words and not written.
bool PinTable::is_zero(std::uint32_t number) const {
  const PinRecord& record = segment_.pins()[number];
  std::uint64_t set = slot(number).since_tick.load(kRelaxed) | slot(number).request_tag.load(kRelaxed) |
                      record.expiry_tick.load(kRelaxed) | record.flags.load(kRelaxed);
  for (std::size_t i = 0; i < sizeof record.reason / 8; ++i) {
    set |= __atomic_load_n(reinterpret_cast<const std::uint64_t*>(record.reason) + i, __ATOMIC_RELAXED);
  }
  return set == 0;
}

void PinTable::clear_record(std::uint32_t number) const {
  PinRecord& record = segment_.pins()[number];
  slot(number).since_tick.store(0, kRelaxed);
  slot(number).request_tag.store(0, kRelaxed);
  record.expiry_tick.store(0, std::memory_order_release);
  record.flags.store(0, kRelaxed);
  for (char& c : record.reason)
    __atomic_store_n(&c, '\0', __ATOMIC_RELEASE);
}

bool PinTable::protects(Handle page) const {
  if (!page.is_page() || !segment_.has(page.page_index())) return false;
  const StateWord word{
      segment_.descriptor(page.page_index()).state.load(std::memory_order_acquire)};
  return page.same_life(word) && word.readable();
}

std::uint32_t expiry_tick_after(const Segment& segment, std::uint32_t seconds) {
  if (seconds == 0) return 0;
  constexpr std::uint64_t kFarthest =
      0x7FFF'FFFF;  // what a comparison modulo 2^32 can tell from the past
  const auto ticks = static_cast<std::uint64_t>(static_cast<double>(seconds) * 1e9 /
                                                static_cast<double>(segment.tick_ns()));
  const std::uint32_t tick =
      segment.now_tick() +
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(ticks, 1, kFarthest));
  return tick == 0 ? 1 : tick;
}

}  // namespace kvtrie
