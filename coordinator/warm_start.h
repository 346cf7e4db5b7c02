// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtried --load FILE`: a cache that has to be made starts with the pages of a save file. What a
// load does with what it finds is the table in docs/save-format.md.
//
// Everything that refuses is looked at in open(), before anything is made or given up. load() fills
// the segment while it has no name: whoever opens the cache finds all of it, and a death leaves
// what any build leaves (cache_store.h: store.after_pools_made).
//
// Loading blocks the start, about as fast as the memory is written; workers cannot attach
// meanwhile. The log says every two seconds how far it is.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "coordinator/failure.h"
#include "coordinator/log.h"
#include "coordinator/options.h"
#include "save/plane_bytes.h"
#include "save/saved_file.h"
#include "shm/segment.h"

namespace kvtrie {

class WarmStart {
 public:
  // Of options.load; without one there is nothing to load.
  static MaybeFailure open(const Options& options, const Geometry& geometry, WarmStart& start);

  // Into a segment and planes that were just made. `stopped`: a
  // signal came; the failure's exit code is 0 then.
  MaybeFailure load(const Segment& segment, const PlaneBytes& planes,
                    const std::function<bool()>& stopped, const LogSink& log);

 private:
  std::string cache_;
  std::string path_;
  std::optional<SavedFile> file_;
};

}  // namespace kvtrie
