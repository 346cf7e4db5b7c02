// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A man page out of the definition of a command line.
#pragma once

#include <CLI/App.hpp>
#include <string>

namespace kvtrie::manual {

struct ManPage {
  int section = 1;
  std::string version;
  std::string see_also;  // "kvtried(8)"
};

// Options, commands with their options, and the footer: a line of it that ends with a colon begins a section of that
// name, indented lines keep their shape.
std::string man_page(const CLI::App& app, const ManPage& page);

}  // namespace kvtrie::manual
