// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie.h's calls with a worker: attach, detach, namespaces, addresses, counters. Arguments are checked and failures
// put into words here; who may be inside is in handle_table.h.

#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "shm/namespace_table.h"
#include "shm/runtime_directory.h"
#include "worker_plugin/api_call.h"
#include "worker_plugin/c_api.h"
#include "worker_plugin/uncancelled.h"

namespace kvtrie {
namespace {

CoordinatorAddress address_of(const kvtrie_attach_options& options) {
  CoordinatorAddress address;
  // The C caller is our main: below it nothing reads the environment.
  address.directory =
      options.directory != nullptr
          ? std::string(options.directory)
          : default_runtime_directory(::geteuid(), ::secure_getenv("XDG_RUNTIME_DIR"));
  address.cache = options.cache;
  if (options.timeout_ms != 0) {
    address.timeout_ms = static_cast<int>(std::min<std::uint32_t>(options.timeout_ms, INT_MAX));
  }
  return address;
}

// A reserved index, given back unless the attachment is opened.
class Reserved {
 public:
  explicit Reserved(std::uint32_t index) : index_(index) {}
  Reserved(const Reserved&) = delete;
  Reserved& operator=(const Reserved&) = delete;
  ~Reserved() {
    if (held_) handle_table().cancel(index_);
  }
  std::uint64_t open(std::unique_ptr<AttachedCache> cache) {
    held_ = false;
    const PoolView pools = cache->pool_view();
    return handle_table().open(index_, cache.release(), pools);
  }

 private:
  std::uint32_t index_;
  bool held_ = true;
};

// Get() makes the grant, once there is a place for the attachment.
template <typename Get>
kvtrie_code attach_with(const CoordinatorAddress& address, kvtrie_worker* worker, Get get) {
  const Result<std::uint32_t> index = handle_table().reserve();
  if (!index) return fail(index.error().code(), "kvtrie_attach: {}", index.error().what());
  Reserved reserved(*index);
  std::string message;
  Result<Attachment> grant = get(message);
  if (!grant) return fail(grant.error().code(), "kvtrie_attach: {}", message);
  Result<std::unique_ptr<AttachedCache>> made =
      AttachedCache::make(std::move(*grant), address, message);
  if (!made) return fail(made.error().code(), "kvtrie_attach: {}", message);
  worker->id = reserved.open(std::move(*made));
  return KVTRIE_OK;
}

std::string describe(const kvtrie_field& field) {
  constexpr std::size_t kShown = 40;
  const std::string key(field.key);
  return key.size() <= kShown ? key : key.substr(0, kShown) + "...";
}

// Canonical text of the fields, or empty and the code in `code`.
std::string text_of_fields(const kvtrie_field* fields, std::size_t count, kvtrie_code& code) {
  constexpr const char* kCall = "kvtrie_open_namespace";
  std::vector<NamespaceField> pairs;
  pairs.reserve(count);
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (fields[i].key == nullptr || fields[i].value == nullptr) {
      code = fail(Code::kInvalid, "{}: key or value of field {} is NULL", kCall, i);
      return {};
    }
    pairs.emplace_back(fields[i].key, fields[i].value);
    bytes += pairs.back().first.size() + pairs.back().second.size() + 2;
    for (std::size_t other = 0; other < i; ++other) {
      if (pairs[other].first == pairs[i].first) {
        code = fail(Code::kInvalid, "{}: key '{}' is there twice", kCall, describe(fields[i]));
        return {};
      }
    }
    if (!canonical_fields({&pairs.back(), 1}) && bytes <= kNamespaceDescriptorMax) {
      code = fail(Code::kInvalid,
                  "{}: field '{}': keys are 1 to 64 of a-z 0-9 _ . - and values have no line feed",
                  kCall, describe(fields[i]));
      return {};
    }
    if (bytes > kNamespaceDescriptorMax) {
      code =
          fail(Code::kInvalid,
               "{}: field '{}': more than {} bytes in all; give a hash of each long value instead",
               kCall, describe(fields[i]), kNamespaceDescriptorMax);
      return {};
    }
  }
  Result<std::string> text = canonical_fields(pairs);
  if (!text) {
    code = fail(text.error().code(), "{}: {}", kCall, text.error().what());
    return {};
  }
  return std::move(*text);
}

}  // namespace

kvtrie_code attach_from_grant(Attachment grant, CoordinatorAddress address,
                              kvtrie_worker* worker) noexcept {
  return guarded("kvtrie_attach", [&] {
    worker->id = 0;
    return attach_with(address, worker,
                       [&](std::string&) { return Result<Attachment>(std::move(grant)); });
  });
}

}  // namespace kvtrie

using namespace kvtrie;

