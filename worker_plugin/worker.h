// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The worker's side of the protocol over one mapped segment: what kvtrie.h offers, without its arguments' checks.
// attach_client.h gets the segment from the coordinator.
//
//   worker.cc           the start of a sequence: match, lease, fork, probe
//   worker_wait.cc      waiting for pages that other workers compute
//   worker_allocate.cc  free pages, also for those who wait for some; going on from an incomplete page
//   worker_publish.cc   announce, publish, give back, release
//   worker_batch.cc     many sequences at once
//
// Thread-safe for calls on different sequences; sequences of one batch lock their batch (batch.h). No call takes a lock
// but that and the stripe of a page that is announced; none makes a system call but to wake who waits for what it has done,
// and to wait where that was asked for.
//
// Crash: whatever a call has done in shared memory stands in the headers of the parts that it calls; a worker that
// dies here leaves Writing and Pending pages, held counts that are too high, leases, a wait. reap_worker takes all.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "shm/announce.h"
#include "shm/free_pages.h"
#include "shm/lease.h"
#include "shm/page_table.h"
#include "shm/segment.h"
#include "shm/status.h"
#include "shm/stripe_index.h"
#include "shm/waiting.h"
#include "worker_plugin/lease_slots.h"
#include "worker_plugin/private_mutex.h"
#include "worker_plugin/sequence.h"
#include "worker_plugin/walk.h"

namespace kvtrie {

struct BeginReport {
  std::uint32_t cached_pages = 0;
  std::uint32_t partial_tokens = 0;     // of the next page, in a page that may be copied
  Handle pending;                       // the next page, which another computes; none: nobody does
  std::uint32_t pending_pages = 0;      // announced from there on
  std::uint32_t pending_age_ticks = 0;  // of the first one's announcement
};

struct PublishReport {
  std::uint32_t published = 0;  // positions from the start that all can match now
  std::uint32_t pages_published = 0;
  std::uint32_t pages_private = 0;
  std::uint32_t incomplete_tokens = 0;  // of the last page, found by others now
};

// A namespace as this worker knows it; compared with the record at every begin.
struct NamespaceRef {
  NamespaceId id;
  std::uint64_t fields_hash = 0;
};

// Bytes of one page that belong into another, before anybody writes there.
struct PageCopy {
  PageIndex from;
  PageIndex to;
};

// One sequence that a batch begins.
struct BatchItem {
  NamespaceRef name_space;
  std::span<const std::uint32_t> tokens;
  SequenceOptions options;
  std::uint64_t total_tokens = 0;
  Sequence* sequence = nullptr;
  BeginReport report = {};
  std::uint32_t borrowed_pages = 0;                // behind the cached ones: other items compute them
  std::vector<std::uint32_t> computed_by = {};     // of these, by position: the item
};

// Checksum of the bytes that a page has now, never 0. Any thread.
using PageSum = std::function<std::uint64_t(PageIndex)>;

class Worker {
 public:
  // The slot is Active and this process's. `segment` outlives the worker. With `page_sum`, pages get checksums when they
  // are published, and those that have one are compared with it before they are handed out.
  Worker(const Segment& segment, WorkerId slot, PageSum page_sum = {});

