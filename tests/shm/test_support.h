// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What tests of shared memory need: object names that no other process uses and that are gone at
// the end, segments without a name, and child processes that are stopped and killed at a known
// place.
#pragma once

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <string>
#include <utility>

#include "shm/segment.h"
#include "shm/shared_object.h"

namespace kvtrie::test {

inline constexpr int kChildWaitMs = 20'000;  // bound of every wait for a child

inline std::string unique_name(const std::string& stem) {
  static std::atomic<unsigned> next{0};
  return stem + "-" + std::to_string(::getpid()) + "-" + std::to_string(next.fetch_add(1));
}

// An object of this test's own. Its name is removed when the test ends, however it ends.
class NamedObject {
 public:
  explicit NamedObject(const std::string& stem) : name_("kvtrie-test." + unique_name(stem)) {}
  explicit NamedObject(const std::string& name, int /*exactly*/) : name_(name) {}
  NamedObject(const NamedObject&) = delete;
  NamedObject& operator=(const NamedObject&) = delete;
  ~NamedObject() { remove_object(name_); }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

// Shared memory that has no name any more: whoever dies, nothing is left. Children inherit the
// descriptor and map it themselves (a mapping is not inherited).
inline Result<FileDescriptor> nameless_object(std::uint64_t bytes) {
  const NamedObject object("nameless");
  return create_object(object.name(), bytes, 0600);
}

inline Geometry small_geometry(std::uint64_t pages = 256) {
  Geometry g;
  g.pages = pages;
  g.tokens_per_page = 4;
  g.page_bytes = 64;
  g.workers = 3;
  g.leases_per_worker = 10;
  g.namespaces = 4;
  g.stripes = 4;
  return g;
}

inline SegmentIdentity test_identity() {
  SegmentIdentity identity;
  identity.cache_name = "unit";
  identity.cache_id[0] = 11;
  identity.cache_id[1] = 22;
  identity.hash_secret = 0x5eed'5eed'5eed'5eedULL;
  for (std::uint8_t i = 0; i < 16; ++i)
    identity.boot_id[i] = static_cast<std::uint8_t>(i + 1);
  identity.pid_namespace = 4026531836;
  identity.clock = ClockKind::kDriven;
  identity.tick_ns = 1'000'000;
  return identity;
}

inline Result<Segment> build_segment(int fd, const Geometry& geometry) {
  Result<Mapping> mapping = Mapping::map(fd, layout_of(geometry).segment_bytes, Access::kReadWrite);
  if (!mapping) return mapping.error();
  return Segment::build(std::move(*mapping), geometry, test_identity());
}

// One byte through a pipe each way: "I am there", "go on". False when the other side is gone or
// silent.
class Line {
 public:
  Line(int read_fd, int write_fd) : read_fd_(read_fd), write_fd_(write_fd) {}
  bool say(char what = '+') const { return ::write(write_fd_, &what, 1) == 1; }
  char hear() const {  // 0: nothing came
    pollfd waited{read_fd_, POLLIN, 0};
    char what = 0;
    if (::poll(&waited, 1, kChildWaitMs) != 1 || ::read(read_fd_, &what, 1) != 1) return 0;
    return what;
  }

 private:
  int read_fd_;
  int write_fd_;
};

// A forked process running `body(line)`; its result is the exit status. Killed at the end of the
// test.
class Child {
 public:
  template <typename Body>
  explicit Child(Body body) {
    int down[2] = {-1, -1};
    int up[2] = {-1, -1};
    if (::pipe(down) != 0 || ::pipe(up) != 0) return;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(down[1]);
      ::close(up[0]);
      ::signal(SIGSEGV, SIG_DFL);  // a sanitizer's handler would make an exit status of it
      ::_exit(body(Line(down[0], up[1])));
    }
    ::close(down[0]);
    ::close(up[1]);
    read_ = FileDescriptor(up[0]);
    write_ = FileDescriptor(down[1]);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() { kill(); }

  pid_t pid() const { return pid_; }
  Line line() const { return Line(read_.get(), write_.get()); }
  bool alive() const { return pid_ > 0 && ::waitpid(pid_, nullptr, WNOHANG) == 0; }
  void send(int signal_number) const { ::kill(pid_, signal_number); }
  // True when the kernel says that it is stopped.
  bool stop() const {
    int status = 0;
    send(SIGSTOP);
    return ::waitpid(pid_, &status, WUNTRACED) == pid_ && WIFSTOPPED(status);
  }
  void kill() {
    if (pid_ <= 0) return;
    send(SIGKILL);
    wait();
  }
  // Waits for its end: exit status, or -signal.
  int wait() {
    if (pid_ <= 0) return -1000;
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  FileDescriptor read_;
  FileDescriptor write_;
};

}  // namespace kvtrie::test
