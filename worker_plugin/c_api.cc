// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie.h's calls: arguments checked, handles resolved, failures put into words. What a call does
// is in worker.cc; who may be inside is in handle_table.h.

#include "worker_plugin/c_api.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "shm/namespace_table.h"
#include "shm/runtime_directory.h"
#include "worker_plugin/attachment.h"
#include "worker_plugin/handle_table.h"
#include "worker_plugin/last_error.h"
#include "worker_plugin/option_structs.h"

namespace kvtrie {
namespace {

// Positions and token counts of one sequence stay far from 2^32.
constexpr std::uint64_t kTokensMax = INT32_MAX;
constexpr std::uint8_t kHintMax = 3;
constexpr std::uint8_t kPriorityMax = 15;
// A released sequence keeps its vectors for the next one, up to this.
constexpr std::size_t kKeptBytesMax = 512 * 1024;

// Nothing leaves a call but a code.
template <typename Body>
kvtrie_code guarded(const char* call, Body body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(Code::kSystem, "{}: out of memory", call);
  } catch (const std::exception& failure) {
    return fail(Code::kSystem, "{}: {}", call, failure.what());
  } catch (...) {
    return fail(Code::kSystem, "{}: unexpected failure", call);
  }
}

// Inside a call: leaves its slot at the end, or ends it.
class Call {
 public:
  explicit Call(Inside inside) : inside_(inside) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    if (inside_.code != Code::kOk) return;
    if (ends_) {
      handle_table().end(inside_.slot);
    } else {
      handle_table().leave(inside_.slot);
    }
  }

  bool entered() const { return inside_.code == Code::kOk; }
  Code code() const { return inside_.code; }
  AttachedCache& cache() const { return *inside_.cache; }
  Worker& worker() const { return inside_.cache->worker(); }
  Sequence& sequence() const { return handle_table().sequence(inside_.slot); }
  void end_after() { ends_ = true; }
  std::uint64_t leave_now() {
    inside_.code = Code::kStale;  // nothing left to do at the end
    return handle_table().leave(inside_.slot);
  }

 private:
  Inside inside_;
  bool ends_ = false;
};

// A call with a worker and without a sequence, or before there is one.
Call enter_worker(kvtrie_worker worker) { return Call(handle_table().enter(worker.id)); }
Call enter_sequence(kvtrie_sequence sequence) {
  return Call(handle_table().enter_sequence(sequence.id));
}

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

template <SizedStruct T>
kvtrie_code wrong_size(const char* call, const char* name, const T& given) {
  return fail(Code::kInvalid,
              "{}: {}->size is {}; set it to sizeof({}), which is at most {} in this library", call,
              name, given.size, name, sizeof(T));
}

// The core's answer with the cache's name.
kvtrie_code failed(const char* call, const AttachedCache& cache, const Status& status) {
  return fail(status.code(), "{}: cache '{}': {}", call, cache.cache_name(), status.what());
}

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

// Empty vectors of a sensible size for the next sequence in this slot.
void trim(Sequence& sequence) {
  const std::size_t kept = sequence.shared.capacity() * sizeof sequence.shared[0] +
                           sequence.own.capacity() * sizeof sequence.own[0] +
                           sequence.tokens.capacity() * sizeof sequence.tokens[0];
  if (kept <= kKeptBytesMax) return;
  sequence.shared = {};
  sequence.own = {};
  sequence.tokens = {};
}

// For `positions` in all, so that noting pages that were taken cannot fail. Grows by halves, since
// sequences grow by single pages. What no cache can give needs no room.
void make_room(Sequence& sequence, std::uint64_t positions, std::uint64_t pages) {
  if (positions > pages + 1 || positions <= sequence.shared.size()) return;
  const std::size_t own = positions - sequence.shared.size();
  if (own <= sequence.own.capacity()) return;
  sequence.own.reserve(std::max(own, sequence.own.capacity() + sequence.own.capacity() / 2));
}

kvtrie_code begin_problem(const kvtrie_begin_options& options) {
  constexpr const char* kCall = "kvtrie_begin";
  if ((options.flags & ~std::uint32_t{KVTRIE_NO_READ | KVTRIE_NO_PUBLISH}) != 0) {
    return fail(Code::kInvalid,
                "{}: flags {:#x}: only KVTRIE_NO_READ and KVTRIE_NO_PUBLISH are known", kCall,
                options.flags);
  }
  if (options.reserved[0] != 0 || options.reserved[1] != 0) {
    return fail(Code::kInvalid, "{}: options->reserved must be 0", kCall);
  }
  if (options.hint > kHintMax || options.priority > kPriorityMax) {
    return fail(Code::kInvalid, "{}: hint {} and priority {} must be at most {} and {}", kCall,
                options.hint, options.priority, kHintMax, kPriorityMax);
  }
  return KVTRIE_OK;
}

