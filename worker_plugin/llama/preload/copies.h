// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The copies of libllama in this process: one, nearly always. A call that came to the preload
// library goes on to the copy that its caller would have got without it, whichever else was loaded
// since.
//
// The caller is known by its return address: the object that this is in, and what that one depends
// on. A function that ends by calling llama.cpp's may have left its own caller's address there (a
// tail call); where that is in an object that belongs to another copy the wrong one is taken.
// Nothing can be known of callers that depend on no libllama (a main program's plugin with
// functions left open): those get the first copy, as the loader would do.
//
// Threads: any. The loader is asked without a lock of this being held: a library's constructor, which the loader's own
// lock is held for, may call llama.cpp. Costs, as long as there is one copy: a load.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "worker_plugin/llama/calls.h"
#include "worker_plugin/llama/preload/real.h"

namespace kvtrie::llama {

struct Copy {
  LoadedCopy loaded;
  Functions functions{};
};

class Copies {
 public:
  Copies() { (void)look_again(); }

  // Were some loaded since? Then their paths. Cheap when nothing at all was.
  std::vector<std::string> look_again();
  // The first one, which is looked at. Without functions when no libllama is loaded.
  [[nodiscard]] const Copy& first() const { return *first_.load(std::memory_order_acquire); }
  [[nodiscard]] const Copy& of(const void* caller);
  [[nodiscard]] std::size_t count() const { return count_.load(std::memory_order_acquire); }

 private:
  const Copy* find(const void* object, const char* path);

  std::atomic<unsigned long long> looked_at_{0};  // the loader's changes so far, when it was asked for copies last
  std::mutex mutex_;                              // of these
  std::vector<std::unique_ptr<const Copy>> copies_;
  std::map<const void*, const Copy*> by_caller_;  // by the caller's object, as long as none was loaded or unloaded
  unsigned long long callers_known_at_ = 0;
  const Copy none_{};
  std::atomic<const Copy*> first_{&none_};  // constant once there is one
  std::atomic<std::size_t> count_{0};
};

}  // namespace kvtrie::llama
