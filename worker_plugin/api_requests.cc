// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie.h's calls that ask the coordinator: evict, flush. They talk over its socket and so are not for the path of a request.

#include <optional>
#include <string>

#include "shm/admin_client.h"
#include "worker_plugin/api_call.h"
#include "worker_plugin/uncancelled.h"

using namespace kvtrie;

extern "C" {

kvtrie_code kvtrie_evict(kvtrie_worker worker, kvtrie_namespace name_space, uint64_t pages_max,
                         uint64_t* evicted) noexcept {
  constexpr const char* kCall = "kvtrie_evict";
  if (evicted == nullptr) return null_argument(kCall, "evicted");
  *evicted = 0;
  const Uncancelled whole_call;
  return guarded(kCall, [&] {
    Call call = enter_worker(worker);
    if (!call.entered()) return not_entered(kCall, worker, call.code());
    call.end_after();
    std::optional<NamespaceKey> of;
    if (name_space.id != 0) {
      const std::optional<NamespaceRef> ref = call.cache().find_namespace(name_space.id);
      if (!ref) return no_namespace(kCall, name_space);
      of = {ref->id, ref->fields_hash};
    }
    std::string message;
    const Result<EvictedPages> answer = request_eviction(call.cache().address(), pages_max, of, message);
    if (!answer) return fail(answer.error().code(), "{}: {}", kCall, message);
    *evicted = answer->evicted;
    return KVTRIE_OK;
  });
}

kvtrie_code kvtrie_flush(kvtrie_worker worker, kvtrie_namespace name_space) noexcept {
  constexpr const char* kCall = "kvtrie_flush";
  const Uncancelled whole_call;
  return guarded(kCall, [&] {
    Call call = enter_worker(worker);
    if (!call.entered()) return not_entered(kCall, worker, call.code());
    call.end_after();
    const std::optional<NamespaceRef> ref = call.cache().find_namespace(name_space.id);
    if (!ref) return no_namespace(kCall, name_space);
    std::string message;
    const Result<std::uint64_t> flushed =
        request_flush(call.cache().address(), {ref->id, ref->fields_hash}, message);
    return flushed ? KVTRIE_OK : fail(flushed.error().code(), "{}: {}", kCall, message);
  });
}

}  // extern "C"
