// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// For each violation that `verify` can report: a test makes it in a valid segment, and the report
// names that place and invariant, live and at rest.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "shm/verify.h"
#include "tests/shm/repair_support.h"
#include "tests/shm/verify_fixture.h"

namespace kvtrie {
namespace {

using test::CacheFixture;
using test::Child;
using test::Line;
using test::VerifyTest;
using test::in_lines;

struct Violation {
  const char* name;
  Invariant invariant;
  Subject subject;
  std::function<std::uint64_t(CacheFixture&)> make;  // returns the number of its subject
  bool at_rest_only = false;
};

std::ostream& operator<<(std::ostream& out, const Violation& v) { return out << v.name; }

using F = CacheFixture;
std::uint64_t offset_in(F& f, const void* field) {
  return static_cast<std::uint64_t>(static_cast<const std::byte*>(field) - f.segment_->data());
}
std::uint64_t lease_number(F& f, WorkerId worker, std::uint64_t i) {
  return std::uint64_t{worker.value} * f.geometry_.leases_per_worker + i;
}
void take_out(F& f, PageIndex page) {
  f.index_->remove(f.segment_->descriptor(page).prefix_hash.load(), page);
}

std::vector<Violation> violations() {
  using enum Invariant;
  std::vector<Violation> list;
  auto add = [&](const char* name, Invariant invariant, Subject subject,
                 std::function<std::uint64_t(F&)> make, bool at_rest_only = false) {
    list.push_back({name, invariant, subject, std::move(make), at_rest_only});
  };

  // Superblock and unused bytes.
  add("ConstantOverwritten", kConstant, Subject::kSegment, [](F& f) {
    f.block().hash_secret ^= 1;
    return 0;
  });
  add("GeometryOverwrittenAndSealed", kConstant, Subject::kSegment, [](F& f) {
    f.block().page_count = 1U << 20;
    f.block().constant_checksum = constant_checksum(f.block());
    return 0;
  });
  add("Poisoned", kPoisoned, Subject::kSegment, [](F& f) {
    f.segment_->poison(PoisonReason::kOperator);
    return offset_in(f, &f.block().poison_state);
  });
  add("PoisonWithoutReason", kWords, Subject::kSegment, [](F& f) {
    f.block().poison_state.store(1);
    return offset_in(f, &f.block().poison_state);
  });
  add("PoisonReasonUnknown", kWords, Subject::kSegment, [](F& f) {
    f.block().poison_reason.store(99);
    return offset_in(f, &f.block().poison_state);
  });
  add("CoordinatorStateUnknown", kWords, Subject::kSegment, [](F& f) {
    f.block().coordinator_state.store(9);
    return offset_in(f, &f.block().coordinator_state);
  });
  add("EvictorBusyImpossible", kWords, Subject::kSegment, [](F& f) {
    f.block().evictor_busy.store(2);
    return offset_in(f, &f.block().evictor_busy);
  });
  add(
      "EvictorLeftBusy", kWords, Subject::kSegment,
      [](F& f) {
        f.block().evictor_busy.store(1);
        return offset_in(f, &f.block().evictor_busy);
      },
      true);
  add("WatermarkBeyondThePool", kWords, Subject::kSegment, [](F& f) {
    f.block().high_pages.store(f.geometry_.pages + 1);
    return offset_in(f, &f.block().high_pages);
  });
  add("SuperblockReserved", kUnused, Subject::kSegment, [](F& f) {
    f.block().reserved[2000].store(1);
    return offset_in(f, &f.block().reserved[2000]);
  });
  add("SuperblockGapBetweenLines", kUnused, Subject::kSegment, [](F& f) {
    auto* gap = reinterpret_cast<std::byte*>(&f.block().free_hint) + 8;
    *gap = std::byte{1};
    return offset_in(f, gap);
  });
  add("CoordinatorReserved", kUnused, Subject::kSegment, [](F& f) {
    f.block().coordinator_reserved.store(3);
    return offset_in(f, &f.block().coordinator_reserved);
  });
  add("BytesAfterAnArea", kUnused, Subject::kSegment, [](F& f) {
    const AreaEntry& area = f.segment_->layout().areas[2];  // leases: do not fill their last 4 KiB
    std::byte* gap = f.segment_->data() + area.offset + area.stride * area.count;
    EXPECT_LT(offset_in(f, gap), f.segment_->layout().areas[3].offset);
    *gap = std::byte{1};
    return offset_in(f, gap);
  });
  add("BytesAfterTheLastToken", kUnused, Subject::kPage, [](F& f) {
    f.segment_->token_words(f.free_page())[7].store(1);
    return f.free_page().value;
  });
  add("HalfWordAfterTheLastToken", kUnused, Subject::kPage, [](F& f) {
    f.segment_->token_words(f.a_)[2].fetch_or(std::uint64_t{1} << 40);
    return f.a_.value;
  });
  add("TierNotInUse", kUnused, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.a_).depth_class.fetch_or(1U << 28);
    return f.a_.value;
  });
  add("ChecksumNotInUse", kUnused, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.a_).checksum.store(7);
    return f.a_.value;
  });
  add("PlaneMaskOfAWorker", kUnused, Subject::kWorker, [](F& f) {
    f.segment_->worker(f.kMe).plane_mask.store(1);
    return f.kMe.value;
  });
  add("CounterNotInUse", kUnused, Subject::kWorker, [](F& f) {
    f.segment_->worker(f.kMe).counters[kCounters - 1].store(1);
    return f.kMe.value;
  });
  add("WorkerReserved", kUnused, Subject::kWorker, [](F& f) {
    f.segment_->worker(f.kOther).reserved_wait[3].store(1);
    return f.kOther.value;
  });
  add("WorkerRecorderNotInUse", kUnused, Subject::kWorker, [](F& f) {
    f.segment_->worker(f.kMe).recorder_head.store(1);
    return f.kMe.value;
  });
  add("BytesAfterALeaseRow", kUnused, Subject::kWorker, [](F& f) {
    const std::span<LeaseSlot> leases = f.segment_->leases(f.kMe);
    (leases.data() + leases.size())->request_tag.store(1);
    return std::uint64_t{f.kMe.value};
  });
  add("NamespaceReserveNotInUse", kUnused, Subject::kNamespace, [](F& f) {
    f.segment_->name_space(NamespaceId{3}).reserve_pages.store(1);
    return 3;
  });
  add("NamespaceDefaultNotInUse", kUnused, Subject::kNamespace, [](F& f) {
    f.segment_->name_space(NamespaceId{3}).default_retention_ticks.store(1);
    return 3;
  });
  add("NamespaceReserved", kUnused, Subject::kNamespace, [](F& f) {
    f.segment_->name_space(NamespaceId{3}).reserved[5].store(1);
    return 3;
  });
  add("StripeReserved", kUnused, Subject::kStripe, [](F& f) {
    f.segment_->stripe(2).reserved[1].store(1);
    return 2;
  });

  // State words.
  add("UnknownState", kState, Subject::kPage, [](F& f) {
    f.state(f.a_).store(f.word(f.a_).raw | 0xF);
    return f.a_.value;
  });
  add("ReservedStateBits", kState, Subject::kPage, [](F& f) {
    f.state(f.a_).fetch_or(std::uint64_t{1} << 63);
    return f.a_.value;
  });
  add("LivePageWithOwner", kState, Subject::kPage, [](F& f) {
    f.state(f.a_).fetch_or(std::uint64_t{1} << 4);
    return f.a_.value;
  });
  add("WritingOfFreeSlot", kOwner, Subject::kPage, [](F& f) {
    f.state(f.free_page()).store(StateWord::make(PageState::kWriting, 0, WorkerId{3}).raw);
    return f.free_page().value;
  });
  add("PendingOfFreeSlot", kOwner, Subject::kPage, [](F& f) {
    f.state(f.pending_).store(f.word(f.pending_).with(PageState::kPending, WorkerId{3}).raw);
    return f.pending_.value;
  });
  add("WritingOfSlotBeyondTheTable", kOwner, Subject::kPage, [](F& f) {
    f.state(f.free_page()).store(StateWord::make(PageState::kWriting, 0, WorkerId{900}).raw);
    return f.free_page().value;
  });
  add(
      "LeftCondemned", kUnfinished, Subject::kPage,
      [](F& f) {
        f.state(f.c_).store(f.word(f.c_).with(PageState::kCondemned).raw);
        return f.c_.value;
      },
      true);
  add(
      "LeftRetiring", kUnfinished, Subject::kPage,
      [](F& f) {
        take_out(f, f.sibling_);
        f.state(f.sibling_).store(f.word(f.sibling_).with(PageState::kRetiring).raw);
        return f.sibling_.value;
      },
      true);

  // Parents (C2, rule 3).
  add("ParentFreed", kParent, Subject::kPage, [](F& f) {
    take_out(f, f.b_);
    f.state(f.b_).store(f.word(f.b_).recycled().raw);
    return f.c_.value;
  });
  add("ParentRetiringUnderALiveChild", kParent, Subject::kPage, [](F& f) {
    take_out(f, f.b_);
    f.state(f.b_).store(f.word(f.b_).with(PageState::kRetiring).raw);
    return f.c_.value;
  });
  add("ParentRetiringUnderAPendingChild", kPendingParent, Subject::kPage, [](F& f) {
    take_out(f, f.b_);
    f.state(f.b_).store(f.word(f.b_).with(PageState::kRetiring).raw);
    return f.pending_.value;
  });
  add("ParentInItsNextLife", kParent, Subject::kPage, [](F& f) {
    f.state(f.b_).store(StateWord::make(PageState::kLive, f.word(f.b_).generation() + 1).raw);
    return f.c_.value;
  });
  add("ParentOnlyWriting", kParent, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.c_).parent.store(Handle::page(f.writing_, f.word(f.writing_)).raw);
    return f.c_.value;
  });
  add("ParentPendingUnderALiveChild", kParent, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.c_).parent.store(Handle::page(f.pending_, f.word(f.pending_)).raw);
    return f.c_.value;
  });
  add("ParentIsItself", kParent, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.c_).parent.store(Handle::page(f.c_, f.word(f.c_)).raw);
    return f.c_.value;
  });
  add("ParentBeyondThePool", kParent, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.c_).parent.store(Handle::page(PageIndex{kPagesMax - 1}, 0).raw);
    return f.c_.value;
  });
  add("ParentNone", kParent, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.a_).parent.store(0);
    return f.a_.value;
  });
  add("ParentOfNoKind", kParent, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.a_).parent.store(~std::uint64_t{0});
    return f.a_.value;
  });
  add("RootOfNoNamespace", kParent, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.a_).parent.store(Handle::root(NamespaceId{4}, 1).raw);
    return f.a_.value;
  });
  add("RootWithStrayBits", kParent, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.a_).parent.fetch_or(std::uint64_t{1} << 20);
    return f.a_.value;
  });
  add("RootOfTheFuture", kParent, Subject::kPage, [](F& f) {
    f.segment_->name_space(f.namespace_.id).root_generation.store(0);
    return f.a_.value;
  });
  add("PendingBelowAnothersPending", kPendingParent, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.pending_)
        .parent.store(Handle::page(f.other_pending_, f.word(f.other_pending_)).raw);
    return f.pending_.value;
  });
  add("PendingBelowAFreePage", kPendingParent, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.pending_)
        .parent.store(Handle::page(f.free_page(), f.word(f.free_page())).raw);
    return f.pending_.value;
  });
  add("PendingBelowTheFuture", kPendingParent, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.other_pending_)
        .parent.store(Handle::root(f.namespace_.id, f.namespace_.root_generation + 1).raw);
    return f.other_pending_.value;
  });
  add("Cycle", kDepth, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.a_).parent.store(Handle::page(f.c_, f.word(f.c_)).raw);
    return f.a_.value;
  });
  add("DepthSkips", kDepth, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.c_).depth_class.store(5);
    return f.c_.value;
  });
  add("DepthZero", kDepth, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.a_).depth_class.store(0);
    return f.a_.value;
  });
  add("DepthOfARootsChild", kDepth, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.a_).depth_class.store(2);
    return f.a_.value;
  });
  add("ScopeOfAnotherNamespace", kScope, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.c_).scope.store(scope_of(NamespaceId{1}, 1));
    return f.c_.value;
  });
  add("ScopeOfAnotherGeneration", kScope, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.c_).scope.fetch_add(1);
    return f.c_.value;
  });
  add("ScopeIsNotTheRoots", kScope, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.a_).scope.store(scope_of(NamespaceId{2}, 1));
    return f.a_.value;
  });
  add("NamespaceOfPagesClosed", kScope, Subject::kPage, [](F& f) {
    f.segment_->name_space(f.namespace_.id).state.store(0);
    return f.a_.value;
  });

  // Contents (C3, C7).
  add("TokensChanged", kHash, Subject::kPage, [](F& f) {
    f.segment_->token_words(f.c_)[1].fetch_xor(1);
    return f.c_.value;
  });
  add("FirstPagesTokensChanged", kHash, Subject::kPage, [](F& f) {
    f.segment_->token_words(f.a_)[0].fetch_xor(1);
    return f.a_.value;
  });
  add("HashChanged", kHash, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.c_).prefix_hash.fetch_add(1);
    return f.c_.value;
  });
  add("MovedBelowAnotherParent", kHash, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.c_).parent.store(Handle::page(f.sibling_, f.word(f.sibling_)).raw);
    return f.c_.value;
  });
  add("NoTokens", kTokens, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.c_).token_count.store(0);
    return f.c_.value;
  });
  add("TooManyTokens", kTokens, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.c_).token_count.store(6);
    return f.c_.value;
  });
  add("IncompletePageWithAChild", kTokens, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.b_).token_count.store(2);
    return f.b_.value;
  });
  add("ChildHintBeyondThePool", kDescriptor, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.a_).child_hint.store(static_cast<std::uint32_t>(f.geometry_.pages) +
                                                  1);
    return f.a_.value;
  });
  add("PublisherBeyondTheTable", kDescriptor, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.a_).publisher.store(77);
    return f.a_.value;
  });
  add("PublisherNobody", kDescriptor, Subject::kPage, [](F& f) {
    f.segment_->descriptor(f.pending_).publisher.store(0);
    return f.pending_.value;
  });

  // Index.
  add("LiveWithoutEntry", kIndexed, Subject::kPage, [](F& f) {
    take_out(f, f.c_);
    return f.c_.value;
  });
  add("PendingWithoutEntry", kIndexed, Subject::kPage, [](F& f) {
    take_out(f, f.pending_);
    return f.pending_.value;
  });
  add("EntryTwice", kIndexed, Subject::kPage, [](F& f) {
    const IndexPlace place = f.index_->place_of(f.segment_->descriptor(f.c_).prefix_hash.load());
    for (const std::uint64_t b : place.bucket) {
      for (AtomicU64& slot : f.segment_->bucket(b).entries) {
        if (slot.load() != 0) continue;
        StripeIndex::enter(slot, place, f.c_);
        return f.c_.value;
      }
    }
    ADD_FAILURE() << "no room";
    return f.c_.value;
  });
  add("SameKeyTwice", kDuplicate, Subject::kPage, [](F& f) {
    const PageIndex copy = f.copy_of(f.c_);
    return std::max(copy.value, f.c_.value);
  });
  add("SameKeyTwiceBelowTheRoot", kDuplicate, Subject::kPage, [](F& f) {
    const PageIndex copy = f.copy_of(f.other_pending_);
    return std::max(copy.value, f.other_pending_.value);
  });
  add("EntryOfAFreePage", kEntry, Subject::kBucket,
      [](F& f) { return f.enter_somewhere(12345, f.free_page()); });
  add("EntryOfAWritingPage", kEntry, Subject::kBucket, [](F& f) {
    return f.enter_somewhere(f.segment_->descriptor(f.writing_).prefix_hash.load(), f.writing_);
  });
  add(
      "EntryOfARetiringPage", kEntry, Subject::kBucket,
      [](F& f) {
        const std::uint64_t hash = f.segment_->descriptor(f.sibling_).prefix_hash.load();
        f.state(f.sibling_).store(f.word(f.sibling_).with(PageState::kRetiring).raw);
        return f.bucket_of(hash, f.sibling_);
      },
      true);
  add("EntryInAWrongBucket", kEntry, Subject::kBucket, [](F& f) {
    const IndexPlace place = f.index_->place_of(f.segment_->descriptor(f.c_).prefix_hash.load());
    const std::uint64_t wrong = f.other_bucket(place);
    StripeIndex::enter(f.segment_->bucket(wrong).entries[0], place, f.c_);
    return wrong;
  });
  add("EntryWithAnotherTag", kEntry, Subject::kBucket, [](F& f) {
    const std::uint64_t hash = f.segment_->descriptor(f.c_).prefix_hash.load();
    const std::uint64_t bucket = f.bucket_of(hash, f.c_);
    for (AtomicU64& slot : f.segment_->bucket(bucket).entries) {
      if ((slot.load() & kIndexMask) == f.c_.value && slot.load() != 0) {
        slot.fetch_xor(std::uint64_t{1} << 30);
      }
    }
    return bucket;
  });
  add("EntryBeyondThePool", kEntry, Subject::kBucket, [](F& f) {
    f.segment_->bucket(1).entries[7].store(StripeIndex::kValid | 0xFFFFFF);
    return 1;
  });
  add("EntryWithoutValidBit", kEntry, Subject::kBucket, [](F& f) {
    f.segment_->bucket(0).entries[3].store(f.a_.value | std::uint64_t{1} << 30);
    return 0;
  });

  // Leases.
  add("LeaseOfAFreePage", kLease, Subject::kLease, [](F& f) {
    f.segment_->leases(f.kMe)[0].handle.store(
        Handle::page(f.free_page(), f.word(f.free_page())).raw);
    return lease_number(f, f.kMe, 0);
  });
  add("LeaseOfAnEndedLife", kLease, Subject::kLease, [](F& f) {
    f.segment_->leases(f.kMe)[0].handle.store(
        Handle::page(f.a_, f.word(f.a_).generation() + 1).raw);
    return lease_number(f, f.kMe, 0);
  });
  add("LeaseOfARetiringPage", kLease, Subject::kLease, [](F& f) {
    take_out(f, f.sibling_);
    f.segment_->leases(f.kMe)[0].handle.store(Handle::page(f.sibling_, f.word(f.sibling_)).raw);
    f.state(f.sibling_).store(f.word(f.sibling_).with(PageState::kRetiring).raw);
    return lease_number(f, f.kMe, 0);
  });
  add("LeaseOfAnothersPending", kLease, Subject::kLease, [](F& f) {
    f.segment_->leases(f.kMe)[0].handle.store(
        Handle::page(f.other_pending_, f.word(f.other_pending_)).raw);
    return lease_number(f, f.kMe, 0);
  });
  add("LeaseOfAnOwnWriting", kLease, Subject::kLease, [](F& f) {
    f.segment_->leases(f.kMe)[0].handle.store(Handle::page(f.writing_, f.word(f.writing_)).raw);
    return lease_number(f, f.kMe, 0);
  });
  add("LeaseOfARoot", kLease, Subject::kLease, [](F& f) {
    f.segment_->leases(f.kMe)[0].handle.store(f.namespace_.root().raw);
    return lease_number(f, f.kMe, 0);
  });
  add("LeaseBeyondThePool", kLease, Subject::kLease, [](F& f) {
    f.segment_->leases(f.kMe)[0].handle.store(Handle::page(PageIndex{9999}, 0).raw);
    return lease_number(f, f.kMe, 0);
  });
  add("PinOfAFreePage", kLease, Subject::kLease, [](F& f) {
    f.segment_->leases(kCoordinatorSlot)[0].handle.store(
        Handle::page(f.free_page(), f.word(f.free_page())).raw);
    return lease_number(f, kCoordinatorSlot, 0);
  });
  add("LeaseAboveTheHighWaterMark", kHighWater, Subject::kLease, [](F& f) {
    f.segment_->leases(f.kMe)[5].handle.store(Handle::page(f.a_, f.word(f.a_)).raw);
    return lease_number(f, f.kMe, 5);
  });
  add("HighWaterMarkBeyondTheSlots", kHighWater, Subject::kWorker, [](F& f) {
    f.segment_->worker(f.kMe).leases_high_water.store(f.geometry_.leases_per_worker + 1);
    return f.kMe.value;
  });

  // Free pages.
  add("HeldCountTooLow", kHeld, Subject::kPage, [](F& f) {
    f.segment_->held_count(f.kMe, f.pending_.value / kChunkPages).fetch_sub(1);
    return std::min(f.pending_.value, f.writing_.value);
  });
  add(
      "HeldCountTooHigh", kHeldExact, Subject::kWorker,
      [](F& f) {
        f.segment_->held_count(f.kMe, 2).fetch_add(1);
        return f.kMe.value;
      },
      true);
  add("FreePageWithoutBit", kLost, Subject::kPage, [](F& f) {
    const PageIndex page{3 * kChunkPages + 1};
    f.segment_->free_bits(3).fetch_and(~std::uint64_t{2});
    return page.value;
  });
  add(
      "FreePageWithoutBitInAHeldChunk", kLost, Subject::kPage,
      [](F& f) {
        const PageIndex page = f.free_page();
        f.segment_->free_bits(page.value / kChunkPages)
            .fetch_and(~(std::uint64_t{1} << page.value % kChunkPages));
        f.segment_->held_count(f.kMe, page.value / kChunkPages).fetch_add(1);
        return page.value;
      },
      true);
  add("BitBeyondTheLastPage", kFreeBits, Subject::kChunk, [](F& f) {
    const std::uint32_t last = f.segment_->chunk_count() - 1;
    f.segment_->free_bits(last).fetch_or(std::uint64_t{1} << 63);
    return last;
  });
  add("AnnounceCounterBelowItsChildren", kCounter, Subject::kPage, [](F& f) {
    f.segment_->announce_counter(f.a_).store(1);
    return f.a_.value;
  });

  // Workers.
  add("UnknownSlotState", kSlot, Subject::kWorker, [](F& f) {
    f.segment_->worker(WorkerId{3}).slot_state.store(9);
    return 3;
  });
  add("CoordinatorSlotGiven", kSlot, Subject::kWorker, [](F& f) {
    f.segment_->worker(kCoordinatorSlot)
        .slot_state.store(SlotWord::make(SlotState::kActive, 1).raw);
    return 0;
  });
  add("ActiveWithoutPid", kIdentity, Subject::kWorker, [](F& f) {
    f.segment_->worker(f.kMe).pid.store(0);
    return f.kMe.value;
  });
  add("ActiveWithoutStartTime", kIdentity, Subject::kWorker, [](F& f) {
    f.segment_->worker(f.kMe).start_time.store(0);
    return f.kMe.value;
  });
  add("ActiveWithoutIncarnation", kIdentity, Subject::kWorker, [](F& f) {
    f.segment_->worker(f.kMe).slot_state.store(SlotWord::make(SlotState::kActive, 0).raw);
    return f.kMe.value;
  });
  add("UnknownRole", kIdentity, Subject::kWorker, [](F& f) {
    f.segment_->worker(f.kMe).role.store(17);
    return f.kMe.value;
  });
  add("NameWithoutEnd", kIdentity, Subject::kWorker, [](F& f) {
    std::memset(f.segment_->worker(f.kMe).name, 'x', 64);
    return f.kMe.value;
  });
  add(
      "FreeSlotWithIdentity", kIdentity, Subject::kWorker,
      [](F& f) {
        f.segment_->worker(WorkerId{3}).pid.store(1);
        return 3;
      },
      true);
  add("FreeSlotWithLease", kSlotHolds, Subject::kLease, [](F& f) {
    f.segment_->worker(WorkerId{3}).leases_high_water.store(1);
    f.segment_->leases(WorkerId{3})[0].handle.store(Handle::page(f.a_, f.word(f.a_)).raw);
    return lease_number(f, WorkerId{3}, 0);
  });
  add("FreeSlotWithHeldCount", kSlotHolds, Subject::kWorker, [](F& f) {
    f.segment_->held_count(WorkerId{3}, 1).store(1);
    return 3;
  });
  add("FreeSlotThatWaits", kSlotHolds, Subject::kWorker, [](F& f) {
    f.segment_->worker(WorkerId{3}).pages_wanted.store(4);
    return 3;
  });
  add("FreeSlotWithTicket", kSlotHolds, Subject::kWorker, [](F& f) {
    f.segment_->worker(WorkerId{3}).wait_ticket.store(4);
    return 3;
  });
  add("FreeSlotSeenWaiting", kSlotHolds, Subject::kWorker, [](F& f) {
    f.segment_->worker(WorkerId{3}).wait_seen.store(4);
    return 3;
  });
  add("PinReasonWithoutEnd", kPin, Subject::kLease, [](F& f) {
    std::memset(f.segment_->pins()[2].reason, 'x', sizeof(PinRecord::reason));
    return 2;
  });

  // Namespaces and locks.
  add("UnknownNamespaceState", kNamespace, Subject::kNamespace, [](F& f) {
    f.segment_->name_space(NamespaceId{2}).state.store(5);
    return 2;
  });
  add("NamespaceOfGenerationZero", kNamespace, Subject::kNamespace, [](F& f) {
    f.segment_->name_space(f.namespace_.id).root_generation.store(0);
    return f.namespace_.id.value;
  });
  add("NamespaceGenerationTooLarge", kNamespace, Subject::kNamespace, [](F& f) {
    f.segment_->name_space(f.namespace_.id).root_generation.store(std::uint64_t{1} << 38);
    return f.namespace_.id.value;
  });
  add("FieldsTooLong", kNamespace, Subject::kNamespace, [](F& f) {
    f.segment_->name_space(f.namespace_.id).fields_bytes.store(kNamespaceDescriptorMax + 1);
    return f.namespace_.id.value;
  });
  add("FieldsNotCanonical", kNamespace, Subject::kNamespace, [](F& f) {
    f.segment_->name_space(f.namespace_.id).fields[0] = '=';
    return f.namespace_.id.value;
  });
  add("FieldsChanged", kNamespace, Subject::kNamespace, [](F& f) {
    f.segment_->name_space(f.namespace_.id).fields[6] = 'z';
    return f.namespace_.id.value;
  });
  add("FieldsHashChanged", kNamespace, Subject::kNamespace, [](F& f) {
    f.segment_->name_space(f.namespace_.id).fields_hash.fetch_add(1);
    return f.namespace_.id.value;
  });
  add("HashSeedChanged", kNamespace, Subject::kNamespace, [](F& f) {
    f.segment_->name_space(f.namespace_.id).hash_seed.fetch_add(1);
    return f.namespace_.id.value;
  });
  add("BytesAfterTheFields", kNamespace, Subject::kNamespace, [](F& f) {
    f.segment_->name_space(f.namespace_.id).fields[700] = 'z';
    return f.namespace_.id.value;
  });
  add("LabelWithoutEnd", kNamespace, Subject::kNamespace, [](F& f) {
    std::memset(f.segment_->name_space(NamespaceId{3}).label, 'x', 64);
    return 3;
  });
  add(
      "FreeNamespaceWithFields", kNamespace, Subject::kNamespace,
      [](F& f) {
        f.segment_->name_space(NamespaceId{3}).fields_bytes.store(9);
        return 3;
      },
      true);
  add("NamespaceTwice", kNamespaceTwice, Subject::kNamespace, [](F& f) {
    NamespaceRecord& from = f.segment_->name_space(f.namespace_.id);
    NamespaceRecord& to = f.segment_->name_space(NamespaceId{3});
    std::memcpy(static_cast<void*>(&to), static_cast<const void*>(&from), sizeof to);
    return 3;
  });
  add("LockOfAnotherKind", kLock, Subject::kStripe, [](F& f) {
    f.segment_->stripe(1).mutex.__data.__kind = 0;
    return 1;
  });
  add("LockNotRecoverable", kLock, Subject::kStripe, [](F& f) {
    f.segment_->stripe(3).mutex.__data.__owner = 0x7FFFFFFE;
    return 3;
  });
  return list;
}

