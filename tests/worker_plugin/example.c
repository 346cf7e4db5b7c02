/* SPDX-License-Identifier: Apache-2.0
 * Copyright The kvtrie authors
 *
 * How an engine uses kvtrie: one request's cycle through a plugin that was loaded with dlopen.
 *
 *   example PLUGIN DIRECTORY CACHE [HITS]
 *
 * The first process of a cache computes the prompt's KV (here: bytes that say what they are), the
 * next finds it and reads it. HITS more lookups of the same prompt follow. Prints one line; ends
 * with 1 if a byte was wrong.
 */
#include <dlfcn.h>
#include <kvtrie.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kPromptTokens = 100 };

static const kvtrie_api* api;

static void must(kvtrie_code code, const char* what) {
  if (code == KVTRIE_OK) return;
  fprintf(stderr, "example: %s: %s: %s\n", what, api->code_name(code), api->last_error());
  exit(2);
}

/* What this prompt's KV is, in this example: a function of position and plane. */
static int kv_byte(uint32_t position, uint32_t plane) {
  return (int)((position * 7 + plane * 3 + 1) & 0x7F);
}

static const kvtrie_api* load(const char* plugin, void** library) {
  *library = dlopen(plugin, RTLD_NOW | RTLD_LOCAL);
  if (*library == NULL) {
    fprintf(stderr, "example: %s\n", dlerror());
    exit(2);
  }
  /* A union, since ISO C has no cast from an object pointer to a function pointer. */
  union {
    void* object;
    const kvtrie_api* (*function)(uint32_t);
  } get_api;
  get_api.object = dlsym(*library, "kvtrie_get_api");
  return get_api.object == NULL ? NULL : get_api.function(KVTRIE_API_VERSION);
}

int main(int argc, char** argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: example PLUGIN DIRECTORY CACHE [HITS]\n");
    return 2;
  }
  void* library = NULL;
  api = load(argv[1], &library);
  if (api == NULL) {
    fprintf(stderr, "example: %s has no API of version %u\n", argv[1], KVTRIE_API_VERSION);
    return 2;
  }

  kvtrie_attach_options attach = {0};
  attach.size = sizeof attach;
  attach.directory = argv[2];
  attach.cache = argv[3];
  attach.name = "example";
  kvtrie_worker worker;
  must(api->attach(&attach, &worker), "attach");

  kvtrie_geometry geometry = {0};
  geometry.size = sizeof geometry;
  must(api->get_geometry(worker, &geometry), "get_geometry");

  /* All that must be equal before KV may be shared. */
  const kvtrie_field fields[] = {
      {"model", "example-7b"}, {"kv_dtype", "bf16"}, {"engine", "example 1.0"}};
  kvtrie_namespace name_space;
  must(api->open_namespace(worker, fields, 3, "example", &name_space), "open_namespace");

  uint32_t prompt[kPromptTokens];
  for (uint32_t i = 0; i < kPromptTokens; ++i)
    prompt[i] = 1000 + i;

  /* 1. What is there already? */
  kvtrie_begin_result begun = {0};
  begun.size = sizeof begun;
  kvtrie_sequence sequence;
  must(api->begin(worker, name_space, prompt, kPromptTokens, NULL, &begun, &sequence), "begin");

  /* 2. Room for the rest of the prompt and for what will be generated. */
  kvtrie_allocate_options allocate = {0};
  allocate.size = sizeof allocate;
  allocate.wait_ms = 1000;
  must(api->allocate(sequence, kPromptTokens + 20, &allocate), "allocate");
  uint32_t count = 0;
  must(api->page_count(sequence, &count), "page_count");
  uint32_t* pages = malloc(count * sizeof *pages);
  if (pages == NULL) return 2;
  must(api->get_pages(sequence, 0, count, pages), "get_pages");

  /* 3. Read the pages that were cached, compute the others. */
  int wrong = 0;
  for (uint32_t position = 0; position < count; ++position) {
    for (uint32_t plane = 0; plane < geometry.planes; ++plane) {
      void* address = NULL;
      must(api->page_address(worker, pages[position], plane, &address), "page_address");
      if (position >= begun.cached_pages) {
        memset(address, kv_byte(position, plane), geometry.page_bytes);
        continue;
      }
      const unsigned char* bytes = address;
      for (uint64_t i = 0; i < geometry.page_bytes; ++i)
        wrong += bytes[i] != kv_byte(position, plane);
    }
  }

  /* 4. The prompt's whole pages are final: everybody may use them. */
  kvtrie_publish_result published = {0};
  published.size = sizeof published;
  must(api->publish(sequence, kPromptTokens, &published), "publish");

  /* 5. Done. What was published stays, the rest is free again. */
  must(api->release(sequence), "release");
  free(pages);

  const long hits = argc > 4 ? strtol(argv[4], NULL, 10) : 0;
  for (long i = 0; i < hits; ++i) {
    must(api->begin(worker, name_space, prompt, kPromptTokens, NULL, &begun, &sequence), "begin");
    must(api->release(sequence), "release");
  }
  must(api->detach(worker), "detach");
  dlclose(library);
  printf("cached_tokens=%llu published_tokens=%llu wrong_bytes=%d unloaded=%d\n",
         (unsigned long long)begun.cached_tokens, (unsigned long long)published.published_tokens,
         wrong, dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD) == NULL);
  return wrong == 0 ? 0 : 1;
}