  // Starts `sequence` (empty or formerly released; its vectors are used again). On failure it holds nothing.
  Status begin(const NamespaceRef& name_space, std::span<const std::uint32_t> tokens,
               const SequenceOptions& options, Sequence& sequence, BeginReport& report);
  // Begins and allocates for all items or none; who finds no room holds nothing until it has some. Waits at most wait_ns.
  Status prepare_batch(std::span<BatchItem> items, std::int64_t wait_ns);
  // Starts `child` with what `parent` has: its published pages are shared, its others get copies, which the caller makes
  // before it lets anybody into one of the two.
  Status fork(Sequence& parent, std::uint32_t request_tag, std::int64_t wait_ns, Sequence& child,
              std::vector<PageCopy>& copies);
  // Matches on as pages come that others compute: until none is under way or wait_ns is over (kTimeout). The report is of
  // what is matched now, whatever the status. For a sequence without own pages.
  Status wait_for_pending(Sequence& sequence, std::int64_t wait_ns, BeginReport& report);
  void append(Sequence& sequence, std::span<const std::uint32_t> tokens);
  // Pages for `total_tokens` tokens: all or none. Waits at most wait_ns.
  Status allocate(Sequence& sequence, std::uint64_t total_tokens, std::int64_t wait_ns);
  // What must be copied before the sequence's next write, once there is a page to copy to. Then copied() ends the claim
  // on what it was copied from.
  std::optional<PageCopy> copy_due(const Sequence& sequence) const;
  void copied(Sequence& sequence);
  // The caller copies himself. The claim lasts until he publishes, since nobody is told when he has.
  void leave_copy_to_caller(Sequence& sequence) { sequence.source.callers = true; }
  void count_copy() const { count(Counter::kPagesCopied); }
  Status publish(Sequence& sequence, std::uint64_t token_count, PublishReport& report);
  // The same, and the page behind the last whole one with the tokens that it has.
  Status publish_incomplete(Sequence& sequence, std::uint64_t token_count, PublishReport& report);
  // Own unpublished pages of positions [first, first + count). kInvalid says what stands against it.
  Status give_back(Sequence& sequence, std::uint32_t first, std::uint32_t count);
  void release(Sequence& sequence);

  // Estimates, without a lease. kStale as begin.
  Status probe(const NamespaceRef& name_space, std::span<const std::uint32_t> tokens,
               BeginReport& report) const;
  Status probe_hashes(const NamespaceRef& name_space, std::span<const std::uint64_t> prefix_hashes,
                      std::uint32_t& cached_pages) const;
  // Chained hashes of the whole pages of `tokens`; as many as `prefix_hashes` has room for.
  Status hash_tokens(const NamespaceRef& name_space, std::span<const std::uint32_t> tokens,
                     std::span<std::uint64_t> prefix_hashes) const;

  const Segment& segment() const { return segment_; }
  WorkerId slot() const { return slot_; }
  // Once corrupt bytes were met, begins miss: the segment is not to be trusted.
  bool distrusts() const { return distrusts_.load(std::memory_order_relaxed); }

 private:
  struct Root {
    std::uint64_t generation = 0;
    std::uint64_t hash = 0;
  };
  struct Stamp {
    std::uint32_t tick = 0;
    TouchWord touch;
  };

  // Whether the page has no checksum, or the bytes of its checksum; else it becomes the first to be evicted. Counted.
  bool bytes_are_right(PageIndex page) const;
  // How many pages of `path` from the start have; the first `known` are not looked at.
  std::uint32_t right_pages(std::span<const Handle> path, std::uint32_t known) const;

  void count(Counter counter, std::uint64_t by = 1) const { segment_.count(slot_, counter, by); }
  Status health() const;
  Status flushed() const;
  TouchWord touch_now(std::uint32_t tick, std::uint8_t touches, std::uint8_t hint);
  Stamp stamp_now(const Sequence& sequence);
  void touch_page(PageIndex page, std::uint32_t tick, std::uint8_t hint);

  // worker.cc
  std::optional<Root> read_root(const NamespaceRef& name_space) const;
  bool root_is_current(const Sequence& sequence) const;
  std::optional<std::uint32_t> take_slot(std::uint32_t request_tag, std::uint32_t tick, bool spare = false);
  void give_slot_back(std::uint32_t slot);
  LeaseOutcome lease_in(std::uint32_t slot, Handle page);
  enum class Bytes : std::uint8_t { kAsTheyAre, kCompare };  // with the page's checksum, under the lease
  bool move_lease(Sequence& sequence, Handle page, Bytes bytes = Bytes::kAsTheyAre);
  Status match(const NamespaceRef& name_space, std::optional<Root> root, std::span<const std::uint32_t> tokens,
               std::uint32_t tick, Sequence& sequence, BeginReport& report);
  Status walk_on(Sequence& sequence, std::span<const std::uint32_t> tokens, BeginReport& report);
  std::uint32_t lease_deepest(std::uint32_t slot, std::span<const Handle> path, std::uint32_t above);
  std::uint32_t lease_any(std::uint32_t slot, std::span<const Handle> path, std::uint32_t above);
  void find_partial(Sequence& sequence, std::span<const std::uint32_t> rest, std::uint32_t tick, BeginReport& report);
  void drop_source(Sequence& sequence);

