// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_verify.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "tools/kvtrie/caches.h"
#include "tools/kvtrie/command_repair.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

std::string safe(const std::string& text) { return printable(text.data(), text.size()); }

struct VerifyArguments {
  VerifyOptions verify;
  bool repair = false;
  bool yes = false;
};

Outcome run_verify(const Context& context, const VerifyArguments& arguments) {
  const VerifyOptions& options = arguments.verify;
  if (arguments.yes && context.cache.empty()) {
    return failure(Exit::kUsage, "--yes throws away what cannot be kept: name the cache with --cache", context.json);
  }
  const CacheChoice choice = choose_cache(context.environment, context.cache, context.json);
  if (choice.cache.empty()) return choice.failure;
  const std::string& cache = choice.cache;
  if (arguments.repair) {
    return run_repair(context.environment, {cache, directory_of(context), arguments.yes, context.json});
  }
  const Result<Segment> segment = open_segment(cache, Access::kReadOnly);
  if (segment) {
    const VerifyOutput output = gather_verify(*segment, cache, options);
    return render(output, context.json, output.report.clean() ? Exit::kOk : Exit::kFindings);
  }
  const Status status = segment.error();
  const std::string problem = open_problem(context.environment, cache, status);
  if (exit_of(status) != Exit::kCorrupt) return failure(exit_of(status), problem, context.json);
  Outcome outcome = render(verify_of_unreadable(cache, status), context.json, Exit::kCorrupt);
  outcome.err = "kvtrie: " + problem + "\n";
  return outcome;
}

}  // namespace

Command add_verify_command(CLI::App& app) {
  const auto arguments = std::make_shared<VerifyArguments>();
  VerifyOptions* const options = &arguments->verify;
  CLI::App* command =
      app.add_subcommand("verify", "Check the whole segment; exit code 1 if something is found");
  command->add_flag("--at-rest", options->at_rest,
                    "No process runs and the dead were reaped: leftovers are findings too");
  command->add_option("--findings", options->findings_max, "Findings to show at most")
      ->check(CLI::Range(1U, 1'000'000U))
      ->type_name("N")
      ->capture_default_str();
  CLI::Option* const repair =
      command->add_flag("--repair", arguments->repair,
                        "Of a segment that kvtried refuses: show what can be kept, and what would be thrown away");
  command->add_flag("--yes", arguments->yes, "With --repair: do it; nobody may work with the cache")->needs(repair);
  return {command, [arguments](const Context& context) { return run_verify(context, *arguments); }};
}

VerifyOutput gather_verify(const Segment& segment, const std::string& cache,
                           const VerifyOptions& options) {
  VerifyOutput output;
  output.cache = cache;
  output.at_rest = options.at_rest;
  const auto start = std::chrono::steady_clock::now();
  output.report = verify(segment, options);
  output.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return output;
}

VerifyOutput verify_of_unreadable(const std::string& cache, Status status) {
  VerifyOutput output;
  output.cache = cache;
  output.report.findings.push_back({Invariant::kConstant, Subject::kSegment, 0, status.what()});
  output.report.findings_total = 1;
  return output;
}

std::string to_text(const VerifyOutput& output) {
  const VerifyReport& report = output.report;
  FieldLines lines;
  lines.add("cache", output.cache);
  lines.add("checked", output.at_rest ? "at rest: nobody else runs, nothing may be left over"
                                      : "live: what no process may leave, killed or running");
  std::string pages;
  for (std::uint8_t i = 0; i < kPageStates; ++i) {
    pages += fmt::format("{}{} {}", i == 0 ? "" : ", ", grouped(report.pages[i]),
                         name_of(static_cast<PageState>(i)));
  }
  if (report.pages_impossible != 0)
    pages += fmt::format(", {} IMPOSSIBLE", grouped(report.pages_impossible));
  lines.add("pages", pages);
  lines.add("leases", grouped(report.leases));
  lines.add("index", counted(report.index_entries, "entry", "entries"));
  lines.add("looked again", grouped(report.rechecked));
  lines.add("time", seconds_text(output.seconds));
  lines.add("findings", report.clean() ? "none" : grouped(report.findings_total));
  std::string text = lines.text();
  std::map<Invariant, bool> explained;
  for (const Finding& finding : report.findings) {
    text += "! " + safe(to_string(finding)) + "\n";
    explained[finding.invariant] = true;
  }
  if (report.findings_total > report.findings.size()) {
    text += fmt::format("! and {} more (--findings shows more)\n",
                        grouped(report.findings_total - report.findings.size()));
  }
  for (const auto& [invariant, _] : explained) {
    text += fmt::format("  {} means: {}\n", name_of(invariant), meaning_of(invariant));
  }
  return text;
}

Json to_json(const VerifyOutput& output) {
  const VerifyReport& report = output.report;
  Json json;
  json["cache"] = output.cache;
  json["at_rest"] = output.at_rest;
  json["clean"] = report.clean();
  json["seconds"] = output.seconds;
  Json& pages = json["pages"];
  for (std::uint8_t i = 0; i < kPageStates; ++i) {
    pages[name_of(static_cast<PageState>(i))] = report.pages[i];
  }
  pages["impossible"] = report.pages_impossible;
  json["leases"] = report.leases;
  json["index_entries"] = report.index_entries;
  json["rechecked"] = report.rechecked;
  json["findings_total"] = report.findings_total;
  Json& findings = json["findings"] = Json::array();
  for (const Finding& finding : report.findings) {
    findings.push_back({{"invariant", name_of(finding.invariant)},
                        {"meaning", meaning_of(finding.invariant)},
                        {"subject", name_of(finding.subject)},
                        {"number", finding.number},
                        {"text", safe(finding.text)}});
  }
  return json;
}

}  // namespace kvtrie::inspect
