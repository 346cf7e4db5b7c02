// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Real-time priority for the loop's thread while it waits and while it reaps, so that on a host whose CPUs are all
// busy a worker's death is answered at once. For all else, scans of millions of pages among it, the thread is an
// ordinary one again: a real-time thread that computes for a second stalls whoever shares its CPU, an engine's thread
// perhaps. (A thread of its own for reaping would have to stop the evictor's batches from outside; this costs two
// system calls a wake-up.)
//
// SCHED_RR with SCHED_RESET_ON_FORK, so no thread that is made later inherits it. Used by the loop's thread only.
#pragma once

#include "coordinator/failure.h"

namespace kvtrie {

class Realtime {
 public:
  // 1 to 99; 0: never. Tries it, so that what is not permitted is known at the start: the text says what to
  // configure.
  MaybeFailure start(int priority);
  // Both do nothing when it is off. False: not permitted any more (the limit was lowered); it is off from then on.
  bool raise();
  void lower();

 private:
  int priority_ = 0;
};

}  // namespace kvtrie
