// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// For calls that talk to the coordinator or close descriptors: these are cancellation points of POSIX, and a cancelled
// thread is unwound, which would end the process at the first noexcept. A pthread_cancel waits for the call's end.
#pragma once

#include <pthread.h>

namespace kvtrie {

class Uncancelled {
 public:
  Uncancelled() { ::pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
  ~Uncancelled() { ::pthread_setcancelstate(before_, nullptr); }
  Uncancelled(const Uncancelled&) = delete;
  Uncancelled& operator=(const Uncancelled&) = delete;

 private:
  int before_ = PTHREAD_CANCEL_ENABLE;
};

}  // namespace kvtrie
