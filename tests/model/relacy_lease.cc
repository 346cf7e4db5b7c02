// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The C++ memory orders of a lease against an eviction, checked with Relacy (rule 17 of DESIGN.md).
//
// The four accesses of rule 17 are sequentially consistent and there are no stand-alone fences:
//
//   worker                                   evictor
//   lease store   slot.store(seq_cst)        condemn    page.compare_exchange(seq_cst)
//   re-check      page.load(seq_cst)         slot scan  slot.load(seq_cst)
//
// Moved and dropped leases are release stores; the announce counter goes up with release after the
// Pending store and is read with acquire before the scan for children (rules 5, 10). The pair of rule
// 16 (Live store, waiters' bit), the bitmap of free pages and the high-water mark are here too.
//
// relacy_lease holds [VARIANT]   every suite with the orders as above, or with one weakened that another
//                                access makes up for: no execution fails
// relacy_lease fails VARIANT     one order weakened: some execution must fail
// relacy_lease list              the variants and what they must do
//
// Exit code 0: it came out as said. The search covers every schedule and every value of every load.
// In step with: shm/lease.h, shm/announce.cc, shm/page_table.h, shm/free_pages.cc, coordinator/evictor.cc.

#include <cstdio>
#include <cstring>
#include <ostream>
#include <relacy/relacy.hpp>
#include <streambuf>

namespace {

using rl::mo_acq_rel;
using rl::mo_acquire;
using rl::mo_relaxed;
using rl::mo_release;
using rl::mo_seq_cst;

struct Orders {
  rl::memory_order lease_store = mo_seq_cst;
  rl::memory_order recheck = mo_seq_cst;
  rl::memory_order rescue = mo_acq_rel;
  rl::memory_order condemn = mo_seq_cst;
  rl::memory_order slot_scan = mo_seq_cst;
  rl::memory_order pending_store = mo_release;
  rl::memory_order counter_add = mo_release;
  rl::memory_order counter_first = mo_acquire;
  rl::memory_order counter_again = mo_relaxed;  // the slot scan's acquire orders it
  rl::memory_order child_scan = mo_acquire;
  rl::memory_order move_store = mo_release;
  rl::memory_order drop_store = mo_release;
  rl::memory_order live_store = mo_release;
  rl::memory_order walk_load = mo_acquire;
  rl::memory_order mark_raise = mo_seq_cst;
  rl::memory_order mark_look = mo_acquire;  // by the standard; Relacy's one order of seq_cst cannot tell
  rl::memory_order mark_scan = mo_seq_cst;
  rl::memory_order wake_live_store = mo_seq_cst;
  rl::memory_order wake_bit_load = mo_seq_cst;
  rl::memory_order wait_bit_set = mo_seq_cst;
  rl::memory_order wait_recheck = mo_seq_cst;
  rl::memory_order free_bit_set = mo_release;
  rl::memory_order free_bit_clear = mo_acquire;
};
Orders orders;

enum : int { kFree, kWriting, kPending, kLive, kCondemned, kRetiring };
enum : int { kNone, kParent, kChild };

// Lease P, announce C below it, move the lease, publish, release; against one round on P.
struct Chain : rl::test_suite<Chain, 2> {
  rl::atomic<int> parent, child, slot, counter;
  rl::var<int> bytes;  // of P

  void before() {
    parent($).store(kLive, mo_relaxed);
    child($).store(kFree, mo_relaxed);
    slot($).store(kNone, mo_relaxed);
    counter($).store(0, mo_relaxed);
    bytes($) = 1;
  }
  bool lease() {
    slot($).store(kParent, orders.lease_store);
    int seen = parent($).load(orders.recheck);
    if (seen == kCondemned) {
      int expected = kCondemned;
      if (parent($).compare_exchange_strong(expected, kLive, orders.rescue)) return true;
      seen = expected;
    }
    return seen == kLive;
  }
  void thread(unsigned index) {
    if (index == 0) {
      if (!lease()) {
        slot($).store(kNone, orders.drop_store);
        return;
      }
      RL_ASSERT(bytes($) == 1);
      child($).store(kPending, orders.pending_store);
      counter($).fetch_add(1, orders.counter_add);
      slot($).store(kChild, orders.move_store);
      child($).store(kLive, orders.live_store);
      RL_ASSERT(bytes($) == 1);  // C's lease protects its ancestor
      slot($).store(kNone, orders.drop_store);
    } else {
      const int counted = counter($).load(orders.counter_first);
      const int scanned = child($).load(orders.child_scan);
      if (scanned == kPending || scanned == kLive) return;  // not a leaf
      int expected = kLive;
      if (!parent($).compare_exchange_strong(expected, kCondemned, orders.condemn)) return;
      bool keep = slot($).load(orders.slot_scan) == kParent;
      if (counter($).load(orders.counter_again) != counted) keep = true;
      expected = kCondemned;
      if (keep) {
        parent($).compare_exchange_strong(expected, kLive, mo_acq_rel);
      } else if (parent($).compare_exchange_strong(expected, kRetiring, mo_acq_rel)) {
        bytes($) = 2;  // the next owner's
        parent($).store(kFree, mo_release);
      }
    }
  }
  void after() {
    RL_ASSERT(!(child($).load(mo_relaxed) == kLive && parent($).load(mo_relaxed) != kLive));
  }
};

// Lease, read the bytes, drop: the order of the drop against the next owner's writes.
struct Drop : rl::test_suite<Drop, 2> {
  rl::atomic<int> page, slot;
  rl::var<int> bytes;

