// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/batch.h"

namespace kvtrie {
namespace {

constexpr std::int64_t kBatchWaitNs = 1'000'000'000;  // calls inside take microseconds

}  // namespace

BatchLock::BatchLock(const Sequence& sequence) {
  if (!sequence.batch) return;
  status_ = sequence.batch->init_;
  if (status_) status_ = RobustMutex::acquire(sequence.batch->mutex_, kBatchWaitNs);
  if (status_) {
    batch_ = sequence.batch;
  } else if (status_.code() == Code::kOwnerDied) {
    // Not marked consistent: from here on nobody gets it.
    (void)RobustMutex::release(sequence.batch->mutex_);
  }
  if (!status_) status_ = {Code::kBusy, "another thread is inside a call on a sequence of this batch, or ended there"};
}

BatchLock::~BatchLock() {
  if (batch_) (void)RobustMutex::release(batch_->mutex_);
}

}  // namespace kvtrie
