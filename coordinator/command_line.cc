// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "coordinator/settings.h"

namespace kvtrie {
namespace {

constexpr const char* kFooter =
    "Exit codes:\n"
    "  0  stopped by SIGTERM or SIGINT; the cache stays for the next start\n"
    "  1  a failure, which stderr names\n"
    "  2  wrong flags or a wrong file\n"
    "  3  another coordinator serves this cache\n"
    "stdout has one line, event=ready, when it serves; stderr has event=... lines.";

}  // namespace

CommandLine::CommandLine(const std::string& version)
    : app_(std::make_unique<CLI::App>("kvtried: the coordinator of a kvtrie cache", "kvtried")) {
  for (const Setting& setting : settings()) {
    const std::string flag = std::string("--") + setting.key;
    if (setting.kind == SettingKind::kSwitch) {
      app_->add_flag(flag, switches_[setting.key], setting.help);
      continue;
    }
    CLI::Option* option = app_->add_option(flag, given_[setting.key], setting.help);
    option->type_name(setting.value_name);
    if (setting.kind == SettingKind::kValue) {
      option->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    }
  }
  app_->add_option("--config", file_, "TOML file: the same settings, without the dashes; flags win")->type_name("FILE");
  app_->add_flag("--check-config", check_only_, "Check flags and file, and end");
  app_->set_version_flag("--version", version);
  app_->footer(kFooter);
}

CommandLine::~CommandLine() = default;

std::optional<int> CommandLine::parse(int argc, const char* const* argv) {
  try {
    app_->parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app_->exit(error) == 0 ? 0 : kExitUsage;
  }
  return {};
}

bool CommandLine::has(std::string_view key) const {
  const auto found = given_.find(std::string(key));
  if (found != given_.end() && !found->second.empty()) return true;
  const auto flag = switches_.find(std::string(key));
  return flag != switches_.end() && flag->second;
}

MaybeFailure CommandLine::apply(const std::string& runtime_directory, Options& options) const {
  options.directory = runtime_directory;
  if (app_->count("--config") > 0) {
    if (MaybeFailure failure = apply_file(file_, [this](std::string_view key) { return has(key); }, options)) {
      return failure;
    }
  }
  for (const Setting& setting : settings()) {
    if (setting.kind == SettingKind::kSwitch && switches_.at(setting.key)) {
      (void)setting.apply(options, "true");
    } else if (const auto found = given_.find(setting.key); found != given_.end()) {
      for (const std::string& text : found->second) {
        if (const std::string problem = setting.apply(options, text); !problem.empty()) {
          return Failure{fmt::format("--{} '{}': {}", setting.key, text, problem), kExitUsage};
        }
      }
    }
  }
  if (const std::string problem = options_problem(options); !problem.empty()) return Failure{problem, kExitUsage};
  return {};
}

}  // namespace kvtrie
