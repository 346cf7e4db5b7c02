// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The few calls of the CUDA driver that planes need, found at run time: kvtried builds and runs where there is no CUDA.
//
// Own declarations of the driver's binary interface (CUDA 11 and later, 64-bit Linux): types, numbers and symbol names
// only. Symbols that the driver has in several versions are named with theirs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "coordinator/failure.h"

namespace kvtrie {

namespace cuda {

using Result = int;  // 0: success
inline constexpr Result kOutOfMemory = 2;
using Device = int;
using Context = void*;
using DevicePointer = unsigned long long;
using Allocation = unsigned long long;  // a handle

inline constexpr int kAttributeVirtualMemory = 102;
inline constexpr int kAttributePosixDescriptors = 103;
inline constexpr int kAllocationPinned = 1;
inline constexpr int kHandlePosixDescriptor = 1;
inline constexpr int kLocationDevice = 1;
inline constexpr int kAccessReadWrite = 3;
inline constexpr int kGranularityMinimum = 0;

struct Location {
  int type;
  int id;
};

struct AllocationProperties {
  int type;
  int handle_types;
  Location location;
  void* win32_metadata;
  struct {
    unsigned char compression;
    unsigned char rdma_capable;
    unsigned short usage;
    unsigned char reserved[4];
  } flags;
};
static_assert(sizeof(AllocationProperties) == 32 && offsetof(AllocationProperties, win32_metadata) == 16,
              "as the driver reads it");

struct AccessDescription {
  Location location;
  int flags;
};
static_assert(sizeof(AccessDescription) == 12, "as the driver reads it");

}  // namespace cuda

//   X(member, symbol, arguments)
#define KVTRIE_CUDA_CALLS(X)                                                                                     \
  X(init, "cuInit", (unsigned flags))                                                                            \
  X(error_name, "cuGetErrorName", (cuda::Result error, const char** name))                                       \
  X(device_get, "cuDeviceGet", (cuda::Device * device, int ordinal))                                             \
  X(device_attribute, "cuDeviceGetAttribute", (int* value, int attribute, cuda::Device device))                  \
  X(context_retain, "cuDevicePrimaryCtxRetain", (cuda::Context * context, cuda::Device device))                  \
  X(context_release, "cuDevicePrimaryCtxRelease_v2", (cuda::Device device))                                      \
  X(context_push, "cuCtxPushCurrent_v2", (cuda::Context context))                                                \
  X(context_pop, "cuCtxPopCurrent_v2", (cuda::Context * context))                                                \
  X(context_synchronize, "cuCtxSynchronize", ())                                                                 \
  X(granularity, "cuMemGetAllocationGranularity",                                                                \
    (std::size_t * bytes, const cuda::AllocationProperties* properties, int option))                             \
  X(create, "cuMemCreate",                                                                                       \
    (cuda::Allocation * allocation, std::size_t bytes, const cuda::AllocationProperties* properties,             \
     unsigned long long flags))                                                                                  \
  X(release, "cuMemRelease", (cuda::Allocation allocation))                                                      \
  X(export_descriptor, "cuMemExportToShareableHandle",                                                           \
    (void* descriptor, cuda::Allocation allocation, int handle_type, unsigned long long flags))                  \
  X(reserve, "cuMemAddressReserve",                                                                              \
    (cuda::DevicePointer * address, std::size_t bytes, std::size_t alignment, cuda::DevicePointer wanted,        \
     unsigned long long flags))                                                                                  \
  X(unreserve, "cuMemAddressFree", (cuda::DevicePointer address, std::size_t bytes))                             \
  X(map, "cuMemMap",                                                                                             \
    (cuda::DevicePointer address, std::size_t bytes, std::size_t offset, cuda::Allocation allocation,            \
     unsigned long long flags))                                                                                  \
  X(unmap, "cuMemUnmap", (cuda::DevicePointer address, std::size_t bytes))                                       \
  X(set_access, "cuMemSetAccess",                                                                                \
    (cuda::DevicePointer address, std::size_t bytes, const cuda::AccessDescription* access, std::size_t count)) \
  X(fill, "cuMemsetD8_v2", (cuda::DevicePointer address, unsigned char value, std::size_t bytes))

// The driver's library, loaded for the rest of the process: it does not like to be unloaded.
class CudaDriver {
 public:
  // `library`: "libcuda.so.1". Loads it, finds all calls, initializes.
  static MaybeFailure load(const std::string& library, CudaDriver& driver);

  // "cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY", or nothing when it succeeded.
  MaybeFailure failure(const char* call, cuda::Result result) const;

#define KVTRIE_X(member, symbol, arguments) cuda::Result(*member) arguments = nullptr;
  KVTRIE_CUDA_CALLS(KVTRIE_X)
#undef KVTRIE_X
};

}  // namespace kvtrie
