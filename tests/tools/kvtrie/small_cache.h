// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A small cache of a test's own, made without coordinator and plugin by the page operations of shm:
// objects in /dev/shm under a name that nobody else uses, gone when the test ends.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "shm/ids.h"
#include "shm/segment.h"
#include "tools/kvtrie/outcome.h"

namespace kvtrie::test {

struct SmallCacheOptions {
  Geometry geometry{.pages = 256,
                    .tokens_per_page = 4,
                    .page_bytes = 64,
                    .planes = 2,
                    .workers = 3,
                    .leases_per_worker = 8,
                    .namespaces = 4,
                    .stripes = 4};
  ClockKind clock = ClockKind::kDriven;  // so that ages are what the test says
  bool this_boot = true;
  bool this_pid_namespace = true;
  DeviceKind device = DeviceKind::kHost;
  bool page_checksums = false;
};

// The end of a path: what the next page hangs on.
struct PathEnd {
  Handle handle;
  std::uint64_t hash = 0;
  std::uint32_t depth = 0;
  NamespaceId name_space;
  std::uint64_t root_generation = 0;
};

class SmallCache {
 public:
  using Options = SmallCacheOptions;
  explicit SmallCache(const Options& options = {});
  ~SmallCache();
  SmallCache(const SmallCache&) = delete;
  SmallCache& operator=(const SmallCache&) = delete;

  const std::string& name() const { return name_; }
  const Segment& segment() const { return *segment_; }
  std::string segment_path() const;

  PathEnd open_namespace(const std::string& label);
  // This process, or one that says to be another.
  WorkerId attach(const std::string& worker, std::uint32_t pid = 0, std::uint64_t start_time = 1);
  // Pages below `end`, Live (or Pending), each with tokens counted up from `first_token`; moves
  // `end` to the last.
  std::vector<PageIndex> publish(WorkerId me, PathEnd& end, std::uint32_t pages,
                                 std::uint32_t first_token, PageState state = PageState::kLive);
  std::vector<PageIndex> take(WorkerId me, std::uint32_t pages);  // Writing, private
  void lease(WorkerId me, std::uint32_t slot, Handle page, std::uint32_t request_tag);
  Handle handle_of(PageIndex page) const;
  void set_tick(std::uint32_t tick) const;
  void serve(std::uint32_t pid, std::uint64_t start_time) const;  // a coordinator that says so

 private:
  std::string name_;
  std::uint32_t planes_;
  std::optional<Segment> segment_;
  std::uint32_t cursor_ = 0;
};

// kvtrie with these arguments (without the program's name) on this host.
inspect::Outcome run_kvtrie(const std::vector<std::string>& arguments,
                            const inspect::Environment& environment = {});
inspect::Json run_json(std::vector<std::string> arguments,
                       const inspect::Environment& environment = {});

// A directory of the test's own, removed with all in it.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace kvtrie::test
