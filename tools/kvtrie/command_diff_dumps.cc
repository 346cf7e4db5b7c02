// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_diff_dumps.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

Json difference_json(const std::optional<dump::Difference>& found) {
  if (!found) return nullptr;
  const auto optional = [](const auto& value) { return value ? Json(*value) : Json(nullptr); };
  return {{"text", found->text},
          {"request", found->request},
          {"token", optional(found->token)},
          {"entry", optional(found->entry)},
          {"position", optional(found->position)},
          {"plane", optional(found->plane)},
          {"page_a", optional(found->page_a)},
          {"page_b", optional(found->page_b)},
          {"part", found->part.empty() ? Json(nullptr) : Json(found->part)},
          {"item", optional(found->item)},
          {"index", found->index},
          {"value_a", optional(found->value_a)},
          {"value_b", optional(found->value_b)}};
}

}  // namespace

Command add_diff_dumps_command(CLI::App& app) {
  struct Options {
    std::string a;
    std::string b;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("diff-dumps", "Where two debug dumps of engines (docs/dumps.md) first differ");
  command->add_option("a", options->a, "Directory of one dump")->type_name("DIR")->required();
  command->add_option("b", options->b, "Directory of the other")->type_name("DIR")->required();
  return {command, [options](const Context& context) {
            const dump::DumpDiffOutcome outcome = dump::diff_dumps(options->a, options->b);
            if (!outcome.error.empty()) {
              return failure(outcome.missing ? Exit::kNotFound : Exit::kCorrupt, outcome.error, context.json);
            }
            const Exit code = outcome.diff.same() ? Exit::kOk : Exit::kFindings;
            return render(DumpDiffReport{options->a, options->b, outcome.diff}, context.json, code);
          }};
}

std::string to_text(const DumpDiffReport& report) {
  const dump::DumpDiff& diff = report.diff;
  const auto line = [](const std::optional<dump::Difference>& found) { return found ? found->text : "same"; };
  FieldLines lines;
  lines.add("tokens", line(diff.tokens));
  lines.add("batch", line(diff.batch));
  lines.add("pages", line(diff.pages));
  lines.add("", fmt::format("{} of {} in both differ, or are in one only", grouped(diff.pages_differing),
                            counted(diff.pages_compared, "page")));
  return lines.text();
}

// A page's value may be NaN, which JSON has not: it becomes null.
Json to_json(const DumpDiffReport& report) {
  const dump::DumpDiff& diff = report.diff;
  return {{"a", report.a},
          {"b", report.b},
          {"same", diff.same()},
          {"raw", diff.raw},
          {"pages_compared", diff.pages_compared},
          {"pages_differing", diff.pages_differing},
          {"tokens", difference_json(diff.tokens)},
          {"batch", difference_json(diff.batch)},
          {"pages", difference_json(diff.pages)}};
}

}  // namespace kvtrie::inspect
