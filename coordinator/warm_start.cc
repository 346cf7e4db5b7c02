// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/warm_start.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "save/load_cache.h"

namespace kvtrie {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kBetweenLines = std::chrono::seconds(2);

std::string in_words(const LoadReport& report) {
  return fmt::format(
      "pages={} namespaces={} whole={} damaged={} impossible={} below_left_out={} "
      "namespaces_left_out={} no_entry={} no_room={}",
      report.pages, report.namespaces, report.whole ? 1 : 0, report.damaged, report.impossible,
      report.below_left_out, report.namespaces_left_out, report.no_entry, report.no_room);
}

}  // namespace

MaybeFailure WarmStart::open(const Options& options, const Geometry& geometry, WarmStart& start) {
  if (options.load.empty()) return {};
  const std::string what = "--load '" + options.load + "'";
  Result<SavedFile> file = SavedFile::open(options.load);
  if (!file) {
    Failure failure = failure_of(what, file.error());
    failure.text += "; leave --load out to start with an empty cache";
    return failure;
  }
  if (file->head_state() == SavedFile::HeadState::kOtherVersion) {
    return Failure{what +
                   ": it has another format version; load it with the kvtried of the build "
                   "that saved it, or leave --load out"};
  }
  if (file->head_state() == SavedFile::HeadState::kIntact) {
    if (const std::string difference = file->difference(geometry); !difference.empty()) {
      return Failure{fmt::format(
          "{}: {}: its pages would be other pages; make the cache with the file's value, or leave "
          "--load out",
          what, difference)};
    }
  }
  start.cache_ = options.cache;
  start.path_ = options.load;
  start.file_.emplace(std::move(*file));
  return {};
}

MaybeFailure WarmStart::load(const Segment& segment, const PlaneBytes& planes,
                             const std::function<bool()>& stopped, const LogSink& log) {
  if (!file_) return {};
  const std::string whose = fmt::format("cache={} file={}", cache_, log_value(path_));
  if (file_->head_state() == SavedFile::HeadState::kDamaged) {
    log(fmt::format("event=load {} pages=0 problem=head", whose));
    return {};
  }
  const auto start = Clock::now();
  auto last_line = start;
  const auto watch = [&](const LoadReport& so_far) {
    if (Clock::now() - last_line >= kBetweenLines) {
      last_line = Clock::now();
      log(fmt::format("event=loading {} pages={} of={}", whose, so_far.pages, so_far.records));
    }
    return stopped();
  };
  const Result<LoadReport> report = load_cache(*file_, segment, planes, watch);
  if (!report && report.error().code() == Code::kRefused) {
    return Failure{"stopped by a signal while it loaded: nothing was made", kExitStopped};
  }
  if (!report) return failure_of("--load '" + path_ + "'", report.error());
  const double took_s = std::max(1e-6, std::chrono::duration<double>(Clock::now() - start).count());
  const double bytes = static_cast<double>(report->pages) *
                       static_cast<double>(saved_record_bytes(segment.geometry()));
  log(fmt::format("event=load {} {} took_ms={:.0f} mb_s={:.0f}", whose, in_words(*report),
                  took_s * 1e3, bytes / 1e6 / took_s));
  return {};
}

}  // namespace kvtrie
