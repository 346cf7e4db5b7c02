// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/manual/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>

namespace kvtrie::manual {

std::vector<const CLI::Option*> options_of(const CLI::App& app) {
  return app.get_options([](const CLI::Option* option) { return !option->get_positional(); });
}

std::vector<const CLI::Option*> positionals_of(const CLI::App& app) {
  return app.get_options([](const CLI::Option* option) { return option->get_positional(); });
}

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

bool takes_value(const CLI::Option& option) { return option.get_items_expected_max() != 0; }

std::vector<std::string> names_of(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  return names;
}

std::string value_name(const CLI::Option& option) {
  const std::string name = option.get_type_name();  // "N:UINT in [1 - 64]", "STATE:{live,pending}"
  const std::size_t limits = name.find_first_of("[{");
  return limits == std::string::npos ? name : name.substr(0, name.rfind(':', limits));
}

std::vector<std::string> choices_of(const CLI::Option& option) {
  const std::string name = value_name(option);
  std::vector<std::string> choices;
  if (name.find('|') == std::string::npos) return choices;
  std::istringstream parts(name);
  for (std::string part; std::getline(parts, part, '|');) {
    if (std::ranges::none_of(part, [](char c) { return c >= 'A' && c <= 'Z'; })) choices.push_back(part);
  }
  return choices;
}

}  // namespace kvtrie::manual
