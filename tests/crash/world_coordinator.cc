// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/crash/world_coordinator.h"

#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

#include "shm/geometry.h"
#include "shm/pins.h"
#include "shm/process_identity.h"
#include "shm/recovery.h"
#include "shm/runtime_directory.h"

namespace kvtrie::test {
namespace {

constexpr int kTurnsMax = 1000;

// Of the socket; removed when the tracer ends.
class SocketDirectory {
 public:
  SocketDirectory() {
    if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("mkdtemp");
  }
  SocketDirectory(const SocketDirectory&) = delete;
  SocketDirectory& operator=(const SocketDirectory&) = delete;
  ~SocketDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_ = "/tmp/kvtrie-step.XXXXXX";
};

FileDescriptor again(int fd) { return FileDescriptor(::dup(fd)); }

// The world's pool and copy queue.
class WorldDevice final : public Device {
 public:
  WorldDevice(const CrashWorld& world, DeviceKind kind) : world_(world), kind_(kind) {}
  MaybeFailure make(const PlanesWanted&) override { return {}; }
  MaybeFailure publish() override { return {}; }
  MaybeFailure adopt(const PlanesWanted&) override { return {}; }
  MaybeFailure start() override { return {}; }
  std::uint32_t plane_count() const override { return 1; }
  std::uint64_t plane_bytes() const override { return world_.view().pool_bytes().size(); }
  int descriptor(std::uint32_t, Access) const override { return world_.pool_fd(); }
  int queue_descriptor() const override { return kind_ == DeviceKind::kQueued ? world_.queue_fd() : -1; }
  bool fence(WorkerId gone) override { return kind_ != DeviceKind::kQueued || world_.queue().idle(gone); }
  std::string describe() const override { return "device=world"; }

 private:
  const CrashWorld& world_;
  const DeviceKind kind_;
};

void expect(const MaybeFailure& failure) {
  if (failure) throw Violation("coordinator: " + failure->text);
}

Segment map_again(const CrashWorld& world) {
  Result<Mapping> mapping =
      Mapping::map(world.segment_fd(), world.segment().size_bytes(), Access::kReadWrite);
  if (!mapping) throw Violation("coordinator: mapping");
  Result<Segment> segment = Segment::open(std::move(*mapping));
  if (!segment) throw Violation("coordinator: segment");
  return std::move(*segment);
}

}  // namespace

const std::string& socket_directory() {
  static const SocketDirectory made;
  return made.path();
}

WorldCoordinator::WorldCoordinator(const CrashWorld& world, DeviceKind device, const std::string& directory) {
  options_.cache = "crash";
  options_.directory = directory;
  Superblock& block = world.segment().superblock();
  block.incompatible_features = static_cast<std::uint64_t>(device);
  const Result<std::uint64_t> pid_namespace = own_pid_namespace();
  if (!pid_namespace) throw Violation("coordinator: PID namespace");
  block.pid_namespace = *pid_namespace;
  block.constant_checksum = constant_checksum(block);
  cache_.segment = map_again(world);
  cache_.segment_writable = again(world.segment_fd());
  cache_.segment_read_only = again(world.segment_fd());
  cache_.device = std::make_unique<WorldDevice>(world, device);
  reaper_.emplace(*cache_.segment, *cache_.device, log_);
  expect(reaper_->start());
  keeper_.emplace(*cache_.segment, Watermarks{0, 0});
  admin_.emplace(*cache_.segment, *keeper_, [] { return false; }, log_);
  service_.emplace(options_, cache_, *reaper_, *admin_, log_);
  connections_.emplace(*service_);
  const std::string socket = socket_path(directory, options_.cache);
  std::filesystem::create_directories(std::filesystem::path(socket).parent_path());
  expect(connections_->listen(socket, 0600));
}

void WorldCoordinator::adopt() {
  Reaper::AdoptSlots slots;
  expect(reaper_->adopt(slots));
  (void)adopt_pages(*cache_.segment);
  PinTable(*cache_.segment).recover();
}

bool WorldCoordinator::serve() {
  epoll_event event{};
  if (::epoll_wait(connections_->epoll_fd(), &event, 1, 0) <= 0) return false;
  connections_->serve();
  return true;
}

void WorldCoordinator::turn() {
  (void)reaper_->reap_dead();
  connections_->serve();
  (void)reaper_->reap_leaving();
  if (admin_->pages_changed()) (void)keeper_->pass([] { return false; });
}

void WorldCoordinator::reap(WorkerId slot) {
  const WorkerTable table(*cache_.segment);
  for (int i = 0; table.word(slot).state() != SlotState::kFree; ++i) {
    if (i == kTurnsMax) throw Violation("the coordinator did not reap the slot");
    turn();
  }
}

}  // namespace kvtrie::test