// Throws: only bad_alloc, and then the sequence holds nothing.
Status begin_sequence(Worker& worker, const NamespaceRef& name_space,
                      std::span<const std::uint32_t> tokens, const kvtrie_begin_options& options,
                      Sequence& sequence, BeginReport& report) {
  constexpr std::uint32_t kNoLease = UINT32_MAX;
  SequenceOptions asked;
  asked.read = (options.flags & KVTRIE_NO_READ) == 0;
  asked.publish = (options.flags & KVTRIE_NO_PUBLISH) == 0;
  asked.request_tag = options.request_tag;
  asked.retention_ticks = options.retention_ticks;
  asked.hint = options.hint;
  asked.priority = options.priority;
  sequence.lease_slot = kNoLease;
  try {
    return worker.begin(name_space, tokens, asked, sequence, report);
  } catch (...) {
    if (sequence.lease_slot != kNoLease) worker.release(sequence);
    throw;
  }
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
  if (number > KVTRIE_E_SYSTEM || number == static_cast<unsigned>(Code::kOwnerDied))
    return "unknown";
  return name_of(static_cast<Code>(number));
}

kvtrie_code kvtrie_attach(const kvtrie_attach_options* options, kvtrie_worker* worker) noexcept {
  constexpr const char* kCall = "kvtrie_attach";
  if (worker == nullptr) return null_argument(kCall, "worker");
  worker->id = 0;
  if (options == nullptr) return null_argument(kCall, "options");
  if (!size_is_served(*options)) return wrong_size(kCall, "options", *options);
  return guarded(kCall, [&] {
    const kvtrie_attach_options asked = read_sized(*options);
    if (asked.cache == nullptr) return null_argument(kCall, "options->cache");
    if (asked.reserved != 0) {
      return fail(Code::kInvalid, "{}: options->reserved must be 0", kCall);
    }
    AttachOptions request;
    request.address = address_of(asked);
    request.name = asked.name != nullptr ? asked.name : program_invocation_short_name;
    return attach_with(request.address, worker,
                       [&](std::string& message) { return attach(request, message); });
  });
}