  void before() {
    page($).store(kLive, mo_relaxed);
    slot($).store(kNone, mo_relaxed);
    bytes($) = 1;
  }
  void thread(unsigned index) {
    if (index == 0) {
      slot($).store(kParent, orders.lease_store);
      if (page($).load(orders.recheck) == kLive) RL_ASSERT(bytes($) == 1);
      slot($).store(kNone, orders.drop_store);
    } else {
      int expected = kLive;
      page($).compare_exchange_strong(expected, kCondemned, orders.condemn);
      if (slot($).load(orders.slot_scan) != kNone) return;
      expected = kCondemned;
      if (page($).compare_exchange_strong(expected, kRetiring, mo_acq_rel)) {
        bytes($) = 2;
        page($).store(kFree, mo_release);
      }
    }
  }
};

// Publish against begin: who sees Live sees the bytes, the tokens and the parent handle.
struct Publish : rl::test_suite<Publish, 2> {
  rl::atomic<int> page, tokens;
  rl::var<int> bytes;

  void before() {
    page($).store(kFree, mo_relaxed);
    tokens($).store(0, mo_relaxed);
    bytes($) = 0;
  }
  void thread(unsigned index) {
    if (index == 0) {
      tokens($).store(7, mo_relaxed);
      page($).store(kPending, orders.pending_store);
      bytes($) = 1;
      page($).store(kLive, orders.live_store);
    } else if (page($).load(orders.walk_load) == kLive) {
      RL_ASSERT(tokens($).load(mo_relaxed) == 7);
      RL_ASSERT(bytes($) == 1);
    }
  }
};

// Rule 16: either the publisher sees the waiters' bit, or the waiter sees the page Live.
struct Wait : rl::test_suite<Wait, 2> {
  rl::atomic<int> page, epoch;
  rl::var<int> woken, slept;

  void before() {
    page($).store(kPending, mo_relaxed);
    epoch($).store(0, mo_relaxed);
    woken($) = 0;
    slept($) = 0;
  }
  void thread(unsigned index) {
    if (index == 0) {
      page($).store(kLive, orders.wake_live_store);
      if ((epoch($).load(orders.wake_bit_load) & 1) != 0) woken($) = 1;
    } else {
      epoch($).fetch_or(1, orders.wait_bit_set);
      if (page($).load(orders.wait_recheck) == kPending) slept($) = 1;
    }
  }
  void after() { RL_ASSERT(!(slept($) == 1 && woken($) == 0)); }
};

// free_bitmap.pml: who clears a bit sees the Free store before it, or the bit is set again after.
struct FreeBit : rl::test_suite<FreeBit, 2> {
  rl::atomic<int> page, bits;

  void before() {
    page($).store(kPending, mo_relaxed);
    bits($).store(1, mo_relaxed);  // stale: the page is not Free
  }
  void thread(unsigned index) {
    if (index == 0) {
      page($).store(kFree, mo_relaxed);
      bits($).fetch_or(1, orders.free_bit_set);
    } else {
      bits($).fetch_and(~1, orders.free_bit_clear);
      int expected = page($).load(mo_relaxed);
      if (expected == kFree) page($).compare_exchange_strong(expected, kWriting, mo_acq_rel);
    }
  }
  void after() { RL_ASSERT(!(page($).load(mo_relaxed) == kFree && bits($).load(mo_relaxed) == 0)); }
};

// The high-water mark of slots (rule 19), raised by one thread of the worker over the slot of another,
// which finds it raised and goes on to its lease.
struct HighWater : rl::test_suite<HighWater, 3> {
  rl::atomic<int> page, slot, mark;
  rl::var<int> bytes;

