/* SPDX-License-Identifier: Apache-2.0
 * Copyright The kvtrie authors
 *
 * kvtrie's calls for planes that are not simply host memory of one process: tensor parallel ranks, a queued device, CUDA
 * memory. docs/devices.md tells the whole; kvtrie.h has units, codes, threads and handles.
 *
 * Tensor parallel. One process (the scheduler) is a worker: it begins, allocates, publishes. Each rank is a plane writer
 * that fills its planes of the scheduler's pages:
 *
 *   scheduler                                     rank
 *   kvtrie_attach                                 kvtrie_attach, role KVTRIE_ROLE_PLANE_WRITER,
 *   kvtrie_worker_id --- the engine's channel -->   plane_mask, scheduler = that id
 *                    <-- its kvtrie_worker_id ---
 *   kvtrie_allocate  --- page indices ----------> writes its planes of these pages, synchronizes
 *   kvtrie_publish   <-- "written" of all ranks -
 *
 * Duties of the engine, which kvtrie cannot do for it:
 *   - publish only when every rank has reported: from then on nobody writes the pages;
 *   - release pages that were not published only when nobody writes them any more: each rank reported, or
 *     kvtrie_writer_over says KVTRIE_OK of it. A copy that a dead rank had asked its device for may still be under way.
 *     kvtrie_detach releases, too;
 *   - a rank whose scheduler died stops writing and detaches. The scheduler's pages stay taken until all its ranks have
 *     detached or died, so none of them can harm anybody.
 */
#ifndef KVTRIE_DEVICE_H
#define KVTRIE_DEVICE_H

#include "kvtrie.h"

#ifdef __cplusplus
extern "C" {
#endif

/* This attachment's id for other processes: never 0, never the same twice in the life of a cache. */
KVTRIE_API kvtrie_code kvtrie_worker_id(kvtrie_worker worker, uint64_t* id) KVTRIE_NOEXCEPT;
/* Whether the attachment of that id is over and nothing that it asked a device for is under way: KVTRIE_OK; until then
 * KVTRIE_E_BUSY. Reads shared memory, waits for nobody. E_INVALID: `id` is 0. */
KVTRIE_API kvtrie_code kvtrie_writer_over(kvtrie_worker worker, uint64_t id) KVTRIE_NOEXCEPT;

/* Of caches with --device cuda: a new file descriptor of a plane, close-on-exec, yours to close. Import it with
 * cuMemImportFromShareableHandle(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR); page p is p * page_bytes behind its start.
 * E_INVALID: no such plane, or planes in host memory, which have kvtrie_page_address. */
KVTRIE_API kvtrie_code kvtrie_plane_descriptor(kvtrie_worker worker, uint32_t plane,
                                               int* descriptor) KVTRIE_NOEXCEPT;

/* Of caches with --device queued, whose planes are mapped to read only: asks for `bytes` bytes of `from` to be written
 * into a page, `offset` bytes behind its start. They are copied before the call returns and written later, an
 * attachment's in their order. Any thread. E_INVALID: not inside a page, not this plane writer's plane, or not such a
 * cache. E_NOT_NOW: 8 are on their way. Publish, release and detach only after kvtrie_wait_copies. */
KVTRIE_API kvtrie_code kvtrie_queue_copy(kvtrie_worker worker, uint32_t page, uint32_t plane,
                                         uint64_t offset, const void* from,
                                         size_t bytes) KVTRIE_NOEXCEPT;
/* Until all that this attachment asked for is written. On other devices KVTRIE_OK at once. E_TIMEOUT; E_POISONED:
 * nobody will write it. */
KVTRIE_API kvtrie_code kvtrie_wait_copies(kvtrie_worker worker, uint32_t timeout_ms) KVTRIE_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif
