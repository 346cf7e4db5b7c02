// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/device.h"

#include "coordinator/cuda_device.h"
#include "coordinator/host_device.h"
#include "coordinator/queued_device.h"

namespace kvtrie {

std::unique_ptr<Device> make_device(const Options& options, DeviceKind kind) {
  switch (kind) {
    case DeviceKind::kQueued:
      return std::make_unique<QueuedDevice>(options.memory, options.queue_delay_ms.value_or(0));
    case DeviceKind::kCuda:
      return std::make_unique<CudaDevice>(options.device ? options.device->ordinals : std::vector<int>{});
    case DeviceKind::kHost:
      break;
  }
  return std::make_unique<HostDevice>(options.memory);
}

void discard_planes(const std::string& cache) {
  for (std::uint32_t plane = 0; plane < kPlanesMax; ++plane) {
    (void)discard_object(pool_object_name(cache, plane));
  }
  (void)discard_object(queue_object_name(cache));
}

void remove_planes(const std::string& cache, std::uint32_t first_plane, bool keep_queue) {
  for (std::uint32_t plane = first_plane; plane < kPlanesMax; ++plane) {
    (void)remove_object(pool_object_name(cache, plane));
  }
  if (!keep_queue) (void)remove_object(queue_object_name(cache));
}

}  // namespace kvtrie
