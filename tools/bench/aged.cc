// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/aged.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <atomic>
#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <vector>

#include "shm/ids.h"
#include "tools/replay/child_process.h"
#include "tools/replay/observer.h"

namespace kvtrie::bench {

double mean_run_length(const Segment& segment) {
  std::uint64_t live = 0;
  std::uint64_t runs = 0;
  Handle before{};  // the page in front, if that is Live
  for (std::uint32_t i = 0; i < segment.page_count(); ++i) {
    const Descriptor& descriptor = segment.descriptor({i});
    const StateWord word{descriptor.state.load(std::memory_order_acquire)};
    if (word.state() != PageState::kLive) {
      before = {};
      continue;
    }
    ++live;
    if (before.none() || Handle{descriptor.parent.load(std::memory_order_relaxed)} != before) ++runs;
    before = Handle::page({i}, word);
  }
  return runs == 0 ? 0 : static_cast<double>(live) / static_cast<double>(runs);
}

Aged age(const Settings& settings, const Ageing& ageing, const replay::OwnCache& cache) {
  const std::string json = cache.directory() + "/aged.json";
  const FileDescriptor log(
      ::open((cache.directory() + "/aged.log").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC | O_TRUNC, 0600));
  replay::ChildOptions child;
  child.program = settings.replay;
  child.arguments = {"--cache", cache.name(), "--dir", cache.directory(), "--plugin", settings.plugin,
                     "--workers", fmt::format("{}", ageing.workers), "--seed", fmt::format("{}", ageing.seed),
                     "--check-bytes", "0", "--json", json};
  const std::string requests = fmt::format("{}", ageing.requests);
  const std::vector<std::string> what = settings.trace.empty()
                                            ? std::vector<std::string>{"--generate", requests}
                                            : std::vector<std::string>{"--trace", settings.trace, "--limit", requests,
                                                                       "--lap", fmt::format("{}", ageing.lap)};
  child.arguments.insert(child.arguments.end(), what.begin(), what.end());
  child.standard_output = child.standard_error = log.get();
  const pid_t pid = replay::start_child(child);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (status != 0) {
    throw std::runtime_error(fmt::format("kvtrie-replay, which was to age a cache, {}", replay::describe_end(status)));
  }
  std::ifstream file(json);
  const nlohmann::json result = nlohmann::json::parse(file, nullptr, false);
  if (!result.contains("hit_ratio_blocks")) throw std::runtime_error("kvtrie-replay wrote no result");
  const replay::Observer observer(cache.name());
  const Segment& segment = observer.segment();
  return {result["hit_ratio_blocks"].get<double>(), mean_run_length(segment),
          static_cast<double>(segment.total(Counter::kEvictions)) / segment.page_count()};
}

}  // namespace kvtrie::bench
