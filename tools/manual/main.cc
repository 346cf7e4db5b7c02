// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie-manual DIR: writes DIR/kvtrie.1, DIR/kvtried.8 and the completions DIR/kvtrie, DIR/kvtried.

#include <cstdio>
#include <fstream>
#include <string>

#include "coordinator/command_line.h"
#include "tools/kvtrie/command_line.h"
#include "tools/manual/bash_completion.h"
#include "tools/manual/man_page.h"

namespace {

bool write(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text << std::flush;
  if (file) return true;
  std::fprintf(stderr, "kvtrie-manual: %s cannot be written\n", path.c_str());
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: kvtrie-manual DIR\n", stderr);
    return 2;
  }
  const std::string directory = std::string(argv[1]) + "/";
  kvtrie::inspect::CommandLine kvtrie;
  kvtrie::CommandLine kvtried(KVTRIE_VERSION);
  const bool written =
      write(directory + "kvtrie.1", kvtrie::manual::man_page(kvtrie.app, {1, KVTRIE_VERSION, "kvtried(8)"})) &&
      write(directory + "kvtried.8", kvtrie::manual::man_page(kvtried.app(), {8, KVTRIE_VERSION, "kvtrie(1)"})) &&
      write(directory + "kvtrie", kvtrie::manual::bash_completion(kvtrie.app)) &&
      write(directory + "kvtried", kvtrie::manual::bash_completion(kvtried.app()));
  return written ? 0 : 1;
}
