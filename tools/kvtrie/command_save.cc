// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_save.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "shm/shared_object.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

// The pools of the segment, one a plane; `problem` says which one is not there as the segment says.
std::vector<FileDescriptor> open_pools(const Segment& segment, const std::string& cache,
                                       Status& problem, std::string& object) {
  std::vector<FileDescriptor> pools;
  for (std::uint32_t plane = 0; plane < segment.geometry().planes; ++plane) {
    object = "/dev/shm/" + pool_object_name(cache, plane);
    Result<FileDescriptor> fd = open_object(pool_object_name(cache, plane), Access::kReadOnly);
    if (!fd) {
      problem = fd.error().code() == Code::kNotFound
                    ? Status{Code::kCorrupt, "the segment's pool is gone"}
                    : fd.error();
      return pools;
    }
    const Result<std::uint64_t> bytes = object_bytes(fd->get());
    if (!bytes || *bytes != pool_bytes(segment.geometry())) {
      problem = {Code::kCorrupt, "the pool has not the size that the segment states"};
      return pools;
    }
    pools.push_back(std::move(*fd));
  }
  return pools;
}

std::string in_words(const std::string& what, const Status& status) {
  std::string text = fmt::format("{}: {}", what, status.what());
  if (status.system_errno() != 0) text += fmt::format(": {}", std::strerror(status.system_errno()));
  return text;
}

std::uint64_t left_out(const SaveReport& report) {
  return report.changed + report.below_changed + report.flushed + report.unreachable;
}

Outcome run_save(const Segment& segment, const std::string& cache, const std::string& file,
                 bool json) {
  Status problem;
  std::string object;
  const std::vector<FileDescriptor> pools = open_pools(segment, cache, problem, object);
  if (!problem) return failure(exit_of(problem), in_words(object, problem), json);
  std::vector<int> descriptors;
  for (const FileDescriptor& pool : pools)
    descriptors.push_back(pool.get());
  const PlaneBytes planes(std::move(descriptors), segment.geometry().page_bytes);

  SaveOutput output{cache, file, {}, 0};
  const auto start = std::chrono::steady_clock::now();
  const Result<SaveReport> report = save_cache(segment, planes, file);
  output.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!report) {
    return failure(exit_of(report.error()), in_words("saving to " + file, report.error()), json);
  }
  output.report = *report;
  return render(output, json);
}

}  // namespace

Command add_save_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "save", "Save what is cached to a file, for kvtried --load; the cache may be in use");
  const auto file = std::make_shared<std::string>();
  command->add_option("file", *file, "File to write; replaced when all is written")->type_name("FILE")->required();
  return {command, [file](const Context& context) {
            return on_segment(context, [&](const Segment& segment, const std::string& cache) {
              return run_save(segment, cache, *file, context.json);
            });
          }};
}

std::string to_text(const SaveOutput& output) {
  const SaveReport& report = output.report;
  FieldLines lines;
  lines.add("cache", output.cache);
  lines.add("saved to", output.file);
  lines.add("pages", fmt::format("{} of {}", grouped(report.pages),
                                 counted(report.namespaces, "namespace")));
  lines.add("file", bytes_text(report.file_bytes));
  lines.add("time", seconds_text(output.seconds));
  std::string out = "none";
  if (left_out(report) != 0) {
    out = fmt::format("{} evicted meanwhile, {} below those, {} flushed, {} that no root reaches",
                      grouped(report.changed), grouped(report.below_changed),
                      grouped(report.flushed), grouped(report.unreachable));
  }
  lines.add("left out", out);
  return lines.text();
}

Json to_json(const SaveOutput& output) {
  const SaveReport& report = output.report;
  Json json;
  json["cache"] = output.cache;
  json["file"] = output.file;
  json["pages"] = report.pages;
  json["namespaces"] = report.namespaces;
  json["file_bytes"] = report.file_bytes;
  json["seconds"] = output.seconds;
  json["left_out"] = {{"evicted_meanwhile", report.changed},
                      {"below_evicted", report.below_changed},
                      {"flushed", report.flushed},
                      {"unreachable", report.unreachable}};
  return json;
}

}  // namespace kvtrie::inspect
