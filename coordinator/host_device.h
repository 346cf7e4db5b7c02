// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Planes in host memory: one object in /dev/shm each, which workers map and write. They outlive the coordinator.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/device.h"

namespace kvtrie {

class HostDevice : public Device {
 public:
  explicit HostDevice(const HostMemory& memory) : memory_(memory) {}

  MaybeFailure make(const PlanesWanted& wanted) override;
  MaybeFailure publish() override;
  MaybeFailure adopt(const PlanesWanted& wanted) override;
  MaybeFailure start() override;

  std::uint32_t plane_count() const override { return static_cast<std::uint32_t>(writable_.size()); }
  std::uint64_t plane_bytes() const override { return plane_bytes_; }
  int descriptor(std::uint32_t plane, Access access) const override {
    return (access == Access::kReadWrite ? writable_ : read_only_)[plane].get();
  }
  bool fence(WorkerId) override { return true; }
  std::string describe() const override;

 protected:
  const PlanesWanted& wanted() const { return wanted_; }
  int writable(std::uint32_t plane) const { return writable_[plane].get(); }

 private:
  MaybeFailure make_plane(std::uint32_t plane);
  MaybeFailure open_plane(std::uint32_t plane);
  MaybeFailure lock_plane(std::uint32_t plane);

  const HostMemory memory_;
  PlanesWanted wanted_;
  std::uint64_t plane_bytes_ = 0;
  std::uint64_t huge_bytes_ = 0;  // of all planes, when they were made
  bool adopted_ = false;
  std::vector<FileDescriptor> writable_;
  std::vector<FileDescriptor> read_only_;
  std::vector<Mapping> locked_;  // memory is locked as long as it is mapped here
};

}  // namespace kvtrie
