// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_destroy.h"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "shm/runtime_directory.h"
#include "shm/segment.h"
#include "shm/shared_object.h"
#include "tools/kvtrie/caches.h"
#include "tools/kvtrie/coordinator_lock.h"
#include "tools/kvtrie/host.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

class Destroyer {
 public:
  Destroyer(const Environment& environment, const std::string& cache, const std::string& directory,
            bool json)
      : environment_(environment),
        directory_(directory),
        json_(json),
        lock_(environment, cache, directory, "then destroy the cache") {
    report_.cache = cache;
  }

  Outcome run() {
    if (!anything_there()) {
      return failure(Exit::kNotFound,
                     open_problem(environment_, report_.cache, {Code::kNotFound, "no such cache"}),
                     json_);
    }
    if (const auto refusal = lock_.take()) return failure(refusal->code, refusal->message, json_);
    give_up_segment();
    remove_objects();
    remove_directory();
    return render(report_, json_, left_objects_ ? Exit::kRefused : Exit::kOk);
  }

 private:
  std::vector<FoundObject> objects_of_cache() const {
    std::vector<FoundObject> objects = find_objects(environment_.shm_directory);
    std::erase_if(objects, [&](const FoundObject& o) { return o.name.cache != report_.cache; });
    return objects;
  }

  std::string cache_directory() const { return cache_directory_path(directory_, report_.cache); }

  bool anything_there() const {
    return !objects_of_cache().empty() || ::access(cache_directory().c_str(), F_OK) == 0;
  }

  void give_up_segment() {
    const Result<Segment> segment = open_segment(report_.cache, Access::kReadWrite);
    if (!segment) return;  // nobody can attach to it either
    const HostView host(*segment);
    for (std::uint32_t slot = 1; slot < segment->slot_count(); ++slot) {
      const WorkerRecord& worker = segment->worker({static_cast<std::uint16_t>(slot)});
      const std::uint32_t pid = worker.pid.load(std::memory_order_relaxed);
      const std::uint64_t start = worker.start_time.load(std::memory_order_relaxed);
      if (host.liveness(pid, start) == Liveness::kAlive) ++report_.workers_alive;
    }
    segment->poison(PoisonReason::kOperator);
  }

  void remove_objects() {
    // The segment first: pools without one are nobody's, a segment without pools looks damaged.
    std::vector<FoundObject> objects = objects_of_cache();
    std::ranges::stable_sort(objects, {}, [](const FoundObject& o) { return !o.name.segment; });
    for (const FoundObject& object : objects) {
      if (object.name.layout != kLayoutVersion) {
        left_objects_ = true;
        report_.left.push_back(
            fmt::format("{} ({}, layout {}: use the kvtrie of the build that made it, or rm)",
                        path_of(object), bytes_text(object.bytes), object.name.layout));
        continue;
      }
      remove_object(object.name.segment ? segment_object_name(report_.cache)
                    : object.name.queue ? queue_object_name(report_.cache)
                                        : pool_object_name(report_.cache, object.name.plane));
      if (::access(path_of(object).c_str(), F_OK) == 0) {
        left_objects_ = true;
        report_.left.push_back(path_of(object) + " (not allowed to remove it)");
      } else {
        report_.removed.push_back(path_of(object));
        report_.bytes += object.bytes;
      }
    }
  }

  std::string path_of(const FoundObject& object) const {
    return environment_.shm_directory + "/" + object.file;
  }

  // What kvtried made there, and nothing else.
  void remove_directory() {
    const std::string path = cache_directory();
    if (::access(path.c_str(), F_OK) != 0) return;
    ::unlink(socket_path(directory_, report_.cache).c_str());
    ::unlink(lock_path(directory_, report_.cache).c_str());
    if (::rmdir(path.c_str()) == 0) {
      report_.removed.push_back(path);
    } else {
      report_.left.push_back(fmt::format("{} ({})", path, std::strerror(errno)));
    }
  }

  const Environment& environment_;
  std::string directory_;
  bool json_;
  DestroyReport report_;
  CoordinatorLock lock_;
  bool left_objects_ = false;
};

}  // namespace

std::string to_text(const DestroyReport& report) {
  std::string text = fmt::format("cache {} destroyed: {} of memory in {} removed\n", report.cache,
                                 bytes_text(report.bytes), counted(report.removed.size(), "path"));
  for (const std::string& path : report.removed)
    text += "  removed " + path + "\n";
  for (const std::string& path : report.left)
    text += "! left " + path + "\n";
  if (report.workers_alive != 0) {
    text += fmt::format(
        "! {} the old objects: misses from now on, memory returns when they detach or end\n",
        counted(report.workers_alive, "living worker still maps", "living workers still map"));
  }
  return text;
}

Json to_json(const DestroyReport& report) {
  Json json;
  json["cache"] = report.cache;
  json["removed"] = report.removed;
  json["left"] = report.left;
  json["bytes"] = report.bytes;
  json["workers_alive"] = report.workers_alive;
  return json;
}

Command add_destroy_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("destroy", "Remove a cache that no coordinator serves: memory and directory");
  return {command, [](const Context& context) {
            if (context.cache.empty()) {
              return failure(Exit::kUsage, "destroy removes a cache for good: name it with --cache", context.json);
            }
            const CacheChoice choice = choose_cache(context.environment, context.cache, context.json);
            if (choice.cache.empty()) return choice.failure;
            return Destroyer(context.environment, choice.cache, directory_of(context), context.json).run();
          }};
}

}  // namespace kvtrie::inspect
