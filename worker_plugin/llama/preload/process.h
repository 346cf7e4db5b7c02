// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The preload library's state in this process: settings from the environment, the libllama that it stands before,
// models and contexts of the program, and the report.
//
//   KVTRIE_CACHE          cache to share prefixes through; without it every call goes straight to llama.cpp
//   KVTRIE_DIR            its directory, of kvtried --dir (the default one)
//   KVTRIE_TENANT         share among processes with the same value only
//   KVTRIE_LLAMA_UNIFY    1: contexts whose sequences have KV caches of their own get one for all of them
//   KVTRIE_LLAMA_WAIT     for what another process computes just now: never, always, or auto (the default): while that
//                         is likely to cost less than to compute it, too
//   KVTRIE_LLAMA_HASHES   folder where hashes of model files are remembered; empty: none ($XDG_CACHE_HOME/kvtrie,
//                         ~/.cache/kvtrie)
//   KVTRIE_LLAMA_DUMP     debug dumps before each llama_decode (docs/dumps.md): DIR[,raw][,after][,tag=N][,max=N],
//                         where a sequence's tag is its id
//   KVTRIE_LLAMA_REPORT   file for counters as JSON, %p in it stands for the process id; written when a context is
//                         freed and at the end
#pragma once

#include <llama.h>
#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "dump/dumper.h"
#include "worker_plugin/llama/preload/copies.h"
#include "worker_plugin/llama/preload/real.h"
#include "worker_plugin/llama/preload/tracked_context.h"

namespace kvtrie::llama {

struct PreloadSettings {
  std::string cache;
  std::string directory;
  std::string tenant;
  std::string hashes;
  std::string report;
  bool unify = false;
  std::string wait;  // never, auto, always
  std::string dump;
};
PreloadSettings settings_from_environment();

// Whether this thread is inside a call of the preload library: what llama.cpp then calls of itself goes straight on.
class Inside {
 public:
  Inside() { ++depth_; }
  ~Inside() { --depth_; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  static bool already() { return depth_ > 0; }

 private:
  static thread_local int depth_;
};

class Process {
 public:
  static Process& get() noexcept;
  // NULL: no call of llama.cpp came yet.
  static Process* existing();

  [[nodiscard]] const Real& real() const { return real_; }
  [[nodiscard]] std::size_t devices_max() const { return calls_.llama_max_devices(); }
  // The libllama that a call goes to which came from there.
  const Copy& copy_for(Place place, const void* caller) noexcept;
  // Whether this call is looked at: a cache is named, the libllama is the one that this was built for, and llama.cpp
  // does not call itself.
  [[nodiscard]] bool looks_at(const Copy& copy) const {
    return on_ && !Inside::already() && &copy == &copies_.first();
  }

  // None of these throws; what cannot be remembered is not shared.
  void add_model(const llama_model* model, ModelSource source) noexcept;
  void remove_model(const llama_model* model) noexcept;
  // Its weights: nothing of it is shared any more.
  void model_changes(const llama_model* model, const char* why) noexcept;
  llama_context* make_context(llama_model* model, const llama_context_params& params) noexcept;
  // Before llama_free.
  void remove_context(const llama_context* context) noexcept;
  // NULL: not one that is looked at. Valid until it is freed, as the llama_context.
  TrackedContext* find(const llama_context* context);
  TrackedContext* find(llama_memory_t memory);
  void write_report() noexcept;
  void say_once(const std::string& what, const char* of = "prefixes are not shared: ");

 private:
  Process();
  void keep_context(llama_context* context, std::unique_ptr<TrackedContext> tracked);
  static void say(const std::string& what) { get().say_once(what); }
  static void say_of_dumps(const std::string& what) { get().say_once(what, ""); }
  std::unique_ptr<TrackedContext> track(llama_context* context) const;
  SharedCache* cache();
  llama_context* share_context(llama_model* model, const llama_context_params& params);

  const PreloadSettings settings_;
  Copies copies_;
  const Real real_{copies_.first().functions};
  Calls calls_;
  bool on_ = false;
  std::optional<dump::Dumper> dumper_;  // of all contexts

  const pid_t made_in_;  // a forked child reports nothing
  std::mutex saying_;    // of this; taken last
  std::set<std::string> said_;
  std::mutex making_;  // of these; may be held long: files are hashed
  std::map<const llama_model*, ModelSource> models_;
  std::map<const llama_model*, const char*> changed_;  // why
  std::optional<SharedCache> cache_;
  std::mutex mutex_;  // of these; taken after making_
  std::map<const llama_context*, std::unique_ptr<TrackedContext>> contexts_;
  std::vector<std::string> ended_;  // reports of contexts that are gone
};

}  // namespace kvtrie::llama
