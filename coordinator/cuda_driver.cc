// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/cuda_driver.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace kvtrie {

MaybeFailure CudaDriver::load(const std::string& library, CudaDriver& driver) {
  void* const handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (handle == nullptr) {
    return Failure{fmt::format("--device cuda: {}; install NVIDIA's driver, or give the container its libraries "
                               "(--gpus, nvidia.com/gpu)",
                               ::dlerror())};
  }
#define KVTRIE_X(member, symbol, arguments)                                                             \
  driver.member = reinterpret_cast<cuda::Result(*) arguments>(::dlsym(handle, symbol));                 \
  if (driver.member == nullptr) {                                                                       \
    return Failure{fmt::format("--device cuda: {} has no {}: a driver of CUDA 11 or later is needed",   \
                               library, symbol)};                                                       \
  }
  KVTRIE_CUDA_CALLS(KVTRIE_X)
#undef KVTRIE_X
  return driver.failure("cuInit", driver.init(0));
}

MaybeFailure CudaDriver::failure(const char* call, cuda::Result result) const {
  if (result == 0) return {};
  const char* name = nullptr;
  if (error_name(result, &name) != 0 || name == nullptr) name = "an unknown error";
  Failure failed{fmt::format("{}: {} ({})", call, name, result)};
  failed.no_room = result == cuda::kOutOfMemory;
  return failed;
}

}  // namespace kvtrie
