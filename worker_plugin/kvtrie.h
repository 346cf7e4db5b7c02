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
 * Around it: kvtrie_prepare_batch does the first two steps for many requests, all or none;
 * kvtrie_wait_pending waits for what others compute; kvtrie_fork makes a second sequence of one;
 * kvtrie_publish_incomplete shares the last page, too; kvtrie_probe only looks.
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
#define KVTRIE_API_VERSION 2u
#define KVTRIE_NO_PAGE UINT32_MAX /* position without a page: it was given back */
#define KVTRIE_CACHED UINT32_MAX  /* kvtrie_batch_item.computed_by: nobody has to */

typedef enum kvtrie_code {
  KVTRIE_OK = 0,
  KVTRIE_E_INVALID = 1,  /* an argument; nothing was changed */
  KVTRIE_E_NOT_NOW = 2,  /* too few free pages, or others waited for them: release some or ask again. begin: the
                          * namespace was flushed again and again. queue_copy: too many are on their way */
  KVTRIE_E_NEVER = 3,    /* more pages than this cache has */
  KVTRIE_E_TIMEOUT = 4,  /* the wait that was asked for ran out; nothing was taken */
  KVTRIE_E_STALE = 5,    /* the handle's object has ended, or this is a forked child */
  KVTRIE_E_CORRUPT = 6,  /* impossible bytes in the segment, begins miss now: detach */
  KVTRIE_E_POISONED = 7, /* the segment was given up, begins miss: detach and attach again */
  KVTRIE_E_NOT_FOUND = 8,       /* evict, flush: the namespace's place is another's by now; open it again */
  KVTRIE_E_REFUSED = 9,         /* the coordinator said no; kvtrie_last_error() says what to do */
  KVTRIE_E_FULL = 10,           /* no free lease slot, namespace, worker slot or handle */
  KVTRIE_E_NO_COORDINATOR = 11, /* nobody serves this cache */
  KVTRIE_E_BUSY = 12,           /* another thread is inside a call on this worker or sequence */
  KVTRIE_E_SYSTEM = 14,         /* a system call failed, or there is no memory */
  KVTRIE_E_FLUSHED = 15         /* the namespace was flushed since the sequence began: release it */
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
  KVTRIE_NO_WAIT = 1u << 2,    /* allocate, fork: never wait, whatever wait_ms says */
  KVTRIE_PARTIAL = 1u << 3,    /* begin: look for a match inside the next page, too */
  KVTRIE_NO_COPY = 1u << 4,    /* allocate, fork: do not copy bytes, the caller does: no later call copies them */
  KVTRIE_TOKENS_STAY = 1u << 5 /* begin: do not copy the tokens; the caller leaves them where they are, unchanged, until
                                * the sequence is released or kvtrie_append has been called on it */
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
  uint32_t pending_pages; /* of the next pages, announced by others and being computed: an estimate */
  uint32_t pending_age_ticks; /* since the first of them was announced */
  uint32_t partial_tokens;    /* KVTRIE_PARTIAL: tokens after these that a page has which is protected
                               * until kvtrie_allocate has copied it into the sequence's own; up to
                               * tokens_per_page, since a whole page may come just after the match */
  uint32_t partial_page;      /* that page, or KVTRIE_NO_PAGE; for KVTRIE_NO_COPY, and devices but host memory */
  uint32_t reserved;
} kvtrie_begin_result;

typedef struct kvtrie_allocate_options {
  size_t size;
  uint32_t flags;
  uint32_t wait_ms; /* how long to wait for pages; 0: not at all */
} kvtrie_allocate_options;

typedef struct kvtrie_fork_options {
  size_t size;
  uint32_t flags;
  uint32_t wait_ms;     /* how long to wait for pages; 0: not at all */
  uint32_t request_tag; /* of the child */
  uint32_t reserved;    /* 0 */
} kvtrie_fork_options;

