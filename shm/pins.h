// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Pins: leases that the coordinator holds for an operator, with a reason and perhaps an end. A pinned page, and with it
// every page above it, is not evicted, whoever restarts.
//
// Layout: pin i is lease slot i of worker slot 0 (area kLeases) and PinRecord i (area kPins, 64 bytes).
//
// Invariants
//   P1 Who sees a handle in the slot sees its record: expiry and reason. A record whose slot has no handle is no pin.
//   P2 At rest such a record is zero.
//   P3 The slot is below slot 0's high-water mark before it has its first handle (rule 19).
//
// States, moved by the coordinator's loop alone:
//   none -> pinned   record (relaxed); mark (seq_cst); then acquire_lease (rule 2), whose handle store is seq_cst, so
//                    P1 holds for a reader that loads the handle with acquire; the evictor: lease.h
//   none -> none     the page went before the lease was verified: slot and record are cleared
//   pinned -> none   release store of 0 into the slot, then the record to zero. A reader that copied a record reads the
//                    handle again: the same means that the record was this pin's
// A pin is never moved, so rule 7 has nothing to say. A pin ends when an operator asks, when its tick has come, or when
// its namespace is flushed: then nothing can match its page.
//
// Crash: died after / left behind / repaired by / test
//   record written / record without a handle (no pin) / recover / step_kill admin.pin
//   handle stored / a pin, or a lease on a page that went / recover drops what protects nothing / step_kill admin.pin
//   handle cleared / record without a handle / recover / step_kill admin.unpin
// The next coordinator finds all other pins as they were.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "shm/ids.h"
#include "shm/segment.h"
#include "shm/status.h"

namespace kvtrie {

struct Pin {
  std::uint32_t number = 0;
  Handle page;
  std::uint32_t since_tick = 0;
  std::uint32_t expiry_tick = 0;  // 0: never
  std::string reason;             // as stored; of a segment that others wrote it may hold any bytes
};

class PinTable {
 public:
  explicit PinTable(const Segment& segment) : segment_(segment) {}

  // Zero bytes are a table without pins.
  void init() const {}
  // Empty, or what is wrong with this record. `at_rest`: P2 is checked too.
  std::string validate(std::uint32_t number, bool at_rest) const;
  // After adopt_pages, which decides what becomes of condemned pages: leases that protect nothing go, records without
  // a handle become zero. Idempotent.
  void recover() const;
  // A copy of every pin, by number. Lock-free; for read-only mappings of live and dead segments too.
  std::vector<Pin> list() const;

  // --- the coordinator's
  // Returns the pin's number. kFull: no slot is free. kNotFound: the page is of another life, or not Live.
  Result<std::uint32_t> pin(Handle page, std::string_view reason, std::uint32_t expiry_tick) const;
  // kNotFound: the pin does not hold this page.
  Status unpin(std::uint32_t number, Handle page) const;
  // Drops the pins that have ended by `now_tick`. Returns how many.
  std::uint32_t drop_ended(std::uint32_t now_tick) const;
  bool any() const;

 private:
  LeaseSlot& slot(std::uint32_t number) const { return segment_.leases(kCoordinatorSlot)[number]; }
  std::optional<std::uint32_t> free_slot() const;
  void write_record(std::uint32_t number, std::string_view reason, std::uint32_t expiry_tick) const;
  void raise_mark(std::uint32_t number) const;
  void clear(std::uint32_t number) const;
  void clear_record(std::uint32_t number) const;
  bool is_zero(std::uint32_t number) const;
  bool protects(Handle page) const;

  const Segment& segment_;
};

// Ticks are compared modulo 2^32. 0 stands for never, so no expiry is 0.
std::uint32_t expiry_tick_after(const Segment& segment, std::uint32_t seconds);

}  // namespace kvtrie
