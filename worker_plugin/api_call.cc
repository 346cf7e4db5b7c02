// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/api_call.h"

namespace kvtrie {

kvtrie_code stale_worker(const char* call, std::uint64_t id) {
  if (handle_table().inherited(id)) {
    return fail(Code::kStale,
                "{}: this worker is the parent process's; after fork a child attaches by itself",
                call);
  }
  return fail(Code::kStale, "{}: no such worker {:#x}: it was detached, or never attached", call,
              id);
}

kvtrie_code not_entered(const char* call, kvtrie_worker worker, Code code) {
  if (code == Code::kStale) return stale_worker(call, worker.id);
  return fail(code, "{}: {} sequences and calls are open in this process: release some", call,
              HandleTable::kSlotsMax - 1);
}

kvtrie_code not_entered(const char* call, kvtrie_sequence sequence, Code code) {
  if (code == Code::kBusy) {
    return fail(code, "{}: another thread is in a call on sequence {:#x}: one at a time", call,
                sequence.id);
  }
  if (handle_table().inherited_sequence(sequence.id)) {
    return fail(code,
                "{}: this sequence is the parent process's; after fork a child attaches by itself",
                call);
  }
  return fail(code, "{}: no such sequence {:#x}: it was released, or its worker was detached", call,
              sequence.id);
}

kvtrie_code null_argument(const char* call, const char* name) {
  return fail(Code::kInvalid, "{}: {} is NULL", call, name);
}

kvtrie_code failed(const char* call, const AttachedCache& cache, const Status& status) {
  return fail(status.code(), "{}: cache '{}': {}", call, cache.cache_name(), status.what());
}

}  // namespace kvtrie
