// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a user's C++17 program does with an installed kvtrie: kvtrie.hpp and, with KVTRIE_CONSUMER_LINKED, the library
// that find_package gave; without it the program has the headers alone and loads the library. No coordinator runs here.
//   consumer_cxx PATH_OF_LIBKVTRIE_WORKER
#include <kvtrie_types.hpp>

#include <kvtrie.hpp>

#include <kvtrie_policy.hpp>

#include <cstdio>
#include <cstring>
#include <type_traits>

#if __cplusplus < 201703L || __cplusplus >= 202002L
#error "this is to show that C++17 is enough"
#endif

namespace kv = kvtrie::client;

namespace {

int failures = 0;

void expect(bool truth, const char* claim) {
  if (truth) return;
  std::fprintf(stderr, "consumer_cxx: not true: %s\n", claim);
  ++failures;
}

// Without a coordinator attach answers at once, and says so.
void use(const kv::Library& library) {
  expect(std::strncmp(library.version(), "kvtrie ", 7) == 0, "the version begins with \"kvtrie \"");
  expect(library.api_version() >= KVTRIE_API_VERSION, "the library knows the header's version");
  kv::AttachOptions where;
  where.cache = "install-test-nobody-serves-this";
  where.directory = "/nonexistent/kvtrie";
  kv::Worker worker;
  expect(worker.attach(library, where) == KVTRIE_E_NO_COORDINATOR, "nobody serves this cache");
  expect(!worker, "it is not attached");
  try {
    kv::Worker(library, where);
    expect(false, "the constructor throws");
  } catch (const kv::Error& error) {
    expect(error.code() == KVTRIE_E_NO_COORDINATOR, "the error has the code");
    expect(std::strlen(error.what()) > 0, "the error has a text");
  }
  expect(kv::WaitPolicy(kv::Geometry{}).advise(kv::BeginResult{}, 1000).choice == kv::Choice::kCompute, "nothing to wait for");
  expect(library.calls().wait_copies != nullptr, "calls of kvtrie_device.h are found");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: consumer_cxx PATH_OF_LIBKVTRIE_WORKER\n");
    return 2;
  }
  use(kv::Library::open(argv[1]));
#ifdef KVTRIE_CONSUMER_LINKED
  use(kv::Library::linked());
#endif
  std::printf("kvtrie.hpp: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
