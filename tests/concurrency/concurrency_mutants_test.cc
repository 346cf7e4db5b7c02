// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// That the tests of this folder can fail: each runs against a kvtried and a plugin with a protection of the protocol
// taken out (shm/mutant.h), and must not pass; with nothing taken out, it passes.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <ostream>
#include <string>

#include "shm/shared_object.h"

namespace kvtrie::test {
namespace {

constexpr int kRunMs = 40'000;

struct Catch {
  std::string mutant;
  std::string test;  // program
  std::string filter;
};
void PrintTo(const Catch& caught, std::ostream* out) { *out << caught.test << " with " << caught.mutant; }

// Runs a test in a process group of its own, so that whatever the mutant did, nothing of it is left. Its exit status,
// or -signal.
int run(const std::string& program, const std::string& filter, const std::string& mutant) {
  const std::string path = std::string(KVTRIE_TEST_PROGRAMS_DIR) + "/" + program;
  const std::string argument = "--gtest_filter=" + filter;
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::setpgid(0, 0);
    ::setenv("KVTRIE_TEST_MUTANTS_DIR", KVTRIE_TEST_MUTANTS_DIR, 1);
    ::setenv("KVTRIE_TEST_MUTANT", mutant.c_str(), 1);
    const int nowhere = ::open("/dev/null", O_WRONLY);
    ::dup2(nowhere, STDOUT_FILENO);
    ::dup2(nowhere, STDERR_FILENO);
    ::execl(path.c_str(), path.c_str(), argument.c_str(), "--gtest_fail_fast", static_cast<char*>(nullptr));
    ::_exit(0);  // a test that does not run catches nothing
  }
  ::setpgid(pid, pid);
  const FileDescriptor ends(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  pollfd waited{ends.get(), POLLIN, 0};
  (void)::poll(&waited, 1, kRunMs);
  ::kill(-pid, SIGKILL);
  int status = 0;
  ::waitpid(pid, &status, 0);
  const std::string name = "test-concurrency-" + std::to_string(pid) + "-";
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    if (entry.path().filename().string().find(name) != std::string::npos) std::filesystem::remove(entry, ignored);
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

class ConcurrencyMutantsTest : public testing::TestWithParam<Catch> {};

TEST_P(ConcurrencyMutantsTest, IsCaught) {
  const Catch& caught = GetParam();
  EXPECT_EQ(run(caught.test, caught.filter, "none"), 0) << "fails without a mutant";
  EXPECT_NE(run(caught.test, caught.filter, caught.mutant), 0) << "does not see the mutant";
}

INSTANTIATE_TEST_SUITE_P(
    , ConcurrencyMutantsTest,
    testing::Values(
        // A leased page is evicted and given to another.
        Catch{"evict_without_lease_scan", "allocation_test", "*NoPageIsWrittenByTwo*/Threads8"},
        Catch{"evict_without_lease_scan", "allocation_test", "*NoPageIsWrittenByTwo*/Processes8"},
        // The second of a prefix is entered beside the first; children lose their parents.
        Catch{"duplicate_supersedes", "structure_test", "*EachPrefixOnce/Processes8"},
        Catch{"evict_interior_pages", "structure_test", "*IsATree/Threads8"},
        // Who shares a page in a batch loses it when its publisher ends; a match loses its pages.
        Catch{"share_publisher_only", "allocation_publishing_test", "*Batches*/Threads8"},
        Catch{"evict_without_lease_scan", "allocation_publishing_test", "*Overlap*/Processes8"}),
    [](const testing::TestParamInfo<Catch>& caught) {
      const std::string setting = caught.param.filter.substr(caught.param.filter.find('/') + 1);
      return caught.param.test + "_" + caught.param.mutant + "_" + setting;
    });

}  // namespace
}  // namespace kvtrie::test
