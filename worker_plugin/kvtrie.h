/* SPDX-License-Identifier: Apache-2.0
 * Copyright The kvtrie authors
 *
 * kvtrie's worker plugin: the KV pages of common prompt prefixes, shared by all processes of a
 * host.
 *
 * The cycle of one request:
 *
 *   kvtrie_begin     match the longest cached prefix and protect it      no lock, no system call
 *   kvtrie_allocate  take pages for the rest and announce them           no system call but to wait
 *   ...              compute KV into kvtrie_page_address() of those pages
 *   kvtrie_publish   make written pages visible to all, again and again  no system call
 *   kvtrie_release   drop the protection, give back what was not published
 *
 * Units: tokens are 32-bit ids; a page is tokens_per_page consecutive tokens; sizes are bytes;
 * ticks are the cache's clock (kvtrie_geometry.tick_ns). Position p of a sequence is its page for
 * tokens [p * tokens_per_page, (p + 1) * tokens_per_page).
 *
 * Calls return KVTRIE_OK or a code; kvtrie_last_error() explains the last failure on this thread.
 * Nothing throws. A call that fails gives 0 as its handle result.
 * Handles are values, never pointers: one that is no longer valid (released, detached, after fork
 * in the child) or never was answers KVTRIE_E_STALE, always. 0 is never a handle.
 *
 * Threads: any thread may call. Calls on different sequences run at the same time; a second call on
 * one sequence answers KVTRIE_E_BUSY while the first runs. So does kvtrie_detach, which waits for
 * nobody, while another thread is inside any call of that worker.
 *
 * Fork: a child's use of its parent's handles answers KVTRIE_E_STALE; it may attach by itself. The
 * parent is not affected.
 *
 * Several attachments in one process, also to one cache, are apart: each is a worker of its own.
 *
 * The library sets no signal handler, starts no thread and leaves nothing process-wide behind after
 * detach. Detach before dlclose.
 */