/* One request of a batch. All items of a call have the same size. */
typedef struct kvtrie_batch_item {
  size_t size;
  kvtrie_namespace name_space;
  const uint32_t* tokens;
  size_t token_count;
  uint64_t total_tokens;               /* to allocate for */
  const kvtrie_begin_options* options; /* NULL: all 0 */
  uint32_t* computed_by; /* NULL, or room for a number for each of the ceil(total_tokens /
                          * tokens_per_page) positions: which item computes it, or KVTRIE_CACHED */
  /* results; 0 when the call fails */
  kvtrie_sequence sequence;
  uint64_t cached_tokens;
  uint64_t shared_tokens;  /* after these, whole pages that earlier items of the batch compute */
  uint32_t partial_tokens; /* as in kvtrie_begin_result */
  uint32_t partial_page;
} kvtrie_batch_item;

typedef struct kvtrie_probe_result {
  size_t size;
  uint64_t cached_tokens; /* whole pages */
  uint32_t cached_pages;
  uint32_t pending_pages; /* announced after them; by hashes always 0 */
} kvtrie_probe_result;

typedef enum kvtrie_page_state {
  KVTRIE_PAGE_PRIVATE = 0,    /* nobody else knows it */
  KVTRIE_PAGE_ANNOUNCED = 1,  /* others see it coming */
  KVTRIE_PAGE_PUBLISHED = 2,  /* by this sequence: never write it */
  KVTRIE_PAGE_INCOMPLETE = 3, /* published with fewer tokens: never write it */
  KVTRIE_PAGE_BORROWED = 4    /* another sequence of the batch computes it */
} kvtrie_page_state;

typedef struct kvtrie_own_page {
  uint32_t position;
  uint32_t page;
  kvtrie_page_state state;
} kvtrie_own_page;

/* Where the engine has K and V of a token. In a page's plane they stand densely, in the order
 * layers x kv x tokens x heads x head_bytes, which together are page_bytes; in the engine's memory
 * at base + layer * layer_stride + kv * kv_stride + i * token_stride + head * head_stride, where i
 * counts from the first token of the call. Strides are bytes. */
typedef struct kvtrie_layout {
  size_t size;
  uint32_t layers;
  uint32_t kv;    /* 2: K and V; 1: one latent for both */
  uint32_t heads; /* of K/V, in this plane */
  uint32_t reserved;
  uint64_t head_bytes; /* of one head of one token */
  int64_t layer_stride;
  int64_t kv_stride;
  int64_t token_stride;
  int64_t head_stride;
} kvtrie_layout;

typedef struct kvtrie_publish_result {
  size_t size;
  uint64_t published_tokens; /* of this sequence's path that all can match now */
  uint32_t pages_published;  /* made visible by this call */
  uint32_t pages_private;    /* asked for and kept private: another worker's copy is canonical, or
                              * a lock was busy, or another sequence of the batch has it to compute */
  uint32_t incomplete_tokens; /* kvtrie_publish_incomplete: of the last page, that others find now */
  uint32_t reserved;
} kvtrie_publish_result;

