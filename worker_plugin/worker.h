// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The worker's side of the protocol: begin, allocate, announce, publish, release over one mapped segment.
// kvtrie.h wraps it for C; attach_client.h gets the segment from the coordinator.
//
// Thread-safe for calls on different sequences. No call takes a lock but the stripe of a page that is announced;
// none makes a system call but to wake the coordinator when pages run low, and to wait where that was asked for.
//
// Crash: whatever a call has done in shared memory stands in the headers of the parts that it calls; a worker that
// dies here leaves Writing and Pending pages, held counts that are too high, leases, a wait. reap_worker takes all.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "shm/free_pages.h"
#include "shm/page_table.h"
#include "shm/segment.h"
#include "shm/status.h"
#include "shm/stripe_index.h"
#include "shm/waiting.h"
#include "worker_plugin/lease_slots.h"
#include "worker_plugin/sequence.h"

namespace kvtrie {

struct BeginReport {
  std::uint32_t cached_pages = 0;
  bool pending_next = false;
};

struct PublishReport {
  std::uint32_t pages_published = 0;
  std::uint32_t pages_private = 0;
};

// A namespace as this worker knows it; compared with the record at every begin.
struct NamespaceRef {
  NamespaceId id;
  std::uint64_t fields_hash = 0;
};

class Worker {
 public:
  // The slot is Active and this process's. `segment` outlives the worker.
  Worker(const Segment& segment, WorkerId slot);

  // Starts `sequence` (empty or formerly released; its vectors are used again). On failure it holds nothing.
  Status begin(const NamespaceRef& name_space, std::span<const std::uint32_t> tokens,
               const SequenceOptions& options, Sequence& sequence, BeginReport& report);
  void append(Sequence& sequence, std::span<const std::uint32_t> tokens);
  // Pages for `total_tokens` tokens: all or none. Waits at most wait_ns.
  Status allocate(Sequence& sequence, std::uint64_t total_tokens, std::int64_t wait_ns);
  Status publish(Sequence& sequence, std::uint64_t token_count, PublishReport& report);
  void release(Sequence& sequence);

  const Segment& segment() const { return segment_; }
  WorkerId slot() const { return slot_; }
  // Once corrupt bytes were met, begins miss: the segment is not to be trusted.
  bool distrusts() const { return distrusts_.load(std::memory_order_relaxed); }

 private:
  void count(Counter counter, std::uint64_t by = 1) const { segment_.count(slot_, counter, by); }
  TouchWord touch_now(std::uint32_t tick, std::uint8_t touches, std::uint8_t hint);
  bool read_root(const NamespaceRef& name_space, Sequence& sequence) const;
  std::uint32_t lease_deepest(Sequence& sequence);
  void touch_page(PageIndex page, std::uint32_t tick, std::uint8_t hint);
  Status take_pages(std::uint32_t wanted, PageIndex near, Turn turn, std::int64_t wait_ns,
                    std::vector<PageIndex>& out);
  bool try_take(std::uint32_t wanted, PageIndex near, Turn turn, std::vector<PageIndex>& out);
  Status wait_for_pages(std::uint32_t wanted, PageIndex near, Turn turn, std::int64_t wait_ns,
                        std::vector<PageIndex>& out);
  void ring_if_low();
  PageNode node_for(const Sequence& sequence, std::uint32_t position, std::uint32_t tick);
  Status announce_full(Sequence& sequence, std::uint32_t end, bool link_live);
  bool link_to(Sequence& sequence, std::uint32_t position, const AnnounceResult& found);
  void publish_group(Sequence& sequence, std::uint32_t end, PublishReport& report);
  Status health() const;

  const Segment& segment_;
  WorkerId slot_;
  FreePages free_pages_;
  PageTable pages_;
  StripeIndex index_;
  LeaseSlots leases_;
  std::atomic<std::uint32_t> cursor_;
  std::atomic<std::uint64_t> last_stamp_{0};  // tick 32 | order 16 of the last touch
  std::atomic<bool> distrusts_{false};
  std::timed_mutex wait_turn_;  // one wait slot a worker: its threads take turns
};

}  // namespace kvtrie
