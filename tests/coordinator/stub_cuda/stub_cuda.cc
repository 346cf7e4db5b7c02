// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/coordinator/stub_cuda/stub_cuda.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <map>
#include <string>

#include "coordinator/cuda_driver.h"

namespace cuda = kvtrie::cuda;

namespace {

constexpr cuda::Result kInvalidValue = 1;
using cuda::kOutOfMemory;
constexpr cuda::Result kInvalidDevice = 101;
constexpr std::size_t kGranularity = 2 << 20;
constexpr int kDevices = 2;

struct Allocated {
  int fd;
  std::size_t bytes;
};

struct Driver {
  std::string calls;
  int fail_at = 0;
  int count = 0;
  bool initialized = false;
  int contexts = 0;
  int pushed = 0;
  std::map<cuda::Allocation, Allocated> allocations;
  std::map<cuda::DevicePointer, std::size_t> ranges;
  std::map<cuda::DevicePointer, cuda::Allocation> mappings;
  std::map<cuda::DevicePointer, bool> accessible;
  unsigned long long next = 1;

  // Records a call; true when this one is to fail.
  bool called(const std::string& text) {
    calls += text + "\n";
    return ++count == fail_at;
  }
};

Driver driver;

std::string of(const char* name, unsigned long long number) { return std::string(name) + " " + std::to_string(number); }

}  // namespace

#define STUB extern "C" __attribute__((visibility("default")))

STUB void stub_cuda_reset(int fail_at) {
  driver.calls.clear();
  driver.count = 0;
  driver.fail_at = fail_at;
}

STUB const char* stub_cuda_calls(void) { return driver.calls.c_str(); }

STUB int stub_cuda_held(void) {
  return driver.contexts + driver.pushed +
         static_cast<int>(driver.allocations.size() + driver.ranges.size() + driver.mappings.size());
}

STUB cuda::Result cuInit(unsigned flags) {
  if (driver.called("cuInit")) return kOutOfMemory;
  driver.initialized = true;
  return flags == 0 ? 0 : kInvalidValue;
}

STUB cuda::Result cuGetErrorName(cuda::Result error, const char** name) {
  *name = error == kOutOfMemory ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_INVALID_VALUE";
  return 0;
}

STUB cuda::Result cuDeviceGet(cuda::Device* device, int ordinal) {
  if (driver.called(of("cuDeviceGet", static_cast<unsigned>(ordinal)))) return kOutOfMemory;
  if (!driver.initialized || ordinal >= kDevices) return kInvalidDevice;
  *device = ordinal;
  return 0;
}

STUB cuda::Result cuDeviceGetAttribute(int* value, int attribute, cuda::Device device) {
  if (driver.called(of("cuDeviceGetAttribute", static_cast<unsigned>(attribute)))) return kOutOfMemory;
  *value = device == 0 ? 1 : 0;
  return 0;
}

STUB cuda::Result cuDevicePrimaryCtxRetain(cuda::Context* context, cuda::Device device) {
  if (driver.called(of("cuDevicePrimaryCtxRetain", static_cast<unsigned>(device)))) return kOutOfMemory;
  ++driver.contexts;
  *context = &driver;
  return 0;
}

STUB cuda::Result cuDevicePrimaryCtxRelease_v2(cuda::Device device) {
  if (driver.called(of("cuDevicePrimaryCtxRelease", static_cast<unsigned>(device)))) return kOutOfMemory;
  --driver.contexts;
  return 0;
}

STUB cuda::Result cuCtxPushCurrent_v2(cuda::Context context) {
  if (driver.called("cuCtxPushCurrent")) return kOutOfMemory;
  if (context != &driver) return kInvalidValue;
  ++driver.pushed;
  return 0;
}

STUB cuda::Result cuCtxPopCurrent_v2(cuda::Context* context) {
  *context = &driver;
  --driver.pushed;
  return driver.called("cuCtxPopCurrent") ? kOutOfMemory : 0;
}

STUB cuda::Result cuCtxSynchronize(void) { return driver.called("cuCtxSynchronize") ? kOutOfMemory : 0; }

STUB cuda::Result cuMemGetAllocationGranularity(std::size_t* bytes, const cuda::AllocationProperties* properties,
                                                int option) {
  if (driver.called("cuMemGetAllocationGranularity")) return kOutOfMemory;
  if (option != cuda::kGranularityMinimum || properties->type != cuda::kAllocationPinned) return kInvalidValue;
  *bytes = kGranularity;
  return 0;
}

