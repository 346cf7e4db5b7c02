// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/own_cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <thread>

namespace kvtrie::replay {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kReadyLimit = std::chrono::seconds(120);  // 16 M pages of memory are to be reserved
constexpr auto kEndLimit = std::chrono::seconds(10);
constexpr auto kBetweenLooks = std::chrono::milliseconds(1);

std::string make_directory() {
  std::string path = (std::filesystem::temp_directory_path() / "kvtrie-replay.XXXXXX").string();
  if (::mkdtemp(path.data()) == nullptr) {
    throw CacheStartError{fmt::format("{}: {}", path, std::generic_category().message(errno)),
                          kExitFailure};
  }
  return path;
}

std::vector<std::string> arguments_of(const ReplayOptions& options, const std::string& name,
                                      const std::string& directory) {
  const Geometry& geometry = options.geometry;
  std::vector<std::string> arguments = {
      "--cache",
      name,
      "--dir",
      directory,
      "--pages",
      fmt::format("{}", geometry.pages),
      "--tokens-per-page",
      fmt::format("{}", geometry.tokens_per_page),
      "--page-bytes",
      fmt::format("{}", geometry.page_bytes),
      "--planes",
      fmt::format("{}", geometry.planes),
      "--workers",
      fmt::format("{}", geometry.workers),
      "--leases",
      fmt::format("{}", geometry.leases_per_worker),
      "--namespaces",
      fmt::format("{}", geometry.namespaces),
      "--stripes",
      fmt::format("{}", geometry.stripes),
      "--low",
      fmt::format("{}", options.low_percent),
      "--high",
      fmt::format("{}", options.high_percent),
      "--policy",
      options.policy,
      "--metrics",
      "off",
  };
  if (options.page_checksums) arguments.emplace_back("--page-checksums");
  if (options.realtime > 0) arguments.insert(arguments.end(), {"--realtime", fmt::format("{}", options.realtime)});
  arguments.insert(arguments.end(), options.kvtried_flags.begin(), options.kvtried_flags.end());
  if (options.speed == 0) {
    for (const char* argument : {"--clock", "driven", "--tick-ns", "1000000"}) {
      arguments.emplace_back(argument);
    }
  }
  return arguments;
}

}  // namespace

OwnCache::OwnCache(const ReplayOptions& options, const std::string& kvtried, Signals& signals)
    : name_(fmt::format("replay-{}-{:x}", ::getpid(),
                        Clock::now().time_since_epoch().count() & 0xFFFF'FFFF)),
      directory_(make_directory()),
      program_(kvtried),
      arguments_(arguments_of(options, name_, directory_)),
      planes_(options.geometry.planes) {
  try {
    start_again();
    await(signals);
  } catch (...) {
    clean_up();
    throw;
  }
}

OwnCache::~OwnCache() { clean_up(); }

void OwnCache::start_again() {
  const FileDescriptor log(
      ::open((directory_ + "/log").c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600));
  std::array<int, 2> pipe{};
  if (!log.open() || ::pipe2(pipe.data(), O_CLOEXEC | O_NONBLOCK) != 0) {
    throw CacheStartError{
        fmt::format("starting kvtried: {}", std::generic_category().message(errno)), kExitFailure};
  }
  output_ = FileDescriptor(pipe[0]);
  said_.clear();
  const FileDescriptor child_end(pipe[1]);
  ChildOptions child;
  child.program = program_;
  child.arguments = arguments_;
  child.standard_output = child_end.get();
  child.standard_error = log.get();
  child.death_signal = SIGTERM;
  pid_ = start_child(child);
}

bool OwnCache::serves() {
  std::array<char, 1024> buffer{};
  for (ssize_t got = 0; (got = ::read(output_.get(), buffer.data(), buffer.size())) > 0;) {
    said_.append(buffer.data(), static_cast<std::size_t>(got));
  }
  return said_.find("event=ready") != std::string::npos;
}

void OwnCache::await(Signals& signals) {
  const auto deadline = Clock::now() + kReadyLimit;
  while (!serves()) {
    signals.wait(std::chrono::milliseconds(100), output_.get());
    if (const std::string end = how_it_ended(); !end.empty()) {
      // 2 is its code for flags that it refuses: ours, handed on.
      const bool usage = WIFEXITED(wait_status_) && WEXITSTATUS(wait_status_) == kExitUsage;
      throw CacheStartError{fmt::format("{} {}\n{}", program_, end, this->log()),
                            usage ? kExitUsage : kExitFailure};
    }
    if (signals.asked_to_end()) throw CacheStartError{"stopped by a signal", kExitFailure};
    if (Clock::now() > deadline) {
      throw CacheStartError{fmt::format("{}: not ready in time\n{}", program_, this->log()),
                            kExitFailure};
    }
  }
}

void OwnCache::kill() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, &wait_status_, 0);
  pid_ = 0;
}

void OwnCache::stop() const { ::kill(pid_, SIGSTOP); }

void OwnCache::go_on() const { ::kill(pid_, SIGCONT); }

std::string OwnCache::how_it_ended() {
  if (pid_ > 0 && ::waitpid(pid_, &wait_status_, WNOHANG) == pid_) pid_ = 0;
  return pid_ == 0 ? describe_end(wait_status_) : std::string{};
}

std::string OwnCache::log() const {
  std::ostringstream text;
  text << std::ifstream(directory_ + "/log").rdbuf();
  return text.str();
}

void OwnCache::clean_up() noexcept {
  if (pid_ > 0) {
    ::kill(pid_, SIGTERM);
    ::kill(pid_, SIGCONT);  // of one that is stopped
    for (const auto deadline = Clock::now() + kEndLimit;
         ::waitpid(pid_, &wait_status_, WNOHANG) == 0;) {
      if (Clock::now() > deadline) {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, &wait_status_, 0);
        break;
      }
      std::this_thread::sleep_for(kBetweenLooks);
    }
    pid_ = 0;
  }
  // The segment first: one that is at its name has its pools.
  remove_object(segment_object_name(name_));
  for (std::uint32_t plane = 0; plane < planes_; ++plane) {
    remove_object(pool_object_name(name_, plane));
  }
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

}  // namespace kvtrie::replay
