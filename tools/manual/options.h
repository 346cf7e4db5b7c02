// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What the pages and completions ask of a command line's definition.
#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

namespace kvtrie::manual {

std::vector<const CLI::Option*> options_of(const CLI::App& app);         // those with a dash, in order
std::vector<const CLI::Option*> positionals_of(const CLI::App& app);     // the others
std::vector<const CLI::App*> commands_of(const CLI::App& app);

bool takes_value(const CLI::Option& option);
std::vector<std::string> names_of(const CLI::Option& option);  // "-h", "--help"
// What stands for its value in --help, without the limits that the parser checks: "FILE", "N", "HOST:PORT|off".
std::string value_name(const CLI::Option& option);
// Fixed words that its value may be: of a value name like "live|pending", the parts without capital letters.
std::vector<std::string> choices_of(const CLI::Option& option);

}  // namespace kvtrie::manual
