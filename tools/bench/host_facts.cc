// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/host_facts.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <memory>
#include <string_view>

namespace kvtrie::bench {
namespace {

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

// What git says of the tree; empty where there is no git or no repository.
std::string commit_of(const std::filesystem::path& tree) {
  constexpr const char* kCommand = "git describe --always --dirty 2>/dev/null";
  std::error_code error;
  const std::filesystem::path before = std::filesystem::current_path(error);
  if (!error) std::filesystem::current_path(tree, error);
  if (error) return {};
  std::string said;
  if (const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(kCommand, "re"), ::pclose); pipe) {
    std::array<char, 128> buffer{};
    if (std::fgets(buffer.data(), buffer.size(), pipe.get()) != nullptr) said = buffer.data();
  }
  std::filesystem::current_path(before, error);
  while (said.ends_with('\n'))
    said.pop_back();
  return said;
}

}  // namespace

std::vector<std::string> host_facts(const std::filesystem::path& tree) {
  std::vector<std::string> facts;
  const double gib =
      static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE)) / (1U << 30);
  facts.push_back(fmt::format("{}, {} cores, {:.0f} GiB of memory", processor(), ::sysconf(_SC_NPROCESSORS_ONLN), gib));
  if (utsname kernel{}; ::uname(&kernel) == 0) {
    facts.push_back(fmt::format("{} {}, {}", kernel.sysname, kernel.release, kernel.machine));
  }
#ifdef __clang__
  const std::string compiler = __VERSION__;
#else
  const std::string compiler = fmt::format("gcc {}", __VERSION__);
#endif
  facts.push_back(fmt::format("{}, {}", compiler, KVTRIE_BUILD_TYPE));
  const std::string commit = commit_of(tree);
  facts.push_back(fmt::format("kvtrie {}{}", KVTRIE_VERSION, commit.empty() ? "" : ", commit " + commit));
  return facts;
}

std::string date_now() { return fmt::format("{:%Y-%m-%d %H:%M} UTC", fmt::gmtime(std::time(nullptr))); }

std::string command_of(int argc, const char* const* argv) {
  std::string command = "kvtrie-bench";
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    command += fmt::format(" {}", argument.substr(argument.rfind('/') + 1));
  }
  return command;
}

}  // namespace kvtrie::bench