extern "C" {

const char* kvtrie_version(void) noexcept { return "kvtrie " KVTRIE_VERSION; }

uint32_t kvtrie_api_version(void) noexcept { return KVTRIE_API_VERSION; }

const char* kvtrie_last_error(void) noexcept { return last_error(); }

const char* kvtrie_code_name(kvtrie_code code) noexcept {
  const auto number = static_cast<unsigned>(code);
  if (number > KVTRIE_E_FLUSHED || number == static_cast<unsigned>(Code::kOwnerDied))
    return "unknown";
  return name_of(static_cast<Code>(number));
}

kvtrie_code kvtrie_attach(const kvtrie_attach_options* options, kvtrie_worker* worker) noexcept {
  constexpr const char* kCall = "kvtrie_attach";
  if (worker == nullptr) return null_argument(kCall, "worker");
  worker->id = 0;
  if (options == nullptr) return null_argument(kCall, "options");
  if (!size_is_served(*options)) return wrong_size(kCall, "options", *options);
  const Uncancelled whole_call;
  return guarded(kCall, [&] {
    const kvtrie_attach_options asked = read_sized(*options);
    if (asked.cache == nullptr) return null_argument(kCall, "options->cache");
    if (asked.role != KVTRIE_ROLE_WORKER && asked.role != KVTRIE_ROLE_PLANE_WRITER) {
      return fail(Code::kInvalid, "{}: options->role {}: there are KVTRIE_ROLE_WORKER and KVTRIE_ROLE_PLANE_WRITER",
                  kCall, asked.role);
    }
    AttachOptions request;
    request.address = address_of(asked);
    request.name = asked.name != nullptr ? asked.name : program_invocation_short_name;
    request.role = static_cast<WorkerRole>(asked.role);
    request.plane_mask = asked.plane_mask;
    request.scheduler = {asked.scheduler};
    return attach_with(request.address, worker,
                       [&](std::string& message) { return attach(request, message); });
  });
}

kvtrie_code kvtrie_detach(kvtrie_worker worker) noexcept {
  constexpr const char* kCall = "kvtrie_detach";
  const Uncancelled whole_call;
  AttachedCache* cache = nullptr;
  const Code code = handle_table().close(worker.id, cache, [](AttachedCache& of, Sequence& open) {
    // Without memory the coordinator gives its pages back, as those of a dead worker.
    (void)guarded(kCall, [&] { return of.worker().release(open), KVTRIE_OK; });
  });
  if (code == Code::kBusy) {
    return fail(code, "{}: another thread is inside a call of this worker: let it end, then detach",
                kCall);
  }
  if (code != Code::kOk) return stale_worker(kCall, worker.id);
  cache->leave();
  delete cache;
  return KVTRIE_OK;
}

kvtrie_code kvtrie_get_geometry(kvtrie_worker worker, kvtrie_geometry* geometry) noexcept {
  constexpr const char* kCall = "kvtrie_get_geometry";
  if (geometry == nullptr) return null_argument(kCall, "geometry");
  if (!size_is_served(*geometry)) return wrong_size(kCall, "geometry", *geometry);
  Call call = enter_worker(worker);
  if (!call.entered()) return not_entered(kCall, worker, call.code());
  call.end_after();
  const Segment& segment = call.cache().segment();
  kvtrie_geometry value{};
  value.pages = segment.page_count();
  value.page_bytes = segment.geometry().page_bytes;
  value.tokens_per_page = segment.tokens_per_page();
  value.planes = segment.geometry().planes;
  value.tick_ns = segment.tick_ns();
  write_sized(*geometry, value);
  return KVTRIE_OK;
}

kvtrie_code kvtrie_open_namespace(kvtrie_worker worker, const kvtrie_field* fields,
                                  size_t field_count, const char* label,
                                  kvtrie_namespace* name_space) noexcept {
  constexpr const char* kCall = "kvtrie_open_namespace";
  if (name_space == nullptr) return null_argument(kCall, "name_space");
  name_space->id = 0;
  if (fields == nullptr) return null_argument(kCall, "fields");
  const Uncancelled whole_call;
  return guarded(kCall, [&] {
    // Each field takes at least "k=\n", so more of them cannot fit; and the loop below is bounded.
    if (field_count == 0 || field_count > kNamespaceDescriptorMax / 3) {
      return fail(Code::kInvalid, "{}: {} fields: give 1 to {}", kCall, field_count,
                  kNamespaceDescriptorMax / 3);
    }
    kvtrie_code code = KVTRIE_OK;
    const std::string text = text_of_fields(fields, field_count, code);
    if (code != KVTRIE_OK) return code;
    Call call = enter_worker(worker);
    if (!call.entered()) return not_entered(kCall, worker, call.code());
    call.end_after();
    std::string message;
    const Result<std::uint64_t> handle =
        call.cache().open_namespace(handle_table(), text, label == nullptr ? "" : label, message);
    if (!handle) return fail(handle.error().code(), "{}: {}", kCall, message);
    name_space->id = *handle;
    return KVTRIE_OK;
  });
}

kvtrie_code kvtrie_page_address(kvtrie_worker worker, uint32_t page, uint32_t plane,
                                void** address) noexcept {
  constexpr const char* kCall = "kvtrie_page_address";
  if (address == nullptr) return null_argument(kCall, "address");
  const AddressResult found = handle_table().page_address(worker.id, page, plane);
  *address = found.address;
  if (found.code == Code::kOk) return KVTRIE_OK;
  if (found.code == Code::kStale) return stale_worker(kCall, worker.id);
  if (found.planes == 0) {
    return fail(found.code, "{}: the planes are in device memory: import kvtrie_plane_descriptor()", kCall);
  }
  return fail(found.code, "{}: page {} in plane {} of a cache with {} pages and {} planes", kCall,
              page, plane, found.pages, found.planes);
}

kvtrie_code kvtrie_get_counters(kvtrie_worker worker, kvtrie_counters* counters) noexcept {
  constexpr const char* kCall = "kvtrie_get_counters";
  if (counters == nullptr) return null_argument(kCall, "counters");
  if (!size_is_served(*counters)) return wrong_size(kCall, "counters", *counters);
  Call call = enter_worker(worker);
  if (!call.entered()) return not_entered(kCall, worker, call.code());
  call.end_after();
  const AttachedCache& cache = call.cache();
  kvtrie_counters value{};
  value.lookups = cache.counted(Counter::kLookups);
  value.tokens_asked = cache.counted(Counter::kTokensAsked);
  value.tokens_found = cache.counted(Counter::kTokensFound);
  value.pages_asked = cache.counted(Counter::kPagesAsked);
  value.pages_hit = cache.counted(Counter::kPagesHit);
  value.pages_allocated = cache.counted(Counter::kPagesAllocated);
  value.failed_not_now = cache.counted(Counter::kFailedNotNow);
  value.failed_never = cache.counted(Counter::kFailedNever);
  value.waits = cache.counted(Counter::kWaits);
  value.pages_published = cache.counted(Counter::kPagesPublished);
  value.duplicates = cache.counted(Counter::kDuplicates);
  value.stripes_passed_by = cache.counted(Counter::kStripesPassedBy);
  value.buckets_full = cache.counted(Counter::kBucketsFull);
  value.lease_fallbacks = cache.counted(Counter::kLeaseFallbacks);
  value.rescues = cache.counted(Counter::kRescues);
  value.releases = cache.counted(Counter::kReleases);
  value.pages_given_back = cache.counted(Counter::kPagesGivenBack);
  value.corrupt_seen = cache.counted(Counter::kCorruptSeen);
  value.partial_matches = cache.counted(Counter::kPartialMatches);
  value.partial_tokens = cache.counted(Counter::kPartialTokens);
  value.pending_waits = cache.counted(Counter::kPendingWaits);
  value.forks = cache.counted(Counter::kForks);
  value.batches = cache.counted(Counter::kBatches);
  value.incomplete_published = cache.counted(Counter::kIncompletePublished);
  value.flushed_refused = cache.counted(Counter::kFlushedRefused);
  value.pages_copied = cache.counted(Counter::kPagesCopied);
  value.pages_summed = cache.counted(Counter::kPagesSummed);
  value.wrong_checksums = cache.counted(Counter::kWrongChecksums);
  write_sized(*counters, value);
  return KVTRIE_OK;
}

kvtrie_code kvtrie_drive_clock(kvtrie_worker worker, uint32_t tick) noexcept {
  constexpr const char* kCall = "kvtrie_drive_clock";
  Call call = enter_worker(worker);
  if (!call.entered()) return not_entered(kCall, worker, call.code());
  call.end_after();
  if (call.cache().drive_clock(tick)) return KVTRIE_OK;
  return fail(Code::kInvalid,
              "{}: cache '{}' has the system's clock; start kvtried with --clock driven", kCall,
              call.cache().cache_name());
}

const kvtrie_api* kvtrie_get_api(uint32_t version) noexcept {
  static constexpr kvtrie_api kApi = {
      sizeof(kvtrie_api),    KVTRIE_API_VERSION,  kvtrie_version,      kvtrie_last_error,
      kvtrie_code_name,      kvtrie_attach,       kvtrie_detach,       kvtrie_get_geometry,
      kvtrie_open_namespace, kvtrie_begin,        kvtrie_append,       kvtrie_allocate,
      kvtrie_get_pages,      kvtrie_page_count,   kvtrie_page_address, kvtrie_publish,
      kvtrie_release,        kvtrie_get_counters, kvtrie_drive_clock,  kvtrie_prepare_batch,
      kvtrie_fork,           kvtrie_wait_pending, kvtrie_own_pages,    kvtrie_give_back,
      kvtrie_copy_in,        kvtrie_copy_out,     kvtrie_publish_incomplete,
      kvtrie_probe,          kvtrie_hash_tokens,  kvtrie_probe_hashes, kvtrie_evict,
      kvtrie_flush,
  };
  // The table only grows: who asks for version 1 reads the beginning.
  if (version == 0 || version > KVTRIE_API_VERSION) {
    fail(Code::kInvalid, "kvtrie_get_api: version {} is not known; this library has 1 to {}", version,
         KVTRIE_API_VERSION);
    return nullptr;
  }
  return &kApi;
}

}  // extern "C"