  void before() {
    page($).store(kLive, mo_relaxed);
    slot($).store(kNone, mo_relaxed);
    mark($).store(0, mo_relaxed);
    bytes($) = 1;
  }
  void cover(int slots) {
    int seen = mark($).load(orders.mark_look);
    while (seen < slots && !mark($).compare_exchange_strong(seen, slots, orders.mark_raise)) {
    }
  }
  void thread(unsigned index) {
    if (index == 0) {
      cover(2);
    } else if (index == 1) {
      cover(1);
      slot($).store(kParent, orders.lease_store);
      if (page($).load(orders.recheck) == kLive) RL_ASSERT(bytes($) == 1);
    } else {
      int expected = kLive;
      page($).compare_exchange_strong(expected, kCondemned, orders.condemn);
      if (mark($).load(orders.mark_scan) > 0 && slot($).load(orders.slot_scan) != kNone) return;
      bytes($) = 2;
    }
  }
};

struct Variant {
  const char* name;
  rl::memory_order Orders::*member;
  rl::memory_order weakened;
  bool holds;  // harmless
};
const Variant kVariants[] = {
    {"lease_store_release", &Orders::lease_store, mo_release, false},
    {"recheck_acquire", &Orders::recheck, mo_acquire, false},
    {"condemn_acq_rel", &Orders::condemn, mo_acq_rel, false},
    {"slot_scan_acquire", &Orders::slot_scan, mo_acquire, false},
    {"counter_add_relaxed", &Orders::counter_add, mo_relaxed, false},
    {"counter_first_relaxed", &Orders::counter_first, mo_relaxed, false},
    {"move_store_relaxed", &Orders::move_store, mo_relaxed, false},
    {"drop_store_relaxed", &Orders::drop_store, mo_relaxed, false},
    {"live_store_relaxed", &Orders::live_store, mo_relaxed, false},
    {"walk_load_relaxed", &Orders::walk_load, mo_relaxed, false},
    {"mark_raise_acq_rel", &Orders::mark_raise, mo_acq_rel, false},
    {"mark_scan_acquire", &Orders::mark_scan, mo_acquire, false},
    {"wake_live_store_release", &Orders::wake_live_store, mo_release, false},
    {"wake_bit_load_acquire", &Orders::wake_bit_load, mo_acquire, false},
    {"wait_bit_set_acq_rel", &Orders::wait_bit_set, mo_acq_rel, false},
    {"wait_recheck_acquire", &Orders::wait_recheck, mo_acquire, false},
    {"free_bit_set_relaxed", &Orders::free_bit_set, mo_relaxed, false},
    {"free_bit_clear_relaxed", &Orders::free_bit_clear, mo_relaxed, false},
    {"pending_store_relaxed", &Orders::pending_store, mo_relaxed, true},  // the counter carries it
    {"child_scan_relaxed", &Orders::child_scan, mo_relaxed, true},        // the counter carries it
};

// Relacy prints the failing execution. Its allocator must not see a stream that grows.
struct NullBuffer : std::streambuf {
  int overflow(int character) override { return character; }
  std::streamsize xsputn(const char*, std::streamsize count) override { return count; }
};
NullBuffer null_buffer;
std::ostream null_stream(&null_buffer);

struct Outcome {
  bool holds = true;
  bool complete = true;
  unsigned long iterations = 0;
};
template <typename Suite>
void run(Outcome& outcome) {
  constexpr unsigned kIterationsMax = 8000000;
  rl::test_params params;
  params.search_type = rl::sched_full;
  params.iteration_count = kIterationsMax;
  params.output_stream = &null_stream;
  params.progress_stream = &null_stream;
  if (!rl::simulate<Suite>(params)) outcome.holds = false;
  outcome.iterations += params.stop_iteration;
  if (params.stop_iteration >= kIterationsMax) outcome.complete = false;
}
Outcome run_all() {
  Outcome outcome;
  run<Chain>(outcome);
  run<Drop>(outcome);
  run<Publish>(outcome);
  run<Wait>(outcome);
  run<FreeBit>(outcome);
  run<HighWater>(outcome);
  return outcome;
}

}  // namespace

int main(int argc, char** argv) {
  const char* command = argc > 1 ? argv[1] : "";
  const char* name = argc > 2 ? argv[2] : "";
  if (std::strcmp(command, "list") == 0) {
    for (const Variant& variant : kVariants) {
      std::printf("%s %s\n", variant.holds ? "holds" : "fails", variant.name);
    }
    return 0;
  }
  const bool expect_holds = std::strcmp(command, "holds") == 0;
  bool known = expect_holds && *name == '\0';
  for (const Variant& variant : kVariants) {
    if (std::strcmp(variant.name, name) != 0) continue;
    orders.*variant.member = variant.weakened;
    known = variant.holds == expect_holds;
  }
  if (!known || (!expect_holds && std::strcmp(command, "fails") != 0)) {
    std::fputs("usage: relacy_lease holds [VARIANT] | fails VARIANT | list\n", stderr);
    return 2;
  }
  const Outcome outcome = run_all();
  const bool as_said = expect_holds ? outcome.holds && outcome.complete : !outcome.holds;
  std::printf("%s relacy_lease [%s] expected=%s errors=%d complete=%s iterations=%lu\n",
              as_said ? "ok" : "WRONG", name, expect_holds ? "holds" : "fails",
              outcome.holds ? 0 : 1, outcome.complete ? "yes" : "no", outcome.iterations);
  return as_said ? 0 : 1;
}