class VerifyViolationTest : public VerifyTest, public testing::WithParamInterface<Violation> {};

TEST_P(VerifyViolationTest, IsReportedWithItsPlaceAndInvariant) {
  const Violation& violation = GetParam();
  const std::uint64_t number = violation.make(*this);
  for (const VerifyOptions& options : {at_rest(), live()}) {
    const VerifyReport report = verify(*segment_, options);
    const auto found = std::ranges::find_if(report.findings, [&](const Finding& finding) {
      return finding.invariant == violation.invariant && finding.subject == violation.subject &&
             finding.number == number;
    });
    const bool expected = options.at_rest || !violation.at_rest_only;
    EXPECT_EQ(found != report.findings.end(), expected)
        << (options.at_rest ? "at rest, " : "live, ") << name_of(violation.invariant) << " "
        << name_of(violation.subject) << " " << number << " in: " << in_lines(report);
    EXPECT_EQ(report.findings_total, report.findings.size());
  }
}

// A repair makes it sound, and keeps every page but those that changed and what hangs on them.
TEST_P(VerifyViolationTest, IsRepaired) {
  const std::vector<std::byte> before(segment_->data(), segment_->data() + bytes_);
  const Violation& violation = GetParam();
  violation.make(*this);
  if (violation.invariant == Invariant::kConstant) return;  // it cannot be opened
  const test::Repaired made = test::repaired(*segment_);
  EXPECT_EQ(test::findings_in(*made.segment), "");
  const auto changed = [&](const void* record, std::size_t bytes) {
    return std::memcmp(record, before.data() + offset_in(*this, record), bytes) != 0;
  };
  const NamespaceRecord& record = segment_->name_space(namespace_.id);
  const bool unused_alone = violation.invariant == Invariant::kUnused;
  const bool gone = changed(&record, sizeof record);
  for (const std::vector<PageIndex>& path : {std::vector{a_, b_, c_}, {a_, sibling_}, {short_}}) {
    bool above = gone;
    for (const PageIndex page : path) {
      above |= changed(&segment_->descriptor(page), segment_->layout().descriptor_stride);
      EXPECT_TRUE(above || made.keeps(page)) << "page " << page.value << " "
                                             << why_of(made.plan.fate[page.value]);
      EXPECT_TRUE(!unused_alone || made.keeps(page)) << "unused bytes cost nothing";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Each, VerifyViolationTest, testing::ValuesIn(violations()),
                         [](const auto& each) { return std::string(each.param.name); });

TEST(VerifyCoverageTest, EveryInvariantHasAViolation) {
  std::set<Invariant> made;
  for (const Violation& violation : violations())
    made.insert(violation.invariant);
  for (std::size_t i = 0; i < kInvariants; ++i) {
    EXPECT_TRUE(made.contains(static_cast<Invariant>(i))) << name_of(static_cast<Invariant>(i));
  }
}

TEST(VerifyCoverageTest, InvariantsHaveNamesOfTheirOwn) {
  std::set<std::string> names;
  for (std::size_t i = 0; i < kInvariants; ++i) {
    EXPECT_TRUE(names.insert(name_of(static_cast<Invariant>(i))).second);
    EXPECT_STRNE(meaning_of(static_cast<Invariant>(i)), "");
  }
}

}  // namespace
}  // namespace kvtrie
