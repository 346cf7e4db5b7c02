// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/cuda_device.h"

#include <fmt/format.h>

#include <fcntl.h>
#include <unistd.h>

#include <utility>

namespace kvtrie {

// One plane's memory. Whatever make() got as far as, the destructor takes back, last first.
class CudaDevice::Plane {
 public:
  explicit Plane(const CudaDriver& driver) : driver_(driver) {}
  Plane(const Plane&) = delete;
  Plane& operator=(const Plane&) = delete;
  ~Plane() {
    descriptor_ = {};
    if (allocation_ != 0) (void)driver_.release(allocation_);
    if (context_ != nullptr) (void)driver_.context_release(device_);
  }

  MaybeFailure make(int ordinal, std::uint64_t bytes) {
    if (MaybeFailure failure = open(ordinal)) return failure;
    if (MaybeFailure failure = allocate(bytes)) return failure;
    if (MaybeFailure failure = clear()) return failure;
    return export_it();
  }
  int descriptor() const { return descriptor_.get(); }
  std::uint64_t allocated_bytes() const { return bytes_; }

 private:
  MaybeFailure open(int ordinal) {
    if (MaybeFailure failure = driver_.failure("cuDeviceGet", driver_.device_get(&device_, ordinal))) return failure;
    for (const int attribute : {cuda::kAttributeVirtualMemory, cuda::kAttributePosixDescriptors}) {
      int value = 0;
      if (MaybeFailure failure =
              driver_.failure("cuDeviceGetAttribute", driver_.device_attribute(&value, attribute, device_))) {
        return failure;
      }
      if (value == 0) return Failure{"it cannot export memory as file descriptors (virtual memory management)"};
    }
    return driver_.failure("cuDevicePrimaryCtxRetain", driver_.context_retain(&context_, device_));
  }

  MaybeFailure allocate(std::uint64_t bytes) {
    cuda::AllocationProperties properties{};
    properties.type = cuda::kAllocationPinned;
    properties.handle_types = cuda::kHandlePosixDescriptor;
    properties.location = {cuda::kLocationDevice, device_};
    std::size_t unit = 0;
    if (MaybeFailure failure =
            driver_.failure("cuMemGetAllocationGranularity",
                            driver_.granularity(&unit, &properties, cuda::kGranularityMinimum))) {
      return failure;
    }
    if (unit == 0) return Failure{"cuMemGetAllocationGranularity: 0"};
    bytes_ = (bytes + unit - 1) / unit * unit;
    return driver_.failure("cuMemCreate", driver_.create(&allocation_, bytes_, &properties, 0));
  }

  MaybeFailure clear() {
    cuda::DevicePointer address = 0;
    if (MaybeFailure failure =
            driver_.failure("cuMemAddressReserve", driver_.reserve(&address, bytes_, 0, 0, 0))) {
      return failure;
    }
    MaybeFailure failure = driver_.failure("cuMemMap", driver_.map(address, bytes_, 0, allocation_, 0));
    if (!failure) {
      failure = fill(address);
      MaybeFailure undone = driver_.failure("cuMemUnmap", driver_.unmap(address, bytes_));
      if (!failure) failure = std::move(undone);
    }
    MaybeFailure undone = driver_.failure("cuMemAddressFree", driver_.unreserve(address, bytes_));
    return failure ? failure : undone;
  }

  MaybeFailure fill(cuda::DevicePointer address) {
    const cuda::AccessDescription access{{cuda::kLocationDevice, device_}, cuda::kAccessReadWrite};
    if (MaybeFailure failure =
            driver_.failure("cuMemSetAccess", driver_.set_access(address, bytes_, &access, 1))) {
      return failure;
    }
    if (MaybeFailure failure = driver_.failure("cuCtxPushCurrent", driver_.context_push(context_))) return failure;
    MaybeFailure failure = driver_.failure("cuMemsetD8", driver_.fill(address, 0, bytes_));
    if (!failure) failure = driver_.failure("cuCtxSynchronize", driver_.context_synchronize());
    cuda::Context popped = nullptr;
    MaybeFailure undone = driver_.failure("cuCtxPopCurrent", driver_.context_pop(&popped));
    return failure ? failure : undone;
  }

  MaybeFailure export_it() {
    int descriptor = -1;
    if (MaybeFailure failure =
            driver_.failure("cuMemExportToShareableHandle",
                            driver_.export_descriptor(&descriptor, allocation_, cuda::kHandlePosixDescriptor, 0))) {
      return failure;
    }
    descriptor_ = FileDescriptor(descriptor);
    // Sent with SCM_RIGHTS, not inherited.
    if (::fcntl(descriptor, F_SETFD, FD_CLOEXEC) != 0) return system_failure("FD_CLOEXEC of a plane", errno);
    return {};
  }

  const CudaDriver& driver_;
  cuda::Device device_ = 0;
  cuda::Context context_ = nullptr;
  cuda::Allocation allocation_ = 0;
  std::uint64_t bytes_ = 0;
  FileDescriptor descriptor_;
};

CudaDevice::CudaDevice(std::vector<int> ordinals, std::string library)
    : ordinals_(std::move(ordinals)), library_(std::move(library)) {}

CudaDevice::~CudaDevice() = default;

MaybeFailure CudaDevice::make(const PlanesWanted& wanted) {
  if (MaybeFailure failure = CudaDriver::load(library_, driver_)) return failure;
  plane_bytes_ = pool_bytes(wanted.geometry);
  for (std::uint32_t plane = 0; plane < wanted.geometry.planes; ++plane) {
    const int ordinal = ordinals_.size() == 1 ? ordinals_[0] : ordinals_.at(plane);
    auto made = std::make_unique<Plane>(driver_);
    if (MaybeFailure failure = made->make(ordinal, plane_bytes_)) {
      failure->text = fmt::format("plane {} of {} bytes on CUDA device {}: {}", plane, plane_bytes_, ordinal,
                                  failure->text);
      made.reset();
      planes_.clear();
      return failure;
    }
    planes_.push_back(std::move(made));
  }
  return {};
}

MaybeFailure CudaDevice::adopt(const PlanesWanted&) {
  return Failure{"planes on CUDA devices ended with the coordinator that made them: they cannot be adopted"};
}

int CudaDevice::descriptor(std::uint32_t plane, Access) const { return planes_[plane]->descriptor(); }

std::string CudaDevice::describe() const {
  std::string devices;
  for (const int ordinal : ordinals_)
    devices += fmt::format("{}{}", devices.empty() ? "" : ",", ordinal);
  return fmt::format("device=cuda:{} planes={} plane_bytes={} allocated_bytes={}", devices, plane_count(),
                     plane_bytes_, planes_.empty() ? 0 : planes_.front()->allocated_bytes());
}

}  // namespace kvtrie
