// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Sequences of one worker that begin with the same uncached pages, and compute them once. Process-private.
//
// A page that several of them use is *owned* by one, who computes and publishes it, and *borrowed* by the others
// (OwnPage::borrowed); it stands at the same position in each. Borrowers' pages are announced below it at once, since it is a
// Pending page of the same worker (rule 3).
//
// Invariants, while the batch's lock is not held
//   B1  Of those that use an unpublished page, just one owns it.
//   B2  Borrowers know what the owner knows of it: node, state (told after each change).
//   B3  A published page is under the lease of each that uses it: the owner moves their leases before its Live store
//       (rule 6; tests/model/lease_moves.pml, SHARE), and from then on they do not need each other.
//   B4  Who is released hands what others use over to the first of them, which then has it to compute.
//
// Lock: one private robust mutex a batch, level in docs/lock-order.md; taken by calls on its sequences for what they note and
// publish, never while they wait. A thread that ends inside leaves the batch broken: calls on it answer busy, and what its
// sequences hold comes back when the worker detaches.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "shm/robust_mutex.h"
#include "shm/status.h"
#include "worker_plugin/sequence.h"

namespace kvtrie {

class Batch {
 public:
  Batch() { init_ = RobustMutex::init(mutex_); }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  std::vector<Sequence*> members;  // under the lock; in the order of the call

 private:
  friend class BatchLock;
  Status init_;
  pthread_mutex_t mutex_{};
};

// Of the sequence's batch, if it has one. Keeps the batch alive.
class BatchLock {
 public:
  explicit BatchLock(const Sequence& sequence);
  ~BatchLock();
  BatchLock(const BatchLock&) = delete;
  BatchLock& operator=(const BatchLock&) = delete;

  // kBusy: others are in there for long, or a thread ended in there.
  const Status& status() const { return status_; }

 private:
  std::shared_ptr<Batch> batch_;
  Status status_;
};

// Calls visit(member, position) for each other member and each position, in order, where both use the same page. Under the lock.
template <typename Visit>
void for_each_shared_page(const Sequence& sequence, Visit visit) {
  if (!sequence.batch) return;
  for (Sequence* member : sequence.batch->members) {
    if (member == &sequence) continue;
    auto position = static_cast<std::uint32_t>(std::max(sequence.shared.size(), member->shared.size()));
    const std::uint32_t end = std::min(sequence.positions(), member->positions());
    for (; position < end && sequence.page_at(position) == member->page_at(position); ++position) {
      visit(*member, position);
    }
  }
}

}  // namespace kvtrie
