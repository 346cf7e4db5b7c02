// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// This thread at nice -10 while the object lives, where that is permitted (CAP_SYS_NICE, RLIMIT_NICE); else nothing
// happens. For taking a cache over: until that is done nobody evicts and no worker can attach, and it is a tenth of a
// second of computing per million pages, which on a host without a free CPU would take several times as long. Not
// real-time: whoever shares the CPU still gets a tenth of it. Start no thread meanwhile: it would inherit.
#pragma once

#include <sys/resource.h>

namespace kvtrie {

class RaisedNice {
 public:
  RaisedNice() { (void)::setpriority(PRIO_PROCESS, 0, -10); }
  RaisedNice(const RaisedNice&) = delete;
  RaisedNice& operator=(const RaisedNice&) = delete;
  ~RaisedNice() { (void)::setpriority(PRIO_PROCESS, 0, before_); }

 private:
  const int before_ = ::getpriority(PRIO_PROCESS, 0);
};

}  // namespace kvtrie