STUB cuda::Result cuMemCreate(cuda::Allocation* allocation, std::size_t bytes,
                              const cuda::AllocationProperties* properties, unsigned long long flags) {
  if (driver.called(of("cuMemCreate", bytes))) return kOutOfMemory;
  if (bytes == 0 || bytes % kGranularity != 0 || flags != 0 ||
      properties->handle_types != cuda::kHandlePosixDescriptor || properties->location.type != cuda::kLocationDevice) {
    return kInvalidValue;
  }
  const int fd = ::memfd_create("stub-cuda", MFD_CLOEXEC);
  if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0) return kOutOfMemory;
  // Somebody else's bytes, which the coordinator must clear.
  (void)!::pwrite(fd, "dirty", 5, 0);
  *allocation = driver.next++;
  driver.allocations[*allocation] = {fd, bytes};
  return 0;
}

STUB cuda::Result cuMemRelease(cuda::Allocation allocation) {
  if (driver.called("cuMemRelease")) return kOutOfMemory;
  const auto found = driver.allocations.find(allocation);
  if (found == driver.allocations.end()) return kInvalidValue;
  ::close(found->second.fd);
  driver.allocations.erase(found);
  return 0;
}

STUB cuda::Result cuMemExportToShareableHandle(void* descriptor, cuda::Allocation allocation, int handle_type,
                                               unsigned long long flags) {
  if (driver.called("cuMemExportToShareableHandle")) return kOutOfMemory;
  const auto found = driver.allocations.find(allocation);
  if (found == driver.allocations.end() || handle_type != cuda::kHandlePosixDescriptor || flags != 0) {
    return kInvalidValue;
  }
  *static_cast<int*>(descriptor) = ::dup(found->second.fd);
  return 0;
}

STUB cuda::Result cuMemAddressReserve(cuda::DevicePointer* address, std::size_t bytes, std::size_t, cuda::DevicePointer,
                                      unsigned long long) {
  if (driver.called(of("cuMemAddressReserve", bytes))) return kOutOfMemory;
  *address = driver.next++ << 32;
  driver.ranges[*address] = bytes;
  return 0;
}

STUB cuda::Result cuMemAddressFree(cuda::DevicePointer address, std::size_t bytes) {
  const auto found = driver.ranges.find(address);
  if (found == driver.ranges.end() || found->second != bytes || driver.mappings.contains(address)) return kInvalidValue;
  driver.ranges.erase(found);
  return driver.called("cuMemAddressFree") ? kOutOfMemory : 0;
}

STUB cuda::Result cuMemMap(cuda::DevicePointer address, std::size_t bytes, std::size_t offset,
                           cuda::Allocation allocation, unsigned long long flags) {
  if (driver.called("cuMemMap")) return kOutOfMemory;
  const auto found = driver.allocations.find(allocation);
  if (found == driver.allocations.end() || found->second.bytes != bytes || offset != 0 || flags != 0 ||
      !driver.ranges.contains(address)) {
    return kInvalidValue;
  }
  driver.mappings[address] = allocation;
  return 0;
}

STUB cuda::Result cuMemUnmap(cuda::DevicePointer address, std::size_t) {
  driver.accessible.erase(address);
  if (driver.mappings.erase(address) != 1) return kInvalidValue;
  return driver.called("cuMemUnmap") ? kOutOfMemory : 0;
}

STUB cuda::Result cuMemSetAccess(cuda::DevicePointer address, std::size_t, const cuda::AccessDescription* access,
                                 std::size_t count) {
  if (driver.called("cuMemSetAccess")) return kOutOfMemory;
  if (count != 1 || access->flags != cuda::kAccessReadWrite || !driver.mappings.contains(address)) return kInvalidValue;
  driver.accessible[address] = true;
  return 0;
}

STUB cuda::Result cuMemsetD8_v2(cuda::DevicePointer address, unsigned char value, std::size_t bytes) {
  if (driver.called("cuMemsetD8")) return kOutOfMemory;
  const auto mapping = driver.mappings.find(address);
  if (mapping == driver.mappings.end() || !driver.accessible.contains(address) || driver.pushed != 1) {
    return kInvalidValue;
  }
  const int fd = driver.allocations.at(mapping->second).fd;
  void* const data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return kOutOfMemory;
  auto* const all = static_cast<unsigned char*>(data);
  for (std::size_t i = 0; i < bytes; ++i)
    all[i] = value;
  ::munmap(data, bytes);
  return 0;
}
