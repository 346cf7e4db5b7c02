// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The definition of kvtried's command line, from settings.h. The program parses with it; the man page and the shell
// completions are made from it when kvtried is built (tools/manual).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/failure.h"
#include "coordinator/options.h"

namespace CLI {
class App;
}

namespace kvtrie {

class CommandLine {
 public:
  explicit CommandLine(const std::string& version);
  ~CommandLine();
  CommandLine(const CommandLine&) = delete;  // `app` points into it
  CommandLine& operator=(const CommandLine&) = delete;

  CLI::App& app() { return *app_; }
  // The exit code when that was all: help, version, or flags that are wrong, which it says.
  std::optional<int> parse(int argc, const char* const* argv);
  // --check-config: flags and file are to be checked, and that is all.
  bool check_only() const { return check_only_; }
  // After parse: the file, then the flags, which win, onto `options`. `runtime_directory`: for sockets and locks
  // when nothing else is given.
  MaybeFailure apply(const std::string& runtime_directory, Options& options) const;

 private:
  bool has(std::string_view key) const;

  std::unique_ptr<CLI::App> app_;
  std::map<std::string, std::vector<std::string>> given_;  // by setting
  std::map<std::string, bool> switches_;
  std::string file_;
  bool check_only_ = false;
};

}  // namespace kvtrie
