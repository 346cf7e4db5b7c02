// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Planes in the memory of CUDA devices, through the driver's virtual memory management: the coordinator creates each
// plane's memory, fills it with zeros (it may have been another process's), exports it as a file descriptor and keeps
// that; workers import the descriptor and map it. The coordinator itself has it mapped only while it fills it.
//
// The calls for one plane, in this order; what was done is undone in the reverse order when one fails:
//   cuDeviceGet, attributes 102 and 103       the device can do this
//   cuDevicePrimaryCtxRetain                  kept as long as the plane            cuDevicePrimaryCtxRelease
//   cuMemGetAllocationGranularity             the size is rounded up to it
//   cuMemCreate                               kept as long as the plane            cuMemRelease
//   cuMemAddressReserve                       to fill it                           cuMemAddressFree
//   cuMemMap, cuMemSetAccess                  to fill it                           cuMemUnmap
//   cuCtxPushCurrent, cuMemsetD8, cuCtxSynchronize, cuCtxPopCurrent
//   cuMemExportToShareableHandle              a file descriptor, kept              close
//
// The memory lives as long as anybody has it: a descriptor, a handle or a mapping. Nobody keeps one for the cache when
// the coordinator ends, so its successor cannot adopt (device.h, D4).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/cuda_driver.h"
#include "coordinator/device.h"

namespace kvtrie {

class CudaDevice final : public Device {
 public:
  // `ordinals`: one for each plane, or one for all.
  explicit CudaDevice(std::vector<int> ordinals, std::string library = "libcuda.so.1");
  ~CudaDevice() override;

  MaybeFailure make(const PlanesWanted& wanted) override;
  MaybeFailure publish() override { return {}; }
  MaybeFailure adopt(const PlanesWanted& wanted) override;
  MaybeFailure start() override { return {}; }

  std::uint32_t plane_count() const override { return static_cast<std::uint32_t>(planes_.size()); }
  std::uint64_t plane_bytes() const override { return plane_bytes_; }
  // One descriptor for both: the driver has no read-only export. Observers get it too, so they must be trusted.
  int descriptor(std::uint32_t plane, Access access) const override;
  bool fence(WorkerId) override { return true; }
  std::string describe() const override;

 private:
  class Plane;

  const std::vector<int> ordinals_;
  const std::string library_;
  CudaDriver driver_;
  std::uint64_t plane_bytes_ = 0;
  std::vector<std::unique_ptr<Plane>> planes_;
};

}  // namespace kvtrie
