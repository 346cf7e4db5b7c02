// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Where figures come from: machine, kernel, compiler, version.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace kvtrie::bench {

// A line each. `tree` is a folder of the project's tree, for its commit; left out where that is not known.
std::vector<std::string> host_facts(const std::filesystem::path& tree);

// "2026-02-03 14:05 UTC"
std::string date_now();

// The command line, files without their folders.
std::string command_of(int argc, const char* const* argv);

}  // namespace kvtrie::bench