kvtrie_code kvtrie_detach(kvtrie_worker worker) noexcept {
  constexpr const char* kCall = "kvtrie_detach";
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
  value.tick_ns = segment.superblock().tick_ns;
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

kvtrie_code kvtrie_begin(kvtrie_worker worker, kvtrie_namespace name_space, const uint32_t* tokens,
                         size_t count, const kvtrie_begin_options* options,
                         kvtrie_begin_result* result, kvtrie_sequence* sequence) noexcept {
  constexpr const char* kCall = "kvtrie_begin";
  if (sequence == nullptr) return null_argument(kCall, "sequence");
  sequence->id = 0;
  if (result == nullptr) return null_argument(kCall, "result");
  if (!size_is_served(*result)) return wrong_size(kCall, "result", *result);
  if (tokens == nullptr && count != 0) return null_argument(kCall, "tokens");
  if (count > kTokensMax) {
    return fail(Code::kInvalid, "{}: {} tokens: at most {}", kCall, count, kTokensMax);
  }
  kvtrie_begin_options asked{};
  if (options != nullptr) {
    if (!size_is_served(*options)) return wrong_size(kCall, "options", *options);
    asked = read_sized(*options);
    if (const kvtrie_code code = begin_problem(asked); code != KVTRIE_OK) return code;
  }
  return guarded(kCall, [&] {
    Call call = enter_worker(worker);
    if (!call.entered()) return not_entered(kCall, worker, call.code());
    call.end_after();
    const std::optional<NamespaceRef> ref = call.cache().find_namespace(name_space.id);
    if (!ref) {
      return fail(Code::kStale, "{}: no such namespace {:#x} of this worker: open it (again)",
                  kCall, name_space.id);
    }
    BeginReport report;
    const Status status =
        begin_sequence(call.worker(), *ref, {tokens, count}, asked, call.sequence(), report);
    if (!status) return failed(kCall, call.cache(), status);
    kvtrie_begin_result value{};
    value.cached_pages = report.cached_pages;
    value.cached_tokens =
        std::uint64_t{report.cached_pages} * call.cache().segment().tokens_per_page();
    value.pending_pages = report.pending_next ? 1 : 0;
    write_sized(*result, value);
    sequence->id = call.leave_now();
    return KVTRIE_OK;
  });
}

kvtrie_code kvtrie_append(kvtrie_sequence sequence, const uint32_t* tokens, size_t count) noexcept {
  constexpr const char* kCall = "kvtrie_append";
  if (tokens == nullptr && count != 0) return null_argument(kCall, "tokens");
  return guarded(kCall, [&] {
    const Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    const Sequence& open = call.sequence();
    const std::uint64_t known =
        open.shared.size() * std::uint64_t{call.cache().segment().tokens_per_page()} +
        open.tokens.size();
    if (count > kTokensMax - std::min(known, kTokensMax)) {
      return fail(Code::kInvalid, "{}: {} tokens after {}: at most {} in all", kCall, count, known,
                  kTokensMax);
    }
    call.worker().append(call.sequence(), {tokens, count});
    return KVTRIE_OK;
  });
}

kvtrie_code kvtrie_allocate(kvtrie_sequence sequence, uint64_t total_tokens,
                            const kvtrie_allocate_options* options) noexcept {
  constexpr const char* kCall = "kvtrie_allocate";
  kvtrie_allocate_options asked{};
  if (options != nullptr) {
    if (!size_is_served(*options)) return wrong_size(kCall, "options", *options);
    asked = read_sized(*options);
    if ((asked.flags & ~std::uint32_t{KVTRIE_NO_WAIT}) != 0) {
      return fail(Code::kInvalid, "{}: flags {:#x}: only KVTRIE_NO_WAIT is known", kCall,
                  asked.flags);
    }
  }
  return guarded(kCall, [&] {
    const Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    const Segment& segment = call.cache().segment();
    Sequence& open = call.sequence();
    // Memory first, pages second: what was taken can then be noted.
    make_room(open, total_tokens / segment.tokens_per_page() + 1, segment.page_count());
    const bool waits = (asked.flags & KVTRIE_NO_WAIT) == 0;
    const Status status = call.worker().allocate(
        open, total_tokens, waits ? std::int64_t{asked.wait_ms} * 1'000'000 : 0);
    if (status) return KVTRIE_OK;
    return fail(
        status.code(), "{}: cache '{}': {} ({} tokens of {} a page; {} pages, about {} free)",
        kCall, call.cache().cache_name(), status.what(), total_tokens, segment.tokens_per_page(),
        segment.page_count(), segment.superblock().free_hint.load(std::memory_order_relaxed));
  });
}

kvtrie_code kvtrie_get_pages(kvtrie_sequence sequence, uint32_t first, uint32_t count,
                             uint32_t* pages) noexcept {
  constexpr const char* kCall = "kvtrie_get_pages";
  if (pages == nullptr && count != 0) return null_argument(kCall, "pages");
  const Call call = enter_sequence(sequence);
  if (!call.entered()) return not_entered(kCall, sequence, call.code());
  const Sequence& open = call.sequence();
  if (std::uint64_t{first} + count > open.positions()) {
    return fail(Code::kInvalid, "{}: positions {} to {} of a sequence that has {}", kCall, first,
                std::uint64_t{first} + count, open.positions());
  }
  for (std::uint32_t i = 0; i < count; ++i)
    pages[i] = open.page_at(first + i).value;
  return KVTRIE_OK;
}

kvtrie_code kvtrie_page_count(kvtrie_sequence sequence, uint32_t* count) noexcept {
  constexpr const char* kCall = "kvtrie_page_count";
  if (count == nullptr) return null_argument(kCall, "count");
  const Call call = enter_sequence(sequence);
  if (!call.entered()) return not_entered(kCall, sequence, call.code());
  *count = call.sequence().positions();
  return KVTRIE_OK;
}

kvtrie_code kvtrie_page_address(kvtrie_worker worker, uint32_t page, uint32_t plane,
                                void** address) noexcept {
  constexpr const char* kCall = "kvtrie_page_address";
  if (address == nullptr) return null_argument(kCall, "address");
  const AddressResult found = handle_table().page_address(worker.id, page, plane);
  *address = found.address;
  if (found.code == Code::kOk) return KVTRIE_OK;
  if (found.code == Code::kStale) return stale_worker(kCall, worker.id);
  return fail(found.code, "{}: page {} in plane {} of a cache with {} pages and {} planes", kCall,
              page, plane, found.pages, found.planes);
}

kvtrie_code kvtrie_publish(kvtrie_sequence sequence, uint64_t token_count,
                           kvtrie_publish_result* result) noexcept {
  constexpr const char* kCall = "kvtrie_publish";
  if (result != nullptr && !size_is_served(*result)) return wrong_size(kCall, "result", *result);
  return guarded(kCall, [&] {
    const Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    PublishReport report;
    const Status status = call.worker().publish(call.sequence(), token_count, report);
    if (!status) return failed(kCall, call.cache(), status);
    if (result != nullptr) {
      kvtrie_publish_result value{};
      value.published_tokens =
          std::uint64_t{call.sequence().published} * call.cache().segment().tokens_per_page();
      value.pages_published = report.pages_published;
      value.pages_private = report.pages_private;
      write_sized(*result, value);
    }
    return KVTRIE_OK;
  });
}

kvtrie_code kvtrie_release(kvtrie_sequence sequence) noexcept {
  constexpr const char* kCall = "kvtrie_release";
  return guarded(kCall, [&] {
    Call call = enter_sequence(sequence);
    if (!call.entered()) return not_entered(kCall, sequence, call.code());
    // Without memory it stays open: release may be called again.
    call.worker().release(call.sequence());
    call.end_after();
    trim(call.sequence());
    return KVTRIE_OK;
  });
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
      kvtrie_release,        kvtrie_get_counters, kvtrie_drive_clock,
  };
  if (version != KVTRIE_API_VERSION) {
    fail(Code::kInvalid, "kvtrie_get_api: version {} is not known; this library has {}", version,
         KVTRIE_API_VERSION);
    return nullptr;
  }
  return &kApi;
}

}  // extern "C"
