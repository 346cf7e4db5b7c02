// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie.h's calls that only look: probe, hash_tokens, probe_hashes.

#include <algorithm>
#include <optional>

#include "worker_plugin/api_call.h"

namespace kvtrie {
namespace {

// Enters, finds the namespace, and calls body(worker, namespace, tokens per page), which answers a Status.
template <typename Body>
kvtrie_code look(const char* name, kvtrie_worker worker, kvtrie_namespace name_space, Body body) noexcept {
  return guarded(name, [&] {
    Call call = enter_worker(worker);
    if (!call.entered()) return not_entered(name, worker, call.code());
    call.end_after();
    const std::optional<NamespaceRef> ref = call.cache().find_namespace(name_space.id);
    if (!ref) return no_namespace(name, name_space);
    const Status status = body(call.worker(), *ref, call.cache().segment().tokens_per_page());
    return status ? KVTRIE_OK : failed(name, call.cache(), status);
  });
}

void write_probe(std::uint32_t cached_pages, std::uint32_t pending_pages, std::uint32_t page_tokens,
                 kvtrie_probe_result& result) {
  kvtrie_probe_result value{};
  value.cached_pages = cached_pages;
  value.cached_tokens = std::uint64_t{cached_pages} * page_tokens;
  value.pending_pages = pending_pages;
  write_sized(result, value);
}

}  // namespace
}  // namespace kvtrie

using namespace kvtrie;

extern "C" {

kvtrie_code kvtrie_probe(kvtrie_worker worker, kvtrie_namespace name_space, const uint32_t* tokens,
                         size_t count, kvtrie_probe_result* result) noexcept {
  constexpr const char* kCall = "kvtrie_probe";
  if (result == nullptr) return null_argument(kCall, "result");
  if (!size_is_served(*result)) return wrong_size(kCall, "result", *result);
  if (tokens == nullptr && count != 0) return null_argument(kCall, "tokens");
  if (count > kTokensMax) return too_many_tokens(kCall, count);
  return look(kCall, worker, name_space, [&](Worker& core, const NamespaceRef& ref, std::uint32_t page_tokens) {
    BeginReport report;
    const Status status = core.probe(ref, {tokens, count}, report);
    if (status) write_probe(report.cached_pages, report.pending_pages, page_tokens, *result);
    return status;
  });
}

kvtrie_code kvtrie_hash_tokens(kvtrie_worker worker, kvtrie_namespace name_space, const uint32_t* tokens,
                               size_t token_count, uint64_t* hashes, size_t capacity,
                               size_t* count) noexcept {
  constexpr const char* kCall = "kvtrie_hash_tokens";
  if (count == nullptr) return null_argument(kCall, "count");
  *count = 0;
  if (tokens == nullptr && token_count != 0) return null_argument(kCall, "tokens");
  if (hashes == nullptr && capacity != 0) return null_argument(kCall, "hashes");
  if (token_count > kTokensMax) return too_many_tokens(kCall, token_count);
  return look(kCall, worker, name_space, [&](Worker& core, const NamespaceRef& ref, std::uint32_t page_tokens) {
    const Status status = core.hash_tokens(ref, {tokens, token_count}, {hashes, capacity});
    if (status) *count = token_count / page_tokens;
    return status;
  });
}

kvtrie_code kvtrie_probe_hashes(kvtrie_worker worker, kvtrie_namespace name_space, const uint64_t* hashes,
                                size_t count, kvtrie_probe_result* result) noexcept {
  constexpr const char* kCall = "kvtrie_probe_hashes";
  if (result == nullptr) return null_argument(kCall, "result");
  if (!size_is_served(*result)) return wrong_size(kCall, "result", *result);
  if (hashes == nullptr && count != 0) return null_argument(kCall, "hashes");
  if (count > kTokensMax) return too_many_tokens(kCall, count);
  return look(kCall, worker, name_space, [&](Worker& core, const NamespaceRef& ref, std::uint32_t page_tokens) {
    std::uint32_t cached = 0;
    const Status status = core.probe_hashes(ref, {hashes, count}, cached);
    if (status) write_probe(cached, 0, page_tokens, *result);
    return status;
  });
}

}  // extern "C"
