// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/worker_loop.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <deque>
#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tools/replay/mix_worker.h"
#include "tools/replay/options.h"
#include "tools/replay/random.h"
#include "tools/replay/request_run.h"

namespace kvtrie::replay {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kLongestSleep = std::chrono::milliseconds(50);  // between looks at the stop word

std::vector<kvtrie_namespace> open_namespaces(const Plugin& plugin, kvtrie_worker worker,
                                              std::uint32_t count, const std::string& model) {
  std::vector<kvtrie_namespace> opened(count);
  for (std::uint32_t number = 0; number < count; ++number) {
    const std::string salt = std::to_string(number);
    const kvtrie_field fields[] = {{"model", model.c_str()}, {"salt", salt.c_str()}};
    const std::string label = "replay-" + salt;
    plugin.expect(
        plugin->open_namespace(worker, fields, std::size(fields), label.c_str(), &opened[number]),
        "open_namespace");
  }
  return opened;
}

class WorkerLoop {
 public:
  WorkerLoop(SharedPlan& plan, RunContext& context, std::uint32_t worker, std::uint64_t seed)
      : plan_(plan), context_(context), worker_(worker), chance_(seed) {}

  void run() {
    while (!plan_.stopping()) {
      take_requests();
      if (!open_.empty()) {
        step_one();
      } else if (!crowded_out_.empty()) {
        open_.push_back(std::move(crowded_out_.front()));
        crowded_out_.pop_front();
      } else if (due_later_) {
        sleep_until_due();
      } else {
        return;
      }
    }
  }

 private:
  // Fills up, unless somebody found no room.
  void take_requests() {
    while (crowded_out_.empty() && open_.size() < plan_.settings().in_flight) {
      if (!due_later_) due_later_ = plan_.take(worker_);
      if (!due_later_ || Clock::now() < due_time(*due_later_)) return;
      open_.push_back(std::make_unique<RequestRun>(context_, *due_later_));
      due_later_.reset();
    }
  }

  void step_one() {
    const std::size_t chosen = open_.size() == 1 ? 0 : chance_.below(open_.size());
    switch (open_[chosen]->step(open_.size() == 1)) {
      case Progress::kGoesOn:
        return;
      case Progress::kNoRoom:
        crowded_out_.push_back(std::move(open_[chosen]));
        break;
      case Progress::kFinished:
        break;
    }
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(chosen));
  }

  [[nodiscard]] Clock::time_point due_time(std::uint32_t index) const {
    const PlanSettings& settings = plan_.settings();
    if (settings.speed == 0) return Clock::time_point::min();
    const double after_ms = static_cast<double>(plan_.planned(index).timestamp_ms) / settings.speed;
    return Clock::time_point(std::chrono::nanoseconds(settings.start_ns)) +
           std::chrono::nanoseconds(static_cast<std::int64_t>(after_ms * 1e6));
  }

  void sleep_until_due() const {
    std::this_thread::sleep_until(std::min(due_time(*due_later_), Clock::now() + kLongestSleep));
  }

  SharedPlan& plan_;
  RunContext& context_;
  const std::uint32_t worker_;
  Random chance_;
  std::vector<std::unique_ptr<RequestRun>> open_;
  std::deque<std::unique_ptr<RequestRun>> crowded_out_;  // hold nothing
  std::optional<std::uint32_t> due_later_;               // taken, its time has not come
};

// A cache with the system's clock refuses to be driven.
bool can_drive_clock(const Plugin& plugin, kvtrie_worker worker) {
  const kvtrie_code code = plugin->drive_clock(worker, 0);
  if (code == KVTRIE_E_INVALID) return false;
  plugin.expect(code, "drive_clock");
  return true;
}

void note_clock(bool drives, const PlanSettings& settings, std::uint32_t worker) {
  if (drives || settings.speed != 0 || worker != 0) return;
  fmt::print(stderr,
             "kvtrie-replay: the cache has the system's clock, so recency has its ticks and not the trace's; start its "
             "kvtried with --clock driven for the trace's\n");
}

// Its pages have another content, which depends on how often this run has flushed: so it has namespaces of its own.
void run_mix(const Plugin& plugin, const Attachment& attachment, const kvtrie_geometry& geometry, SharedPlan& plan,
             std::uint32_t worker, std::uint32_t incarnation) {
  const PlanSettings& settings = plan.settings();
  const MixBoard board(plan);
  MixCalls calls(plugin, settings.plugin, board.tally(worker), plan.tally(worker));
  const std::vector<kvtrie_namespace> namespaces = open_namespaces(
      plugin, attachment.worker(), settings.namespaces, fmt::format("kvtrie-replay-mix-{}", settings.start_ns));
  PageRegistry pages(geometry.pages);
  const std::uint64_t identity = std::uint64_t{incarnation} << 32 | worker;
  Random chance(mix64(settings.mix_seed + mix64(identity)));
  const MixContext context{.calls = calls,
                           .worker = attachment.worker(),
                           .geometry = geometry,
                           .shape = PageShape(geometry.page_bytes, geometry.tokens_per_page),
                           .namespaces = namespaces,
                           .plan = plan,
                           .worker_number = worker,
                           .tally = plan.tally(worker),
                           .board = board,
                           .mix = board.tally(worker),
                           .pages = pages,
                           .chance = chance,
                           .owner_salt = mix64(identity + kGoldenGamma),
                           .drives_clock = can_drive_clock(plugin, attachment.worker())};
  MixWorker(context, settings.in_flight, incarnation > 0).run();
}

void replay_requests(SharedPlan& plan, std::uint32_t worker, std::uint32_t incarnation) {
  const PlanSettings& settings = plan.settings();
  const Plugin plugin(settings.plugin);
  const Attachment attachment(plugin, settings.cache, settings.directory,
                              fmt::format("kvtrie-replay {}", worker), incarnation > 0);
  kvtrie_geometry geometry{};
  geometry.size = sizeof geometry;
  plugin.expect(plugin->get_geometry(attachment.worker(), &geometry), "get_geometry");
  if (settings.mix != 0) return run_mix(plugin, attachment, geometry, plan, worker, incarnation);
  std::optional<Observer> observer;
  if (settings.sequential != 0) observer.emplace(settings.cache);
  const std::uint64_t identity = std::uint64_t{incarnation} << 32 | worker;
  RunContext context{
      .plugin = plugin,
      .worker = attachment.worker(),
      .geometry = geometry,
      .namespaces = open_namespaces(plugin, attachment.worker(), settings.namespaces, "kvtrie-replay"),
      .plan = plan,
      .tally = plan.tally(worker),
      .observer = observer ? &*observer : nullptr,
      .owner_salt = mix64(identity + kGoldenGamma),
      .drives_clock = can_drive_clock(plugin, attachment.worker())};
  if (incarnation == 0) note_clock(context.drives_clock, settings, worker);
  WorkerLoop(plan, context, worker, mix64(settings.seed + mix64(identity))).run();
}

}  // namespace

int run_worker(int plan_fd, std::uint32_t worker, std::uint32_t incarnation) {
  try {
    SharedPlan plan(plan_fd);
    if (worker >= plan.worker_count()) throw std::runtime_error("no such worker in the plan");
    try {
      replay_requests(plan, worker, incarnation);
      return kExitOk;
    } catch (const std::exception& error) {
      char(&text)[512] = plan.tally(worker).error;
      *fmt::format_to_n(text, sizeof text - 1, "{}", error.what()).out = '\0';
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "kvtrie-replay: worker {}: {}\n", worker, error.what());
  }
  return kExitFailure;
}

}  // namespace kvtrie::replay
