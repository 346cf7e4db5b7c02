// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The calls that a CUDA device makes and their order, against a stub of the driver; and the same device on a real one,
// where there is a GPU.

#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <string>
#include <vector>

#include "coordinator/cuda_device.h"
#include "tests/coordinator/stub_cuda/stub_cuda.h"

namespace kvtrie {
namespace {

class CudaDeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    void* const stub = ::dlopen(KVTRIE_TEST_STUB_CUDA, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(stub, nullptr) << ::dlerror();
    reset_ = reinterpret_cast<decltype(&stub_cuda_reset)>(::dlsym(stub, "stub_cuda_reset"));
    calls_ = reinterpret_cast<decltype(&stub_cuda_calls)>(::dlsym(stub, "stub_cuda_calls"));
    held_ = reinterpret_cast<decltype(&stub_cuda_held)>(::dlsym(stub, "stub_cuda_held"));
    ASSERT_TRUE(reset_ != nullptr && calls_ != nullptr && held_ != nullptr);
    reset_(0);
  }
  static PlanesWanted wanted(std::uint32_t planes = 1) {
    PlanesWanted wanted;
    wanted.cache = "cuda-test";
    wanted.geometry.pages = 64;
    wanted.geometry.page_bytes = 1024;
    wanted.geometry.planes = planes;
    return wanted;
  }
  static constexpr char kMake[] =
      "cuInit\n"
      "cuDeviceGet 0\n"
      "cuDeviceGetAttribute 102\n"
      "cuDeviceGetAttribute 103\n"
      "cuDevicePrimaryCtxRetain 0\n"
      "cuMemGetAllocationGranularity\n"
      "cuMemCreate 2097152\n"
      "cuMemAddressReserve 2097152\n"
      "cuMemMap\n"
      "cuMemSetAccess\n"
      "cuCtxPushCurrent\n"
      "cuMemsetD8\n"
      "cuCtxSynchronize\n"
      "cuCtxPopCurrent\n"
      "cuMemUnmap\n"
      "cuMemAddressFree\n"
      "cuMemExportToShareableHandle\n";
  static constexpr int kCallsOfMake = 17;

  decltype(&stub_cuda_reset) reset_ = nullptr;
  decltype(&stub_cuda_calls) calls_ = nullptr;
  decltype(&stub_cuda_held) held_ = nullptr;
};

TEST_F(CudaDeviceTest, MakesClearsAndExportsAPlaneAndGivesItBackInReverse) {
  {
    CudaDevice device({0}, KVTRIE_TEST_STUB_CUDA);
    const MaybeFailure failure = device.make(wanted());
    ASSERT_FALSE(failure) << failure->text;
    EXPECT_EQ(std::string(calls_()), kMake);
    EXPECT_EQ(held_(), 2) << "the context and the memory";
    reset_(0);
  }
  EXPECT_EQ(std::string(calls_()), "cuMemRelease\ncuDevicePrimaryCtxRelease 0\n");
  EXPECT_EQ(held_(), 0);
}

TEST_F(CudaDeviceTest, GivesEverythingBackWhicheverCallFails) {
  for (int n = 1; n <= kCallsOfMake; ++n) {
    reset_(n);
    CudaDevice device({0}, KVTRIE_TEST_STUB_CUDA);
    const MaybeFailure failure = device.make(wanted());
    ASSERT_TRUE(failure) << "call " << n;
    EXPECT_NE(failure->text.find("CUDA_ERROR_OUT_OF_MEMORY"), std::string::npos) << failure->text;
    EXPECT_EQ(device.plane_count(), 0U);
    EXPECT_EQ(held_(), 0) << "call " << n << ":\n" << calls_();
  }
}

TEST_F(CudaDeviceTest, DescriptorIsOfClearedMemoryThatAWorkerCanMap) {
  CudaDevice device({0}, KVTRIE_TEST_STUB_CUDA);
  ASSERT_FALSE(device.make(wanted()));
  const int fd = device.descriptor(0, Access::kReadWrite);
  EXPECT_EQ(::fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  void* const data = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(data, MAP_FAILED);
  EXPECT_EQ(*static_cast<const char*>(data), 0) << "the bytes of another process are still in it";
  ::munmap(data, 4096);
  EXPECT_EQ(device.plane_bytes(), 64U * 1024);
  EXPECT_EQ(device.describe(), "device=cuda:0 planes=1 plane_bytes=65536 allocated_bytes=2097152");
}

TEST_F(CudaDeviceTest, SecondPlaneThatCannotBeMadeTakesTheFirstAlong) {
  CudaDevice device({0, 1}, KVTRIE_TEST_STUB_CUDA);
  const MaybeFailure failure = device.make(wanted(2));
  ASSERT_TRUE(failure);
  EXPECT_NE(failure->text.find("plane 1"), std::string::npos) << failure->text;
  EXPECT_NE(failure->text.find("CUDA device 1: it cannot export memory"), std::string::npos) << failure->text;
  EXPECT_EQ(held_(), 0) << calls_();
}

TEST_F(CudaDeviceTest, CannotBeAdopted) {
  CudaDevice device({0}, KVTRIE_TEST_STUB_CUDA);
  EXPECT_TRUE(device.adopt(wanted()));
  EXPECT_EQ(std::string(calls_()), "");
}

TEST_F(CudaDeviceTest, HostWithoutADriverIsToldWhatToInstall) {
  CudaDevice device({0}, "libcuda-that-is-not-there.so.1");
  const MaybeFailure failure = device.make(wanted());
  ASSERT_TRUE(failure);
  EXPECT_NE(failure->text.find("install NVIDIA's driver"), std::string::npos) << failure->text;
  CudaDevice other({0}, "libc.so.6");
  const MaybeFailure old = other.make(wanted());
  ASSERT_TRUE(old);
  EXPECT_NE(old->text.find("has no cuInit"), std::string::npos) << old->text;
}

// Two planes on a real device: distinct memory, exported, and usable by an import in this process.
TEST(CudaRealDeviceTest, MakesPlanesOnTheGpuOfThisHost) {
  CudaDriver driver;
  if (const MaybeFailure none = CudaDriver::load("libcuda.so.1", driver)) {
    GTEST_SKIP() << "no CUDA driver here: " << none->text;
  }
  cuda::Device first = 0;
  if (driver.device_get(&first, 0) != 0) GTEST_SKIP() << "a CUDA driver, but no device";
  CudaDevice device({0});
  PlanesWanted wanted;
  wanted.geometry.pages = 64;
  wanted.geometry.page_bytes = 65536;
  wanted.geometry.planes = 2;
  const MaybeFailure failure = device.make(wanted);
  ASSERT_FALSE(failure) << failure->text;
  ASSERT_EQ(device.plane_count(), 2U);
  EXPECT_GE(device.descriptor(0, Access::kReadWrite), 0);
  EXPECT_NE(device.descriptor(0, Access::kReadWrite), device.descriptor(1, Access::kReadWrite));
}

}  // namespace
}  // namespace kvtrie
