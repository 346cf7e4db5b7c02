// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A bash completion out of the definition of a command line: commands, flags, fixed words, files and the host's caches.
#pragma once

#include <CLI/App.hpp>
#include <string>

namespace kvtrie::manual {

std::string bash_completion(const CLI::App& app);

}  // namespace kvtrie::manual