  // worker_fork.cc
  bool fork_lease(std::uint32_t slot, Handle page);
  void fill_child(const Sequence& parent, std::uint32_t request_tag, std::uint32_t slot,
                  std::vector<PageIndex>& taken, Sequence& child, std::vector<PageCopy>& copies);

  // worker_wait.cc
  Status match_on(Sequence& sequence, BeginReport& report);
  void take_matched(Sequence& sequence, std::uint32_t pages);

  // worker_batch.cc
  Status begin_batch(std::span<BatchItem> items, std::uint64_t& wanted);
  bool add_pages(std::uint64_t wanted, std::vector<PageIndex>& taken);
  Status fill_batch(std::span<BatchItem> items, std::vector<PageIndex>& taken,
                    const std::shared_ptr<Batch>& batch);
  void lease_for_borrowers(const Sequence& sequence, std::uint32_t first, std::uint32_t end);
  void tell_borrowers(const Sequence& sequence);
  void leave_batch(Sequence& sequence);

  // worker_allocate.cc
  bool try_take(std::uint32_t wanted, PageIndex near, Turn turn, std::vector<PageIndex>& out);
  Status take_pages(std::uint32_t wanted, PageIndex near, Turn turn, std::int64_t wait_ns,
                    std::vector<PageIndex>& out);
  Status wait_for_pages(std::uint32_t wanted, PageIndex near, Turn turn, std::uint64_t ticket,
                        std::int64_t wait_ns, std::vector<PageIndex>& out);
  void ring_if_low();
  void ring_for_waiters();
  std::uint32_t incomplete_tokens(const Sequence& sequence) const;
  Status leave_incomplete(Sequence& sequence, PageIndex page);

  // worker_publish.cc
  class HashesAhead;
  std::uint64_t hash_above(const Sequence& sequence, std::uint32_t position) const;
  AnnounceResult announce(Sequence& sequence, std::uint32_t position, std::span<const std::uint32_t> tokens,
                          std::uint64_t prefix_hash, const Stamp& stamp);
  Status announce_full(Sequence& sequence, std::uint32_t end, bool link_live);
  bool announce_next(Sequence& sequence, const Stamp& stamp, bool link_live, HashesAhead& hashes,
                     std::uint64_t& announced, Status& status);
  bool link_to(Sequence& sequence, std::uint32_t position, Handle other);
  void go_live(Sequence& sequence, std::uint32_t position, const Stamp& stamp);
  bool is_mine(PageIndex page, PageState state) const;
  Status publish_group(Sequence& sequence, std::uint32_t end, PublishReport& report);
  Status publish_locked(Sequence& sequence, std::uint64_t token_count, PublishReport& report);
  static bool is_shared_in_batch(const Sequence& sequence, std::uint32_t position);
  Status publish_last(Sequence& sequence, std::uint32_t tokens, PublishReport& report);
  void free_own(std::span<const PageIndex> pages);
  const char* give_back_problem(const Sequence& sequence, std::uint32_t first, std::uint32_t end) const;

  const Segment& segment_;
  WorkerId slot_;
  const PageSum page_sum_;
  FreePages free_pages_;
  PageTable pages_;
  StripeIndex index_;
  LeaseSlots leases_;
  Atomic<std::uint32_t> cursor_;
  Atomic<std::uint64_t> last_stamp_{0};  // tick 32 | order 16 of the last touch
  mutable Atomic<bool> distrusts_{false};
  PrivateMutex wait_turn_;  // one wait slot a worker: its threads take turns; who has it writes the slot anew
};

}  // namespace kvtrie
