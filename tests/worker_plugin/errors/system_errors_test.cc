// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Memory and file descriptors that run out. Each later allocation of a call: c_api_faults_test.cc.

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <new>

#include "tests/support/replaced_heap.h"
#include "tests/worker_plugin/errors/every_call.h"

namespace {

// The next allocation of this thread fails, in the plugin, too.
thread_local bool out_of_memory = false;

}  // namespace

void kvtrie::test::before_allocation() {
  if (out_of_memory) throw std::bad_alloc();
}

namespace kvtrie::test {
namespace {

// No descriptor is free while it lives.
class NoDescriptors {
 public:
  NoDescriptors() {
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &before_), 0);
    const rlimit none{0, before_.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  }
  NoDescriptors(const NoDescriptors&) = delete;
  NoDescriptors& operator=(const NoDescriptors&) = delete;
  ~NoDescriptors() { EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &before_), 0); }

 private:
  rlimit before_{};
};

kvtrie_code without_memory(const EveryCall& one, const Handles& handles) {
  out_of_memory = true;
  const kvtrie_code code = one.call(handles);
  out_of_memory = false;
  return code;
}

const EveryCall& call_of(std::string_view name) { return *std::ranges::find(every_call(), name, &EveryCall::name); }

bool takes_memory(const EveryCall& one) {
  return is_any_of(one.name,
                   {"kvtrie_open_namespace", "kvtrie_begin", "kvtrie_prepare_batch", "kvtrie_probe", "kvtrie_evict",
                    "kvtrie_flush", "kvtrie_append", "kvtrie_allocate", "kvtrie_give_back", "kvtrie_copy_in",
                    "kvtrie_copy_out", "kvtrie_publish", "kvtrie_publish_incomplete", "kvtrie_fork", "kvtrie_release"});
}

}  // namespace

ErrorCases memory_cases() {
  ErrorCases cases;
  for (const EveryCall& one : every_call()) {
    if (!takes_memory(one)) continue;
    cases.push_back({one.name, KVTRIE_E_SYSTEM, "out of memory", [&one](ErrorWorld& world) {
                       return without_memory(one, {world.worker, world.space, world.sequence});
                     }});
  }
  cases.push_back({"kvtrie_attach", KVTRIE_E_SYSTEM, "out of memory", [](ErrorWorld& world) {
                     kvtrie_attach_options where = world.options();
                     where.name = "a name that is longer than a string keeps without memory";
                     kvtrie_worker attached{7};
                     out_of_memory = true;
                     const kvtrie_code code = kvtrie_attach(&where, &attached);
                     out_of_memory = false;
                     EXPECT_EQ(attached.id, 0U);
                     return code;
                   }});
  cases.push_back({"kvtrie_wait_pending", KVTRIE_E_SYSTEM, "out of memory", [](ErrorWorld& world) {
                     return without_memory(call_of("kvtrie_wait_pending"), {world.worker, world.space, world.second});
                   }});
  return cases;
}

ErrorCases descriptor_cases() {
  ErrorCases cases;
  for (const char* const name : {"kvtrie_evict", "kvtrie_flush"}) {
    cases.push_back({name, KVTRIE_E_SYSTEM, "cache '*making a socket: Too many open files", [name](ErrorWorld& world) {
                       const NoDescriptors none;
                       return call_of(name).call({world.worker, world.space, world.sequence});
                     }});
  }
  cases.push_back({"kvtrie_attach", KVTRIE_E_SYSTEM, "too few free file descriptors for the pools (ulimit -n)",
                   [](ErrorWorld& world) {
                     // One is free: the socket's.
                     const int next = ::fcntl(0, F_DUPFD_CLOEXEC, 0);
                     rlimit before{};
                     EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
                     const rlimit one{static_cast<rlim_t>(next) + 1, before.rlim_max};
                     (void)::close(next);
                     EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &one), 0);
                     const kvtrie_attach_options where = world.options();
                     kvtrie_worker attached{7};
                     const kvtrie_code code = kvtrie_attach(&where, &attached);
                     EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
                     EXPECT_EQ(attached.id, 0U);
                     return code;
                   }});
  return cases;
}

namespace {

TEST(AbiErrorsTest, MemoryThatRunsOut) {
  ErrorWorld world;
  world.second = world.begin(world.worker, world.space, prompt(7, 3));
  (void)world.allocated(world.worker, world.space, prompt(7, 3), 3 * kPageTokens);  // what it could match now
  world.run(memory_cases());
}

TEST(AbiErrorsTest, DescriptorsThatRunOut) { run_in_world(descriptor_cases()); }

}  // namespace
}  // namespace kvtrie::test
