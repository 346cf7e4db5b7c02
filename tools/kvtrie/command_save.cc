// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_save.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "tools/kvtrie/pools.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

std::uint64_t left_out(const SaveReport& report) {
  return report.changed + report.below_changed + report.flushed + report.unreachable;
}

Outcome run_save(const Segment& segment, const std::string& cache, const std::string& file,
                 bool json) {
  const Pools pools(segment, cache);
  if (!pools.problem().empty()) return failure(pools.code(), pools.problem(), json);

  SaveOutput output{cache, file, {}, 0};
  const auto start = std::chrono::steady_clock::now();
  const Result<SaveReport> report = save_cache(segment, pools.planes(), file);
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