/* Since attach, of this worker. */
typedef struct kvtrie_counters {
  size_t size;
  uint64_t lookups, tokens_asked, tokens_found, pages_asked, pages_hit;
  uint64_t pages_allocated, failed_not_now, failed_never, waits;
  uint64_t pages_published, duplicates, stripes_passed_by, buckets_full, lease_fallbacks, rescues;
  uint64_t releases, pages_given_back, corrupt_seen;
  uint64_t partial_matches, partial_tokens, pending_waits, forks, batches, incomplete_published;
  uint64_t flushed_refused, pages_copied;
  uint64_t pages_summed, wrong_checksums; /* hits compared with their page checksum; those that were not handed out */
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
 * options may be NULL. E_STALE: worker or namespace, which says kvtrie_open_namespace. E_FULL: no lease slot or handle
 * is free. E_NOT_NOW: the namespace was flushed again and again meanwhile; ask again. */
KVTRIE_API kvtrie_code kvtrie_begin(kvtrie_worker worker, kvtrie_namespace name_space,
                                    const uint32_t* tokens, size_t count,
                                    const kvtrie_begin_options* options,
                                    kvtrie_begin_result* result,
                                    kvtrie_sequence* sequence) KVTRIE_NOEXCEPT;
/* Does kvtrie_begin and kvtrie_allocate for all items, or for none: then nothing is held, and the
 * codes are theirs. While it waits for pages it holds nothing, and matches anew when they come; those
 * who wait are served oldest first. Items that begin with the same uncached whole pages share them:
 * the first one computes and publishes them, the others read them (shared_tokens, computed_by) and
 * may publish what follows once they are. When the first is released before, the next one has them to
 * compute (KVTRIE_PAGE_PRIVATE or _ANNOUNCED in kvtrie_own_pages). 1 to 1,024 items. options may be
 * NULL. */
KVTRIE_API kvtrie_code kvtrie_prepare_batch(kvtrie_worker worker, kvtrie_batch_item* items,
                                            size_t count,
                                            const kvtrie_allocate_options* options) KVTRIE_NOEXCEPT;
/* A second sequence with the tokens of the first, for beam search and parallel sampling: published
 * pages are shared, the others are copied into pages of its own, all or none. Both go on as they like,
 * and each is released. options may be NULL. With KVTRIE_NO_COPY, without which devices other than host
 * memory answer E_INVALID, the caller copies each page of kvtrie_own_pages(child) from the parent's page
 * of that position. */
KVTRIE_API kvtrie_code kvtrie_fork(kvtrie_sequence sequence, const kvtrie_fork_options* options,
                                   kvtrie_sequence* child) KVTRIE_NOEXCEPT;
/* For a sequence without pages of its own, after begin: waits for the next pages as long as others
 * compute them, and matches them. KVTRIE_OK: nobody computes the next one; when that is because its
 * worker died or gave up, it is this sequence's to allocate. E_TIMEOUT: some did not come in time_ms.
 * With both, result says what is matched now. E_FLUSHED: begin anew. E_FULL: no lease slot to match on. E_INVALID: the
 * sequence has pages of its own. */
KVTRIE_API kvtrie_code kvtrie_wait_pending(kvtrie_sequence sequence, uint32_t time_ms,
                                           kvtrie_begin_result* result) KVTRIE_NOEXCEPT;
/* Adds tokens that were generated since, so that their pages can be published. */
KVTRIE_API kvtrie_code kvtrie_append(kvtrie_sequence sequence, const uint32_t* tokens,
                                     size_t count) KVTRIE_NOEXCEPT;
/* Makes sure that the sequence has pages for `total_tokens` tokens: all that are missing or none.
 * May be called again with more. Pages whose tokens are known and full are announced, so that
 * others see them coming. Copies what begin found with KVTRIE_PARTIAL. Behind an incomplete page that
 * was published, its position gets a new page with a copy: ask for the pages again. options may be
 * NULL. */
KVTRIE_API kvtrie_code kvtrie_allocate(kvtrie_sequence sequence, uint64_t total_tokens,
                                       const kvtrie_allocate_options* options) KVTRIE_NOEXCEPT;
/* Page indices of positions [first, first + count); KVTRIE_NO_PAGE where one was given back. E_INVALID beyond the last
 * one. The first cached_pages are shared: read them, never write them. The others are this sequence's own to write
 * until they are published. */
KVTRIE_API kvtrie_code kvtrie_get_pages(kvtrie_sequence sequence, uint32_t first, uint32_t count,
                                        uint32_t* pages) KVTRIE_NOEXCEPT;
/* Positions of the sequence: cached ones and those of kvtrie_allocate, up to the last that has a page. */
KVTRIE_API kvtrie_code kvtrie_page_count(kvtrie_sequence sequence, uint32_t* count) KVTRIE_NOEXCEPT;
/* The positions behind the cached ones, with their pages: how many in *count, as many as fit in
 * pages[0..capacity). pages may be NULL when capacity is 0. */
KVTRIE_API kvtrie_code kvtrie_own_pages(kvtrie_sequence sequence, kvtrie_own_page* pages,
                                        uint32_t capacity, uint32_t* count) KVTRIE_NOEXCEPT;
/* Gives own unpublished pages of positions [first, first + count) back before the sequence ends. Positions
 * at the end go with them, others stay without a page. Of an announced page also those announced after it
 * must go. A copy of a page that another published first makes room for that one. E_INVALID, and nothing was
 * given back: one of them is published, gone, or used by another sequence of the batch. */
KVTRIE_API kvtrie_code kvtrie_give_back(kvtrie_sequence sequence, uint32_t first,
                                        uint32_t count) KVTRIE_NOEXCEPT;
/* First byte of a page in a plane, page_bytes long, 64-byte aligned when page_bytes is a multiple
 * of 64. Page p is p * page_bytes behind page 0. */
KVTRIE_API kvtrie_code kvtrie_page_address(kvtrie_worker worker, uint32_t page, uint32_t plane,
                                           void** address) KVTRIE_NOEXCEPT;
/* Copies KV of tokens [first_token, first_token + token_count) of the sequence from the engine's memory
 * into its own unpublished pages, or out of any of its pages. layout NULL: whole pages as they are in
 * the pool, one after the other. Neighbouring pages are copied at once; calls for 256 KiB in, 1 MiB
 * out and more go past the caches. E_INVALID, and nothing was copied: a position without page, or for
 * kvtrie_copy_in one that is not this sequence's to write, or a device whose planes this process does not
 * write (kvtrie_device.h). */
KVTRIE_API kvtrie_code kvtrie_copy_in(kvtrie_sequence sequence, uint64_t first_token,
                                      uint64_t token_count, uint32_t plane,
                                      const kvtrie_layout* layout, const void* base) KVTRIE_NOEXCEPT;
KVTRIE_API kvtrie_code kvtrie_copy_out(kvtrie_sequence sequence, uint64_t first_token,
                                       uint64_t token_count, uint32_t plane,
                                       const kvtrie_layout* layout, void* base) KVTRIE_NOEXCEPT;
/* The bytes of all whole pages of the first `token_count` tokens are final: make them visible. From
 * then on nobody may write them. E_FLUSHED: nothing was. result may be NULL. */
KVTRIE_API kvtrie_code kvtrie_publish(kvtrie_sequence sequence, uint64_t token_count,
                                      kvtrie_publish_result* result) KVTRIE_NOEXCEPT;
/* The same, and also the page behind them with the tokens that it has (incomplete_tokens, 0 when it
 * stayed private): a begin with KVTRIE_PARTIAL finds it and copies. To go on, this sequence
 * allocates first, which gives it a copy, too. */
KVTRIE_API kvtrie_code kvtrie_publish_incomplete(kvtrie_sequence sequence, uint64_t token_count,
                                                 kvtrie_publish_result* result) KVTRIE_NOEXCEPT;
/* Ends the sequence: own unpublished pages are free again, published ones stay cached and lose this
 * protection. */
KVTRIE_API kvtrie_code kvtrie_release(kvtrie_sequence sequence) KVTRIE_NOEXCEPT;

/* How much of the tokens is probably cached. An estimate for routing and scheduling: nothing is
 * protected, nothing counts as used. */
KVTRIE_API kvtrie_code kvtrie_probe(kvtrie_worker worker, kvtrie_namespace name_space,
                                    const uint32_t* tokens, size_t count,
                                    kvtrie_probe_result* result) KVTRIE_NOEXCEPT;
/* Hashes of the prefixes that end with each whole page of the tokens, for kvtrie_probe_hashes. How
 * many there are in *count, as many as fit in hashes[0..capacity). They hold for this cache and
 * namespace, as long as its kvtried's segment lives, and through a flush. */
KVTRIE_API kvtrie_code kvtrie_hash_tokens(kvtrie_worker worker, kvtrie_namespace name_space,
                                          const uint32_t* tokens, size_t token_count,
                                          uint64_t* hashes, size_t capacity,
                                          size_t* count) KVTRIE_NOEXCEPT;
/* kvtrie_probe by hashes that were computed once: some ten looks, whatever the prompt's length. */
KVTRIE_API kvtrie_code kvtrie_probe_hashes(kvtrie_worker worker, kvtrie_namespace name_space,
                                           const uint64_t* hashes, size_t count,
                                           kvtrie_probe_result* result) KVTRIE_NOEXCEPT;

/* Asks the coordinator, over its socket, to evict up to pages_max pages that nobody uses (0: all of
 * them), least recently used first, of one namespace or, with name_space.id 0, of all. *evicted: how
 * many went; fewer than asked for are no error. E_NO_COORDINATOR, E_REFUSED, E_TIMEOUT; E_STALE or E_NOT_FOUND: the
 * namespace's place is another's by now. */
KVTRIE_API kvtrie_code kvtrie_evict(kvtrie_worker worker, kvtrie_namespace name_space,
                                    uint64_t pages_max, uint64_t* evicted) KVTRIE_NOEXCEPT;
/* Asks the coordinator to flush the namespace, as when weights were updated: from its store on nothing
 * that was published before is matched, and sequences begun before answer E_FLUSHED where they would
 * publish. Their pages stay readable to them; cached pages go as leases fall. The handle stays good.
 * Errors as kvtrie_evict. */
KVTRIE_API kvtrie_code kvtrie_flush(kvtrie_worker worker,
                                    kvtrie_namespace name_space) KVTRIE_NOEXCEPT;

KVTRIE_API kvtrie_code kvtrie_get_counters(kvtrie_worker worker,
                                           kvtrie_counters* counters) KVTRIE_NOEXCEPT;
/* Raises the clock of a cache made with --clock driven to `tick`, never back. E_INVALID on other
 * caches. */
KVTRIE_API kvtrie_code kvtrie_drive_clock(kvtrie_worker worker, uint32_t tick) KVTRIE_NOEXCEPT;

/* All calls of this header in one table, for dlopen; those of kvtrie_device.h are found by dlsym. Later
 * versions append. NULL when `version` is not known. */
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
  /* since version 2 */
  kvtrie_code (*prepare_batch)(kvtrie_worker, kvtrie_batch_item*, size_t,
                               const kvtrie_allocate_options*);
  kvtrie_code (*fork_sequence)(kvtrie_sequence, const kvtrie_fork_options*, kvtrie_sequence*);
  kvtrie_code (*wait_pending)(kvtrie_sequence, uint32_t, kvtrie_begin_result*);
  kvtrie_code (*own_pages)(kvtrie_sequence, kvtrie_own_page*, uint32_t, uint32_t*);
  kvtrie_code (*give_back)(kvtrie_sequence, uint32_t, uint32_t);
  kvtrie_code (*copy_in)(kvtrie_sequence, uint64_t, uint64_t, uint32_t, const kvtrie_layout*,
                         const void*);
  kvtrie_code (*copy_out)(kvtrie_sequence, uint64_t, uint64_t, uint32_t, const kvtrie_layout*, void*);
  kvtrie_code (*publish_incomplete)(kvtrie_sequence, uint64_t, kvtrie_publish_result*);
  kvtrie_code (*probe)(kvtrie_worker, kvtrie_namespace, const uint32_t*, size_t,
                       kvtrie_probe_result*);
  kvtrie_code (*hash_tokens)(kvtrie_worker, kvtrie_namespace, const uint32_t*, size_t, uint64_t*,
                             size_t, size_t*);
  kvtrie_code (*probe_hashes)(kvtrie_worker, kvtrie_namespace, const uint64_t*, size_t,
                              kvtrie_probe_result*);
  kvtrie_code (*evict)(kvtrie_worker, kvtrie_namespace, uint64_t, uint64_t*);
  kvtrie_code (*flush)(kvtrie_worker, kvtrie_namespace);
} kvtrie_api;

KVTRIE_API const kvtrie_api* kvtrie_get_api(uint32_t version) KVTRIE_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif
