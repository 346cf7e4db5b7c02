// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Examples of docs/plugin.md with a worker, and of kvtrie_device.h (example_cache.h says how they get there), and that
// they do what it says.

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "tests/support/eventually.h"
#include "tests/worker_plugin/examples/example_cache.h"

namespace kvtrie::test {
namespace {

// --- without a worker, or before there is one

void show_attach(const char* cache, const char* directory) {
  // example: kvtrie_attach
  kvtrie_attach_options where = {.size = sizeof where, .cache = cache, .directory = directory, .name = "my-engine"};
  kvtrie_worker worker;
  kvtrie_code code = kvtrie_attach(&where, &worker);
  if (code == KVTRIE_E_NO_COORDINATOR) {
    fprintf(stderr, "no cache: %s\n", kvtrie_last_error()); /* go on without, try again later */
  } else {
    check(code);
  }
  // end
  EXPECT_NE(worker.id, 0U);
  // example: kvtrie_detach
  check(kvtrie_detach(worker)); /* after the last call of every thread, before dlclose */
  // end
  EXPECT_EQ(kvtrie_detach(worker), KVTRIE_E_STALE);
}

void show_versions() {
  std::FILE* const out = std::tmpfile();
  // example: kvtrie_version
  fprintf(out, "%s\n", kvtrie_version()); /* kvtrie 0.1.0 */
  // end
  std::rewind(out);
  char line[32] = {};
  EXPECT_NE(std::fgets(line, sizeof line, out), nullptr);
  EXPECT_STREQ(line, "kvtrie " KVTRIE_VERSION "\n");
  std::fclose(out);
  bool too_old = true;
  // example: kvtrie_api_version
  too_old = kvtrie_api_version() < KVTRIE_API_VERSION; /* the library is older than this header */
  // end
  EXPECT_FALSE(too_old);
}

void show_last_error() {
  const kvtrie_sequence sequence{0};
  char line[512];
  // example: kvtrie_last_error
  kvtrie_code code = kvtrie_release(sequence);
  if (code != KVTRIE_OK) {
    /* at once, on this thread: "kvtrie_release: no such sequence 0x0: it was released, or ..." */
    snprintf(line, sizeof line, "%s", kvtrie_last_error());
  }
  // end
  EXPECT_EQ(std::string(line).rfind("kvtrie_release: no such sequence 0x0: it was released, or ", 0), 0U) << line;
  // example: kvtrie_code_name
  snprintf(line, sizeof line, "code=%s", kvtrie_code_name(code)); /* code=stale: for logs and metrics */
  // end
  EXPECT_STREQ(line, "code=stale");
}

void show_get_api(const char* path) {
  // example: kvtrie_get_api
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* path: libkvtrie_worker.so */
  typedef const kvtrie_api* (*get_api_function)(uint32_t version);
  get_api_function get_api = (get_api_function)dlsym(library, "kvtrie_get_api");
  const kvtrie_api* api = get_api(KVTRIE_API_VERSION); /* NULL: the library is older than this header */
  const char* version = api->version_string();         /* and api->attach(...), api->begin(...) */
  // end
  EXPECT_STREQ(version, "kvtrie " KVTRIE_VERSION);
  EXPECT_EQ(get_api(KVTRIE_API_VERSION + 1), nullptr);
  dlclose(library);
}

TEST(PluginExamplesTest, OfTheLibrary) {
  show_versions();
  show_last_error();
  show_get_api(KVTRIE_TEST_LIB_DIR "/libkvtrie_worker.so");
}

// --- with a worker

void show_get_geometry(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  // example: kvtrie_get_geometry
  kvtrie_geometry geometry = {.size = sizeof geometry};
  check(kvtrie_get_geometry(worker, &geometry));
  uint64_t plane_bytes = geometry.pages * geometry.page_bytes; /* and geometry.planes of them */
  // end
  EXPECT_EQ(plane_bytes, 64U * kPageBytes);
  EXPECT_EQ(geometry.planes, 2U);
  EXPECT_EQ(geometry.tokens_per_page, kPageTokens);
}

void show_open_namespace(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  // example: kvtrie_open_namespace
  kvtrie_field fields[] = {
      {"model", "my-model@sha256-9f3c"}, {"kv", "f16"}, {"engine", "my-engine-2.1"}, {"tenant", "a"}};
  kvtrie_namespace opened;
  check(kvtrie_open_namespace(worker, fields, 4, "my-model for a", &opened));
  // end
  EXPECT_NE(opened.id, ns.id);
  cache_tokens(worker, ns, tokens, count);
  EXPECT_EQ(pages_found(worker, opened, tokens, count), 0U) << "namespaces share nothing";
}

void show_probe(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  cache_tokens(worker, ns, tokens, count);
  // example: kvtrie_probe
  kvtrie_probe_result guess = {.size = sizeof guess};
  check(kvtrie_probe(worker, ns, tokens, count, &guess));
  uint64_t to_prefill = count - guess.cached_tokens; /* for the scheduler; begin decides */
  // end
  EXPECT_EQ(to_prefill, kPageTokens / 2);
}

void show_hashes(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  cache_tokens(worker, ns, tokens, count);
  // example: kvtrie_hash_tokens
  uint64_t hashes[64];
  size_t hash_count = 0;
  check(kvtrie_hash_tokens(worker, ns, tokens, count, hashes, 64, &hash_count)); /* once a request */
  // end
  EXPECT_EQ(hash_count, 2U);
  // example: kvtrie_probe_hashes
  kvtrie_probe_result guess = {.size = sizeof guess};
  check(kvtrie_probe_hashes(worker, ns, hashes, hash_count, &guess)); /* at each round of the scheduler */
  // end
  EXPECT_EQ(guess.cached_pages, 2U);
}

void show_evict(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  cache_tokens(worker, ns, tokens, count);
  // example: kvtrie_evict
  uint64_t evicted = 0;
  check(kvtrie_evict(worker, ns, 0, &evicted)); /* all pages of this namespace that nobody uses */
  // end
  EXPECT_GE(evicted, 2U);
  EXPECT_EQ(pages_found(worker, ns, tokens, count), 0U);
}

void show_flush(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  cache_tokens(worker, ns, tokens, count);
  // example: kvtrie_flush
  /* the model got new weights: nothing that was published before is matched from here on */
  check(kvtrie_flush(worker, ns));
  // end
  EXPECT_EQ(pages_found(worker, ns, tokens, count), 0U);
}

void show_get_counters(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  cache_tokens(worker, ns, tokens, count);
  EXPECT_EQ(pages_found(worker, ns, tokens, count), 2U);
  // example: kvtrie_get_counters
  kvtrie_counters now = {.size = sizeof now};
  check(kvtrie_get_counters(worker, &now));
  double hit_ratio = (double)now.tokens_found / (double)now.tokens_asked;
  // end
  EXPECT_GT(hit_ratio, 0.0);
  EXPECT_GE(now.lookups, 2U);
}

void show_drive_clock(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  // example: kvtrie_drive_clock
  check(kvtrie_drive_clock(worker, 120)); /* the trace's second 120; of kvtried --clock driven */
  // end
  const kvtrie_sequence others = begin_example(worker, ns, tokens, count);
  check(kvtrie_allocate(others, count, nullptr));
  check(kvtrie_drive_clock(worker, 125));
  kvtrie_begin_result hit{};
  hit.size = sizeof hit;
  kvtrie_sequence sequence{0};
  check(kvtrie_begin(worker, ns, tokens, count, nullptr, &hit, &sequence));
  EXPECT_EQ(hit.pending_age_ticks, 5U);
  check(kvtrie_release(sequence));
  check(kvtrie_release(others));
}

void show_worker_id(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  // example: kvtrie_worker_id
  uint64_t id = 0;
  check(kvtrie_worker_id(worker, &id)); /* goes to the ranks over the engine's own channel */
  // end
  EXPECT_NE(id, 0U);
  EXPECT_EQ(kvtrie_writer_over(worker, id), KVTRIE_E_BUSY);
}

TEST(PluginExamplesTest, OfAWorker) {
  run_examples({}, {show_get_geometry, show_open_namespace, show_probe, show_hashes, show_evict, show_flush,
                    show_get_counters, show_drive_clock, show_worker_id});
}

TEST(PluginExamplesTest, OfAttaching) {
  const ExampleCache cache;
  ASSERT_TRUE(cache.served());
  show_attach(cache.name(), cache.directory());
}

// --- devices

void show_writer_over(kvtrie_worker worker, std::uint64_t rank) {
  bool over = false;
  // example: kvtrie_writer_over
  kvtrie_code code = kvtrie_writer_over(worker, rank); /* a rank that the engine takes for dead */
  if (code == KVTRIE_OK) {
    over = true; /* nothing of it can write any more: release the pages that it was filling */
  } else if (code != KVTRIE_E_BUSY) {
    check(code);
  }
  // end
  EXPECT_TRUE(over);
}

TEST(PluginExamplesTest, OfPlaneWriters) {
  const ExampleCache cache;
  ASSERT_TRUE(cache.served());
  const kvtrie_worker worker = cache.attach();
  std::uint64_t scheduler = 0;
  check(kvtrie_worker_id(worker, &scheduler));
  kvtrie_attach_options options = cache.where();
  options.role = KVTRIE_ROLE_PLANE_WRITER;
  options.plane_mask = 2;
  options.scheduler = scheduler;
  kvtrie_worker rank{0};
  check(kvtrie_attach(&options, &rank));
  std::uint64_t id = 0;
  check(kvtrie_worker_id(rank, &id));
  EXPECT_EQ(kvtrie_writer_over(worker, id), KVTRIE_E_BUSY);
  check(kvtrie_detach(rank));
  EXPECT_TRUE(eventually([&] { return kvtrie_writer_over(worker, id) == KVTRIE_OK; }));
  show_writer_over(worker, id);
  check(kvtrie_detach(worker));
}

void show_queue_copy(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  check(kvtrie_allocate(sequence, count, nullptr));
  std::uint32_t page = 0;
  check(kvtrie_get_pages(sequence, 0, 1, &page));
  const std::vector<unsigned char> kv(kPageBytes, 0x5A);
  const unsigned char* const kv_bytes = kv.data();
  // example: kvtrie_queue_copy
  for (uint32_t plane = 0; plane < 2; ++plane) {
    kvtrie_code code = kvtrie_queue_copy(worker, page, plane, 0, kv_bytes, 1024);
    while (code == KVTRIE_E_NOT_NOW) { /* 8 are on their way: let some land */
      check(kvtrie_wait_copies(worker, 1000));
      code = kvtrie_queue_copy(worker, page, plane, 0, kv_bytes, 1024);
    }
    check(code);
  }
  // end
  // example: kvtrie_wait_copies
  check(kvtrie_wait_copies(worker, 1000)); /* all that were asked for are written: publish now */
  check(kvtrie_publish(sequence, count, NULL));
  // end
  for (std::uint32_t plane = 0; plane < 2; ++plane) {
    void* address = nullptr;
    check(kvtrie_page_address(worker, page, plane, &address));
    EXPECT_EQ(std::memcmp(address, kv_bytes, kPageBytes), 0);
  }
  check(kvtrie_release(sequence));
}

TEST(PluginExamplesTest, OfAQueuedDevice) {
  run_examples({"--device", "queued", "--queue-delay-ms", "0"}, {show_queue_copy});
}

void show_plane_descriptor(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  // example: kvtrie_plane_descriptor
  int descriptor = -1;
  check(kvtrie_plane_descriptor(worker, 1, &descriptor));
  /* cuMemImportFromShareableHandle(&memory, (void*)(uintptr_t)descriptor,
   *                                CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR); and map it */
  check(close(descriptor) == 0 ? KVTRIE_OK : KVTRIE_E_SYSTEM);
  // end
  void* address = nullptr;
  EXPECT_EQ(kvtrie_page_address(worker, 0, 1, &address), KVTRIE_E_INVALID) << "it is device memory";
  EXPECT_EQ(kvtrie_plane_descriptor(worker, 2, &descriptor), KVTRIE_E_INVALID);
}

TEST(PluginExamplesTest, OfACudaDevice) {
  ::setenv("LD_LIBRARY_PATH", KVTRIE_TEST_STUB_CUDA_DIR, 1);  // kvtried's driver: the stub of tests/coordinator
  run_examples({"--device", "cuda:0"}, {show_plane_descriptor});
  ::unsetenv("LD_LIBRARY_PATH");
}

}  // namespace
}  // namespace kvtrie::test
