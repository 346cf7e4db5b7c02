// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Devices whose planes a worker does not write itself.

#include <sys/resource.h>

#include <cstdlib>

#include "tests/worker_plugin/errors/every_call.h"

namespace kvtrie::test {

ErrorCases queued_device_cases() {
  return {
      {"kvtrie_queue_copy", KVTRIE_E_INVALID, "cache '*not inside a page of this cache",
       [](ErrorWorld& world) { return kvtrie_queue_copy(world.worker, 0, 0, 1020, "12345", 5); }},
      {"kvtrie_queue_copy", KVTRIE_E_NOT_NOW,
       "cache '*as many copies as the queue holds are on their way: wait for some",
       [](ErrorWorld& world) { return kvtrie_queue_copy(world.worker, 0, 0, 0, "x", 1); }},
      {"kvtrie_wait_copies", KVTRIE_E_TIMEOUT, "cache '*copies are still on their way: wait again",
       [](ErrorWorld& world) { return kvtrie_wait_copies(world.worker, 5); }},
      {"kvtrie_fork", KVTRIE_E_INVALID,
       "planes of this device are not written by this process: pass KVTRIE_NO_COPY and copy",
       [](ErrorWorld& world) {
         kvtrie_sequence child{7};
         const kvtrie_code code = kvtrie_fork(world.sequence, nullptr, &child);
         EXPECT_EQ(child.id, 0U);
         return code;
       }},
      {"kvtrie_copy_in", KVTRIE_E_INVALID, "planes of this device are not written by this process: see kvtrie_device.h",
       [](ErrorWorld& world) {
         const std::array<std::byte, 1024> bytes{};
         return kvtrie_copy_in(world.sequence, 2 * kPageTokens, kPageTokens, 0, nullptr, bytes.data());
       }},
      {"kvtrie_wait_copies", KVTRIE_E_POISONED, "cache '*the segment was given up: detach and attach again",
       [](ErrorWorld& world) {
         world.kill_daemon();
         world.segment().poison(PoisonReason::kOperator);
         const kvtrie_code code = kvtrie_wait_copies(world.worker, 60'000);
         world.segment().superblock().poison_state = 0;
         world.segment().superblock().poison_reason = 0;
         return code;
       }},
  };
}

ErrorCases cuda_device_cases() {
  return {
      {"kvtrie_plane_descriptor", KVTRIE_E_INVALID, "cache '*there is no such plane",
       [](ErrorWorld& world) {
         int descriptor = 7;
         return kvtrie_plane_descriptor(world.worker, 2, &descriptor);
       }},
      {"kvtrie_plane_descriptor", KVTRIE_E_SYSTEM, "cache '*duplicating a plane's descriptor: ",
       [](ErrorWorld& world) {
         rlimit before{};
         EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
         const rlimit none{0, before.rlim_max};
         EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
         int descriptor = 7;
         const kvtrie_code code = kvtrie_plane_descriptor(world.worker, 0, &descriptor);
         EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
         EXPECT_EQ(descriptor, -1);
         return code;
       }},
      {"kvtrie_page_address", KVTRIE_E_INVALID, "the planes are in device memory: import kvtrie_plane_descriptor()",
       [](ErrorWorld& world) {
         void* address = nullptr;
         return kvtrie_page_address(world.worker, 0, 0, &address);
       }},
      {"kvtrie_copy_out", KVTRIE_E_INVALID, "plane 0 of 0: there is none that this process can touch",
       [](ErrorWorld& world) {
         std::array<std::byte, 1024> bytes{};
         return kvtrie_copy_out(world.sequence, 0, kPageTokens, 0, nullptr, bytes.data());
       }},
  };
}

namespace {

TEST(AbiErrorsTest, QueuedDevice) {
  // The next kvtried, without that delay, lets them land.
  ErrorWorld world({"--device", "queued", "--queue-delay-ms", "60000"});
  EXPECT_EQ(kvtrie_wait_copies(world.worker, 0), KVTRIE_OK);
  for (int i = 0; i < 8; ++i)
    EXPECT_EQ(kvtrie_queue_copy(world.worker, 0, 0, 0, "x", 1), KVTRIE_OK) << kvtrie_last_error();
  world.run(queued_device_cases());
}

TEST(AbiErrorsTest, CudaDevice) {
  ::setenv("LD_LIBRARY_PATH", KVTRIE_TEST_STUB_CUDA_DIR, 1);
  {
    ErrorWorld world({"--device", "cuda:0"});
    ::unsetenv("LD_LIBRARY_PATH");
    world.run(cuda_device_cases());
  }
}

}  // namespace
}  // namespace kvtrie::test
