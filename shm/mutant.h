// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Each protection of the protocol as a switch that takes it out, so that a test can show that it is needed:
// `if (!KVTRIE_MUTANT(lease_without_recheck)) ...`. Switched at run time in builds with KVTRIE_DEV, constant
// false (and so compiled away) in all others. tests/crash/mutants_test.cc names the test that catches each.
#pragma once

#include <cstdint>
#include <string_view>

namespace kvtrie {

//       name                          what is taken out
#define KVTRIE_MUTANTS(X)                                                                            \
  X(walk_ignores_generation)        /* 1: parent compared without its generation */                  \
  X(lease_without_recheck)          /* 2: no second look at the state word after the lease store */  \
  X(rescue_by_store)                /* 2: rescue writes Live without compare-and-swap */             \
  X(parent_of_other_worker)         /* 3: another worker's Pending page is taken as parent */        \
  X(announce_without_lookup)        /* 4: no look for a page of the same key */                      \
  X(index_before_pending)           /* 4: Pending only after the index entry and the lock */         \
  X(no_announce_counter)            /* 5: parent's announce counter not incremented */               \
  X(lease_after_live)               /* 6: Live stored before the lease moved */                      \
  X(publish_children_first)         /* 6: deepest page Live first */                                 \
  X(share_publisher_only)           /* 6: leases of a batch's other sequences do not move */         \
  X(move_by_overwrite)              /* 7: slot overwritten before the new claim is verified */       \
  X(fork_copies_lease)              /* 7: the child's lease is a plain copy */                       \
  X(partial_without_lease)          /* 7: a page is copied from without a claim on it */             \
  X(abort_frees_before_unindex)     /* 8: Free before the index entry is out */                      \
  X(duplicate_supersedes)           /* 9: second of a key is announced all the same */               \
  X(evict_without_lease_scan)       /* 10: slots not read after condemning */                        \
  X(evict_without_counter_check)    /* 10: announce counters not read again */                       \
  X(evict_scan_before_condemn)      /* 10: slots read before condemning */                           \
  X(evict_interior_pages)           /* C4: a page with children counts as a leaf */                  \
  X(evict_parent_of_rescued)        /* 11: rescued child does not rescue its parent */               \
  X(free_before_unindex)            /* 12: evictor frees before the index entry is out */            \
  X(free_keeps_generation)          /* 12: page recycled in the same generation */                   \
  X(no_stripe_sweep)                /* 13: stripe of a dead holder not swept */                      \
  X(sweep_takes_pending)            /* 13: the sweep removes Pending pages' entries */               \
  X(no_device_fence)                /* 14: pages of the dead go back while a device still writes */   \
  X(no_writer_fence)                /* 14: ... while plane writers of the dead may still write */     \
  X(reap_keeps_pages)               /* 14: pages of the dead not given back */                       \
  X(reap_slot_first)                /* 14: slot free before its pages are */                         \
  X(reap_keeps_leases)              /* 14: leases of the dead not cleared */                         \
  X(adopt_keeps_condemned)          /* 15: Condemned left behind */                                  \
  X(adopt_revives_retiring)         /* 15: Retiring back to Live */                                  \
  X(wait_without_recheck)           /* 16: sleeper does not look again */                            \
  X(pending_wait_without_recheck)   /* 16: the page is not read again after the waiters' bit */       \
  X(publish_keeps_waiters)          /* 16: who waits for a page is not woken when it comes */        \
  X(reap_keeps_waiters)             /* 14, 16: who waits for a page of the dead is not woken */      \
  X(take_before_older)              /* W1: free pages taken before older wishes */                   \
  X(reservation_never_ends)         /* W3: wishes bind without a coordinator, too */                 \
  X(wish_of_the_silent_binds)       /* W3: a wish binds though its waiter does not come round */     \
  X(lease_load_passes_store)        /* 17: the lease store not ordered before the look at the word */ \
  X(flush_ignored)                  /* 18: root generation not compared */                           \
  X(begin_keeps_old_root)           /* 18: root generation not read again under the lease */         \
  X(wait_keeps_old_root)            /* 18: what came while it waited is matched after a flush */      \
  X(publish_after_flush)            /* 18: a sequence of the generation before publishes on */       \
  X(flushed_pages_keep_their_turn)  /* 18: pages of a flushed root are ranked by their touch */       \
  X(keeper_forgets_flush)           /* 18: the next coordinator does not look for such pages */       \
  X(flush_reuses_scope)             /* N4: the next generation, though pages have its low 16 bits */  \
  X(hash_without_namespace)         /* C8: one hash for a prefix in all namespaces */                  \
  X(touch_before_lease)             /* 19: touch written before the lease is verified */             \
  X(high_water_after_lease)         /* 19: high-water mark stored after the first lease */           \
  X(evict_ignores_pins)             /* pins, 10: slots of the coordinator are not read */             \
  X(pin_without_verification)       /* pins, 2: a pin though its page went before the lease */        \
  X(pin_above_high_water)           /* P3: mark stored after the pin's handle */                      \
  X(pin_before_record)              /* P1: handle before expiry and reason */                         \
  X(unpin_record_first)             /* P1: record cleared before the handle */                        \
  X(pins_keep_leftovers)            /* P2: records without a handle stay after a death */             \
  X(pins_keep_lost_leases)          /* pins: leases on pages that went stay after a death */          \
  X(pin_never_ends)                 /* pins: one whose tick has come goes on */                       \
  X(pin_outlives_flush)             /* pins: one of a flushed namespace goes on */                    \
  X(held_count_after_take)          /* held count raised after the page was taken */                 \
  X(take_tries_once)                /* who loses a race for bits of a chunk leaves its others */       \
  X(reap_keeps_bitmap)              /* free bits of a dead worker's chunks not recomputed */         \
  X(adopt_keeps_bitmap)             /* free bits not recomputed at adoption */

enum class Mutant : std::uint8_t {
  kNone = 0,
#define KVTRIE_X(name) k_##name,
  KVTRIE_MUTANTS(KVTRIE_X)
#undef KVTRIE_X
  kCount
};

inline constexpr std::string_view kMutantNames[] = {
    "none",
#define KVTRIE_X(name) #name,
    KVTRIE_MUTANTS(KVTRIE_X)
#undef KVTRIE_X
};

}  // namespace kvtrie

#ifdef KVTRIE_DEV
#include <atomic>
namespace kvtrie {
inline std::atomic<Mutant> active_mutant{Mutant::kNone};
}
#define KVTRIE_MUTANT(name) \
  (::kvtrie::active_mutant.load(std::memory_order_relaxed) == ::kvtrie::Mutant::k_##name)
#else
#define KVTRIE_MUTANT(name) false
#endif