#ifndef KVTRIE_H
#define KVTRIE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define KVTRIE_NOEXCEPT noexcept
extern "C" {
#else
#define KVTRIE_NOEXCEPT
#endif

#if defined(__GNUC__)
#define KVTRIE_API __attribute__((visibility("default")))
#else
#define KVTRIE_API
#endif

#define KVTRIE_VERSION "0.1.0"
#define KVTRIE_API_VERSION 1u

typedef enum kvtrie_code {
  KVTRIE_OK = 0,
  KVTRIE_E_INVALID = 1,  /* an argument; nothing was changed */
  KVTRIE_E_NOT_NOW = 2,  /* too few free pages, or others waited for them: release some or ask again */
  KVTRIE_E_NEVER = 3,    /* more pages than this cache has */
  KVTRIE_E_TIMEOUT = 4,  /* the wait that was asked for ran out; nothing was taken */
  KVTRIE_E_STALE = 5,    /* the handle's object has ended, or this is a forked child */
  KVTRIE_E_CORRUPT = 6,  /* impossible bytes in the segment, begins miss now: detach */
  KVTRIE_E_POISONED = 7, /* the segment was given up, begins miss: detach and attach again */
  KVTRIE_E_NOT_FOUND = 8,
  KVTRIE_E_REFUSED = 9,         /* the coordinator said no; kvtrie_last_error() says what to do */
  KVTRIE_E_FULL = 10,           /* no free lease slot, namespace, worker slot or handle */
  KVTRIE_E_NO_COORDINATOR = 11, /* nobody serves this cache */
  KVTRIE_E_BUSY = 12,           /* another thread is inside a call on this worker or sequence */
  KVTRIE_E_SYSTEM = 14          /* a system call failed, or there is no memory */
} kvtrie_code;

typedef struct kvtrie_worker {
  uint64_t id;
} kvtrie_worker;
typedef struct kvtrie_namespace {
  uint64_t id;
} kvtrie_namespace;
typedef struct kvtrie_sequence {
  uint64_t id;
} kvtrie_sequence;

/* Option and result structs begin with their size: set it to sizeof before the call. Unset and
 * reserved fields are zero. Shorter structs of older headers are served; longer ones answer
 * E_INVALID. */

enum {
  KVTRIE_ROLE_WORKER = 0,
  KVTRIE_ROLE_PLANE_WRITER = 2 /* fills planes for another process's worker: kvtrie_device.h */
};

typedef struct kvtrie_attach_options {
  size_t size;
  const char* cache;     /* name given to kvtried --cache */
  const char* directory; /* of kvtried --dir; NULL: /run/kvtrie, without root
                          * $XDG_RUNTIME_DIR/kvtrie */
  const char* name;      /* shown by `kvtrie workers`; NULL: the program's name */
  uint32_t timeout_ms;   /* for the coordinator's answer; 0: 5000 */
  uint32_t role;         /* KVTRIE_ROLE_WORKER */
  uint64_t plane_mask;   /* of a plane writer (kvtrie_device.h): planes that it fills, bit 0 is plane 0 */
  uint64_t scheduler;    /* of a plane writer: kvtrie_worker_id of the worker into whose pages it writes */
} kvtrie_attach_options;

typedef struct kvtrie_geometry {
  size_t size;
  uint64_t pages;
  uint64_t page_bytes; /* of one page in one plane */
  uint32_t tokens_per_page;
  uint32_t planes;
  uint64_t tick_ns;
} kvtrie_geometry;

/* One thing that must match before KV may be shared: model and weights, KV type and layout,
 * numerics (engine build, flash attention, back end), adapter, tenant salt. Compared in full, not
 * by hash. Keys: 1 to 64 of a-z 0-9 _ . - ; values: no line feed; at most 768 bytes in all with 2
 * for each field: give a hash of what is longer. */
typedef struct kvtrie_field {
  const char* key;
  const char* value;
} kvtrie_field;

enum {
  KVTRIE_NO_READ = 1u << 0,    /* begin: match nothing */
  KVTRIE_NO_PUBLISH = 1u << 1, /* begin: keep every page of this sequence private */
  KVTRIE_NO_WAIT = 1u << 2     /* allocate: never wait, whatever wait_ms says */
};

typedef struct kvtrie_begin_options {
  size_t size;
  uint32_t flags;
  uint32_t request_tag;     /* shown beside the lease by `kvtrie workers` */
  uint32_t retention_ticks; /* published pages are passed by the evictor that long; 0: not */
  uint8_t hint;             /* 0 to 3: the engine's guess at reuse */
  uint8_t priority;         /* 0 to 15 */
  uint8_t reserved[2];      /* 0 */
} kvtrie_begin_options;

typedef struct kvtrie_begin_result {
  size_t size;
  uint64_t cached_tokens; /* matched and protected: always whole pages */
  uint32_t cached_pages;
  uint32_t pending_pages; /* of the next pages, another worker computes right now: 0 or 1 */
} kvtrie_begin_result;

typedef struct kvtrie_allocate_options {
  size_t size;
  uint32_t flags;
  uint32_t wait_ms; /* how long to wait for pages; 0: not at all */
} kvtrie_allocate_options;

typedef struct kvtrie_publish_result {
  size_t size;
  uint64_t published_tokens; /* of this sequence's path that all can match now */
  uint32_t pages_published;  /* made visible by this call */
  uint32_t pages_private;    /* asked for and kept private: another worker's copy is canonical, or
                              * a lock was busy */
} kvtrie_publish_result;

/* Since attach, of this worker. */
typedef struct kvtrie_counters {
  size_t size;
  uint64_t lookups, tokens_asked, tokens_found, pages_asked, pages_hit;
  uint64_t pages_allocated, failed_not_now, failed_never, waits;
  uint64_t pages_published, duplicates, stripes_passed_by, buckets_full, lease_fallbacks, rescues;
  uint64_t releases, pages_given_back, corrupt_seen;
} kvtrie_counters;

/* "kvtrie 0.1.0"; and the highest version that kvtrie_get_api knows. */
KVTRIE_API const char* kvtrie_version(void) KVTRIE_NOEXCEPT;
KVTRIE_API uint32_t kvtrie_api_version(void) KVTRIE_NOEXCEPT;
/* Text of the last failure on this thread, "" if there was none. Valid until the next call on this
 * thread. */
KVTRIE_API const char* kvtrie_last_error(void) KVTRIE_NOEXCEPT;
KVTRIE_API const char* kvtrie_code_name(kvtrie_code code) KVTRIE_NOEXCEPT;

/* Attaches this process to a running cache. Fails at once when no coordinator serves it. Up to 64
 * attachments a process. */
KVTRIE_API kvtrie_code kvtrie_attach(const kvtrie_attach_options* options,
                                     kvtrie_worker* worker) KVTRIE_NOEXCEPT;
/* Releases every sequence, unmaps the cache and gives the slot back. E_BUSY, and nothing is
 * changed, while another thread is inside a call. Page addresses are invalid from then on. */
KVTRIE_API kvtrie_code kvtrie_detach(kvtrie_worker worker) KVTRIE_NOEXCEPT;
KVTRIE_API kvtrie_code kvtrie_get_geometry(kvtrie_worker worker,
                                           kvtrie_geometry* geometry) KVTRIE_NOEXCEPT;
/* Finds or makes the namespace of these fields (order does not matter). Asks the coordinator only
 * when it is new. A namespace without pages may lose its place to others when the table is full:
 * begin then answers E_STALE, and opening it again helps. label, for people, may be NULL. */
KVTRIE_API kvtrie_code kvtrie_open_namespace(kvtrie_worker worker, const kvtrie_field* fields,
                                             size_t field_count, const char* label,
                                             kvtrie_namespace* name_space) KVTRIE_NOEXCEPT;

/* Matches the longest cached prefix of tokens[0..count), leases it, and starts a sequence that
 * remembers the tokens. Only whole pages match. An empty or short list is fine and matches nothing.
 * options may be NULL. */
KVTRIE_API kvtrie_code kvtrie_begin(kvtrie_worker worker, kvtrie_namespace name_space,
                                    const uint32_t* tokens, size_t count,
                                    const kvtrie_begin_options* options,
                                    kvtrie_begin_result* result,
                                    kvtrie_sequence* sequence) KVTRIE_NOEXCEPT;
/* Adds tokens that were generated since, so that their pages can be published. */
KVTRIE_API kvtrie_code kvtrie_append(kvtrie_sequence sequence, const uint32_t* tokens,
                                     size_t count) KVTRIE_NOEXCEPT;
/* Makes sure that the sequence has pages for `total_tokens` tokens: all that are missing or none.
 * May be called again with more. Pages whose tokens are known and full are announced, so that
 * others see them coming. options may be NULL. */
KVTRIE_API kvtrie_code kvtrie_allocate(kvtrie_sequence sequence, uint64_t total_tokens,
                                       const kvtrie_allocate_options* options) KVTRIE_NOEXCEPT;
/* Page indices of positions [first, first + count). E_INVALID beyond the last one. The first
 * cached_pages are shared: read them, never write them. The others are this sequence's own to write
 * until they are published. */
KVTRIE_API kvtrie_code kvtrie_get_pages(kvtrie_sequence sequence, uint32_t first, uint32_t count,
                                        uint32_t* pages) KVTRIE_NOEXCEPT;
KVTRIE_API kvtrie_code kvtrie_page_count(kvtrie_sequence sequence, uint32_t* count) KVTRIE_NOEXCEPT;
/* First byte of a page in a plane, page_bytes long, 64-byte aligned when page_bytes is a multiple
 * of 64. Page p is p * page_bytes behind page 0. */
KVTRIE_API kvtrie_code kvtrie_page_address(kvtrie_worker worker, uint32_t page, uint32_t plane,
                                           void** address) KVTRIE_NOEXCEPT;
/* The bytes of all whole pages of the first `token_count` tokens are final: make them visible. From
 * then on nobody may write them. result may be NULL. */
KVTRIE_API kvtrie_code kvtrie_publish(kvtrie_sequence sequence, uint64_t token_count,
                                      kvtrie_publish_result* result) KVTRIE_NOEXCEPT;
/* Ends the sequence: own unpublished pages are free again, published ones stay cached and lose this
 * protection. */
KVTRIE_API kvtrie_code kvtrie_release(kvtrie_sequence sequence) KVTRIE_NOEXCEPT;

KVTRIE_API kvtrie_code kvtrie_get_counters(kvtrie_worker worker,
                                           kvtrie_counters* counters) KVTRIE_NOEXCEPT;
/* Raises the clock of a cache made with --clock driven to `tick`, never back. E_INVALID on other
 * caches. */
KVTRIE_API kvtrie_code kvtrie_drive_clock(kvtrie_worker worker, uint32_t tick) KVTRIE_NOEXCEPT;

/* All calls in one table, for dlopen. Later versions append. NULL when `version` is not known. */
typedef struct kvtrie_api {
  size_t size;
  uint32_t version;
  const char* (*version_string)(void);
  const char* (*last_error)(void);
  const char* (*code_name)(kvtrie_code);
  kvtrie_code (*attach)(const kvtrie_attach_options*, kvtrie_worker*);
  kvtrie_code (*detach)(kvtrie_worker);
  kvtrie_code (*get_geometry)(kvtrie_worker, kvtrie_geometry*);
  kvtrie_code (*open_namespace)(kvtrie_worker, const kvtrie_field*, size_t, const char*,
                                kvtrie_namespace*);
  kvtrie_code (*begin)(kvtrie_worker, kvtrie_namespace, const uint32_t*, size_t,
                       const kvtrie_begin_options*, kvtrie_begin_result*, kvtrie_sequence*);
  kvtrie_code (*append)(kvtrie_sequence, const uint32_t*, size_t);
  kvtrie_code (*allocate)(kvtrie_sequence, uint64_t, const kvtrie_allocate_options*);
  kvtrie_code (*get_pages)(kvtrie_sequence, uint32_t, uint32_t, uint32_t*);
  kvtrie_code (*page_count)(kvtrie_sequence, uint32_t*);
  kvtrie_code (*page_address)(kvtrie_worker, uint32_t, uint32_t, void**);
  kvtrie_code (*publish)(kvtrie_sequence, uint64_t, kvtrie_publish_result*);
  kvtrie_code (*release)(kvtrie_sequence);
  kvtrie_code (*get_counters)(kvtrie_worker, kvtrie_counters*);
  kvtrie_code (*drive_clock)(kvtrie_worker, uint32_t);
} kvtrie_api;

KVTRIE_API const kvtrie_api* kvtrie_get_api(uint32_t version) KVTRIE_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif
