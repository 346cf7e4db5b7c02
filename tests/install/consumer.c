// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a user's C program does with an installed kvtrie: it links the library and calls it, and it
// loads the same library with dlopen and calls it through the table. No coordinator runs here.
//   consumer PATH_OF_LIBKVTRIE_WORKER
#include <dlfcn.h>
#include <kvtrie.h>
#include <stdio.h>
#include <string.h>

static int failures = 0;

static void expect(int truth, const char* claim) {
  if (!truth) {
    fprintf(stderr, "consumer: not true: %s\n", claim);
    ++failures;
  }
}

typedef const kvtrie_api* (*get_api_function)(uint32_t);

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: consumer PATH_OF_LIBKVTRIE_WORKER\n");
    return 2;
  }

  expect(strncmp(kvtrie_version(), "kvtrie ", 7) == 0, "the version begins with \"kvtrie \"");
  expect(kvtrie_api_version() >= KVTRIE_API_VERSION, "the library knows the header's version");
  expect(kvtrie_get_api(0) == NULL, "version 0 has no table");
  expect(kvtrie_get_api(kvtrie_api_version() + 1) == NULL, "an unknown version has no table");

  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    fprintf(stderr, "consumer: dlopen: %s\n", dlerror());
    return 1;
  }
  // A union, since ISO C has no cast from an object pointer to a function pointer.
  union {
    void* object;
    get_api_function function;
  } symbol;
  symbol.object = dlsym(library, "kvtrie_get_api");
  if (symbol.object == NULL) {
    fprintf(stderr, "consumer: no kvtrie_get_api in %s\n", argv[1]);
    return 1;
  }
  const kvtrie_api* api = symbol.function(KVTRIE_API_VERSION);
  if (api == NULL) {
    fprintf(stderr, "consumer: no table of version %u\n", KVTRIE_API_VERSION);
    return 1;
  }
  expect(api->size >= sizeof(kvtrie_api), "the table is as large as the header says");
  expect(api->version == KVTRIE_API_VERSION, "the table has the version that was asked for");
  expect(strcmp(api->version_string(), kvtrie_version()) == 0, "both ways give one version");

  // Without a coordinator attach fails at once and says so.
  kvtrie_attach_options options = {0};
  options.size = sizeof options;
  options.cache = "install-test-nobody-serves-this";
  options.directory = "/nonexistent/kvtrie";
  kvtrie_worker worker = {0};
  expect(api->attach(&options, &worker) == KVTRIE_E_NO_COORDINATOR, "nobody serves this cache");
  expect(api->last_error()[0] != '\0', "the failure has a text");

  expect(dlclose(library) == 0, "the library can be closed");
  printf("%s: %d failures\n", kvtrie_version(), failures);
  return failures == 0 ? 0 : 1;
}
