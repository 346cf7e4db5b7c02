// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie_device.h's calls. Arguments are checked and failures put into words here.

#include "worker_plugin/kvtrie_device.h"

#include <cstddef>
#include <span>

#include "shm/worker_table.h"
#include "worker_plugin/api_call.h"

using namespace kvtrie;

extern "C" {

kvtrie_code kvtrie_worker_id(kvtrie_worker worker, uint64_t* id) noexcept {
  constexpr const char* kCall = "kvtrie_worker_id";
  if (id == nullptr) return null_argument(kCall, "id");
  *id = 0;
  Call call = enter_worker(worker);
  if (!call.entered()) return not_entered(kCall, worker, call.code());
  call.end_after();
  *id = WorkerTag::of(call.cache().grant()).raw;
  return KVTRIE_OK;
}

kvtrie_code kvtrie_writer_over(kvtrie_worker worker, uint64_t id) noexcept {
  constexpr const char* kCall = "kvtrie_writer_over";
  if (id == 0) return fail(Code::kInvalid, "{}: id is 0, which is nobody's", kCall);
  Call call = enter_worker(worker);
  if (!call.entered()) return not_entered(kCall, worker, call.code());
  call.end_after();
  if (WorkerTable(call.cache().segment()).over(WorkerTag{id}.grant())) return KVTRIE_OK;
  return fail(Code::kBusy, "{}: {:#x} is attached, or what it asked its device for is still under way", kCall, id);
}

kvtrie_code kvtrie_plane_descriptor(kvtrie_worker worker, uint32_t plane, int* descriptor) noexcept {
  constexpr const char* kCall = "kvtrie_plane_descriptor";
  if (descriptor == nullptr) return null_argument(kCall, "descriptor");
  *descriptor = -1;
  Call call = enter_worker(worker);
  if (!call.entered()) return not_entered(kCall, worker, call.code());
  call.end_after();
  const Result<int> made = call.cache().plane_descriptor(plane);
  if (!made) return failed(kCall, call.cache(), made.error());
  *descriptor = *made;
  return KVTRIE_OK;
}

kvtrie_code kvtrie_queue_copy(kvtrie_worker worker, uint32_t page, uint32_t plane, uint64_t offset, const void* from,
                              size_t bytes) noexcept {
  constexpr const char* kCall = "kvtrie_queue_copy";
  if (from == nullptr) return null_argument(kCall, "from");
  return guarded(kCall, [&] {
    Call call = enter_worker(worker);
    if (!call.entered()) return not_entered(kCall, worker, call.code());
    call.end_after();
    const Status status =
        call.cache().queue_copy({{page}, plane, offset}, {static_cast<const std::byte*>(from), bytes});
    return status ? KVTRIE_OK : failed(kCall, call.cache(), status);
  });
}

kvtrie_code kvtrie_wait_copies(kvtrie_worker worker, uint32_t timeout_ms) noexcept {
  constexpr const char* kCall = "kvtrie_wait_copies";
  Call call = enter_worker(worker);
  if (!call.entered()) return not_entered(kCall, worker, call.code());
  call.end_after();
  const Status status = call.cache().wait_copies(timeout_ms);
  return status ? KVTRIE_OK : failed(kCall, call.cache(), status);
}

}  // extern "C"
