// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/crew.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

namespace kvtrie::bench {

struct CrewMemory {
  struct Member {
    std::uint32_t figures = 0;
    std::array<double, CrewMember::kFiguresMax> figure{};
    std::array<char, 256> failure{};
  };
  alignas(64) std::atomic<std::uint32_t> here{0};
  alignas(64) std::atomic<std::uint32_t> meeting{0};
  alignas(64) std::array<Member, CrewMember::kMembersMax> members{};
};

namespace {

struct Unmap {
  void operator()(CrewMemory* memory) const { ::munmap(memory, sizeof *memory); }
};

std::unique_ptr<CrewMemory, Unmap> shared_memory() {
  void* memory = ::mmap(nullptr, sizeof(CrewMemory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no memory for the figures of the processes");
  // Zero bytes are its zero: constructing it would touch all of it.
  return std::unique_ptr<CrewMemory, Unmap>(static_cast<CrewMemory*>(memory));
}

[[noreturn]] void be_member(CrewMemory& memory, std::uint32_t index, std::uint32_t count,
                            const std::function<void(CrewMember&)>& work) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  int code = 0;
  try {
    CrewMember member(memory, index, count);
    work(member);
  } catch (const std::exception& error) {
    auto& failure = memory.members[index].failure;
    std::snprintf(failure.data(), failure.size(), "%s", error.what());
    code = 1;
  }
  std::fflush(nullptr);
  ::_exit(code);
}

}  // namespace

void CrewMember::meet(std::chrono::microseconds between_looks) {
  const std::uint32_t meeting = memory_.meeting.load(std::memory_order_acquire);
  if (memory_.here.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
    memory_.here.store(0, std::memory_order_relaxed);
    memory_.meeting.store(meeting + 1, std::memory_order_release);
    return;
  }
  while (memory_.meeting.load(std::memory_order_acquire) == meeting) {
    if (between_looks.count() > 0) std::this_thread::sleep_for(between_looks);
    else ::sched_yield();
  }
}

void CrewMember::figure(double value) {
  auto& mine = memory_.members[index_];
  if (mine.figures == kFiguresMax) throw std::runtime_error("too many figures of one process");
  mine.figure[mine.figures++] = value;
}

std::vector<std::vector<double>> run_crew(std::uint32_t count, const std::function<void(CrewMember&)>& work) {
  if (count > CrewMember::kMembersMax) throw std::runtime_error("too many processes");
  const auto memory = shared_memory();
  std::fflush(nullptr);
  std::vector<pid_t> pids;
  for (std::uint32_t index = 0; index < count; ++index) {
    const pid_t pid = ::fork();
    if (pid == 0) be_member(*memory, index, count, work);
    if (pid > 0) pids.push_back(pid);
  }
  std::string failure = pids.size() == count ? "" : "fork failed";
  const auto end_all = [&] {
    for (const pid_t pid : pids) ::kill(pid, SIGKILL);
  };
  if (!failure.empty()) end_all();
  for (std::size_t ended = 0; ended < pids.size(); ++ended) {
    // Whoever fails first: the others may wait for it.
    int status = 0;
    std::size_t index = 0;
    for (bool found = false; !found;) {
      siginfo_t info{};
      if (::waitid(P_ALL, 0, &info, WEXITED | WNOWAIT) != 0 && errno != EINTR) break;
      for (index = 0; index < pids.size() && !found; ++index) found = pids[index] == info.si_pid;
      if (found) --index;
      else ::sched_yield();  // somebody else's child has ended: it is not ours to take
    }
    while (::waitpid(pids[index], &status, 0) < 0 && errno == EINTR) {
    }
    pids[index] = -1;
    if (status != 0 && failure.empty()) {
      const char* said = memory->members[index].failure.data();
      failure = said[0] != 0 ? said : fmt::format("process {} ended with wait status {:#x}", index, status);
      for (const pid_t pid : pids) {
        if (pid > 0) ::kill(pid, SIGKILL);
      }
    }
  }
  if (!failure.empty()) throw std::runtime_error(failure);
  std::vector<std::vector<double>> figures;
  for (std::uint32_t index = 0; index < count; ++index) {
    const auto& mine = memory->members[index];
    figures.emplace_back(mine.figure.begin(), mine.figure.begin() + mine.figures);
  }
  return figures;
}

}  // namespace kvtrie::bench
