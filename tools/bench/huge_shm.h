// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A /dev/shm that gives huge pages to who asks for them (kvtried --huge-pages), for the processes that this one
// starts meanwhile, in a mount namespace of its own: the machine's /dev/shm stays as it is mounted. Caches made there are
// attached to through their sockets, like any other.
#pragma once

#include <string>

#include "shm/shared_object.h"

namespace kvtrie::bench {

class HugeShm {
 public:
  // Call it while there is one thread.
  HugeShm();
  ~HugeShm();
  HugeShm(const HugeShm&) = delete;
  HugeShm& operator=(const HugeShm&) = delete;

  // Empty, or why there is none.
  [[nodiscard]] const std::string& problem() const { return problem_; }

 private:
  FileDescriptor before_;  // namespace
  std::string problem_;
};

}  // namespace kvtrie::bench
