/* SPDX-License-Identifier: Apache-2.0
 * Copyright The kvtrie authors
 *
 * kvtrie.h and kvtrie_device.h for C++17 and later, header only: what was begun ends with its scope, spans instead of
 * pointers with counts, codes that cannot be overlooked (kvtrie_types.hpp: which are an Outcome, which throw an Error).
 *
 *   Library  the linked plugin, or one that is loaded by its path
 *   Worker   an attachment: detached at its end
 *   Sequence one request: released at its end
 *   Batch    many requests that are begun and given pages together
 *
 * Each member function is one call of the C interface, whose arguments, units and meaning it keeps: kvtrie.h and
 * docs/plugin.md have them. What is not said here is as there.
 *
 * Lifetime. A Library outlives the Workers and Sequences made through it. A Sequence may outlive its Worker: the detach
 * releases it, and its calls then throw KVTRIE_E_STALE. Moved-from and default-made objects own nothing.
 *
 * Threads. As in kvtrie.h: any thread may call a Worker at any time; of one Sequence, one call at a time (another one
 * throws KVTRIE_E_BUSY). Moving and ending an object is the caller's to keep apart from other uses of that same object.
 *
 * Costs. The classes hold a handle and a few pointers; no call of a Worker or Sequence takes memory in this header (but
 * Sequence::pages and an Error), so a hit costs what it costs in C.
 */
#ifndef KVTRIE_HPP
#define KVTRIE_HPP

#include <dlfcn.h>
#include <unistd.h>

#include <memory>
#include <utility>
#include <vector>

#include "kvtrie_device.h"
#include "kvtrie_types.hpp"

namespace kvtrie {
namespace client {

/* Where the calls come from. */
class Library {
 public:
  /* The one that the program is linked with. */
  static Library linked() {
    Calls calls;
    calls.table = kvtrie_get_api(KVTRIE_API_VERSION);
    if (calls.table == nullptr) throw Error(KVTRIE_E_INVALID, kvtrie_last_error());
    calls.worker_id = &kvtrie_worker_id;
    calls.writer_over = &kvtrie_writer_over;
    calls.plane_descriptor = &kvtrie_plane_descriptor;
    calls.queue_copy = &kvtrie_queue_copy;
    calls.wait_copies = &kvtrie_wait_copies;
    return {calls, nullptr};
  }
  /* libkvtrie_worker.so at `path` (or by its name, as dlopen looks for it). KVTRIE_E_SYSTEM: it cannot be loaded.
   * KVTRIE_E_INVALID: it is no kvtrie, or older than this header. Closed with the Library. */
  static Library open(const char* path) {
    std::unique_ptr<void, Close> handle(::dlopen(path, RTLD_NOW | RTLD_LOCAL));
    if (handle == nullptr) throw Error(KVTRIE_E_SYSTEM, ::dlerror());
    Calls calls;
    decltype(&kvtrie_get_api) get_api = nullptr;
    find(handle.get(), "kvtrie_get_api", get_api);
    if (get_api != nullptr) calls.table = get_api(KVTRIE_API_VERSION);
    if (calls.table == nullptr) {
      throw Error(KVTRIE_E_INVALID, get_api == nullptr ? "kvtrie: no kvtrie_get_api in this library"
                                                       : "kvtrie: this library is older than the header");
    }
    find(handle.get(), "kvtrie_worker_id", calls.worker_id);
    find(handle.get(), "kvtrie_writer_over", calls.writer_over);
    find(handle.get(), "kvtrie_plane_descriptor", calls.plane_descriptor);
    find(handle.get(), "kvtrie_queue_copy", calls.queue_copy);
    find(handle.get(), "kvtrie_wait_copies", calls.wait_copies);
    return {calls, handle.release()};
  }

  const Calls& calls() const noexcept { return calls_; }
  /* "kvtrie 0.1.0"; the highest version of the table that it knows. */
  const char* version() const noexcept { return calls_.table->version_string(); }
  std::uint32_t api_version() const noexcept { return calls_.table->version; }
  /* Of this thread; valid until its next call. After an Outcome that is not KVTRIE_OK: its text. */
  const char* last_error() const noexcept { return calls_.table->last_error(); }
  const char* code_name(kvtrie_code code) const noexcept { return calls_.table->code_name(code); }

 private:
  struct Close {
    void operator()(void* handle) const noexcept { (void)::dlclose(handle); }
  };
  Library(const Calls& calls, void* handle) noexcept : calls_(calls), handle_(handle) {}
  template <typename Call>
  static void find(void* handle, const char* name, Call& call) noexcept {
    if (void* const symbol = ::dlsym(handle, name)) call = reinterpret_cast<Call>(symbol);
  }

  Calls calls_;
  std::unique_ptr<void, Close> handle_;
};

/* A descriptor of a plane in device memory, closed at its end. */
class PlaneDescriptor {
 public:
  PlaneDescriptor() noexcept = default;
  explicit PlaneDescriptor(int descriptor) noexcept : descriptor_(descriptor) {}
  PlaneDescriptor(PlaneDescriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  PlaneDescriptor& operator=(PlaneDescriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~PlaneDescriptor() {
    if (descriptor_ >= 0) (void)::close(descriptor_);
  }
  int get() const noexcept { return descriptor_; }
  /* Now the caller closes it, or who imports it. */
  int take() noexcept { return std::exchange(descriptor_, -1); }

 private:
  int descriptor_ = -1;
};

class Sequence;
struct Forked;

struct Waited {
  Outcome outcome = KVTRIE_OK;
  BeginResult result; /* what is matched now; filled with KVTRIE_OK and KVTRIE_E_TIMEOUT */
};
struct Published {
  Outcome outcome = KVTRIE_OK;
  PublishResult result;
};
struct Probed {
  Outcome outcome = KVTRIE_OK;
  ProbeResult result;
};
struct Evicted {
  Outcome outcome = KVTRIE_OK;
  std::uint64_t pages = 0;
};

/* One request, from begin to release. Move only. */
class Sequence {
 public:
  Sequence() noexcept = default;
  /* Takes over what a C call began. */
  Sequence(const kvtrie_api* table, kvtrie_sequence handle) noexcept : table_(table), handle_(handle) {}
  Sequence(Sequence&& other) noexcept : table_(other.table_), handle_(other.take_handle()) {}
  /* Releases what this one had, as the destructor does. */
  Sequence& operator=(Sequence&& other) noexcept {
    Sequence ended(std::move(*this));
    table_ = other.table_;
    handle_ = other.take_handle();
    return *this;
  }
  /* Releases. Nobody hears the code: a sequence that another thread is inside (KVTRIE_E_BUSY), or a release without
   * memory (KVTRIE_E_SYSTEM), stays open until the worker detaches. Call release() first to hear it. */
  ~Sequence() {
    if (handle_.id != 0) (void)table_->release(handle_);
  }

  explicit operator bool() const noexcept { return handle_.id != 0; }
  kvtrie_sequence handle() const noexcept { return handle_; }
  /* Now the caller releases it. */
  kvtrie_sequence take_handle() noexcept { return std::exchange(handle_, kvtrie_sequence{0}); }

  /* Any code, never throws. KVTRIE_OK and KVTRIE_E_STALE: it is over. Others: it is as before, try again. */
  Outcome release() noexcept {
    if (handle_.id == 0) return KVTRIE_E_STALE;
    const kvtrie_code code = table_->release(handle_);
    if (code == KVTRIE_OK || code == KVTRIE_E_STALE) handle_.id = 0;
    return code;
  }

  /* KVTRIE_E_TIMEOUT, KVTRIE_E_FULL, KVTRIE_E_FLUSHED. Sleeps up to time_ms. */
  Waited wait_pending(std::uint32_t time_ms) {
    Waited waited;
    waited.outcome = checked(table()->wait_pending(handle_, time_ms, &waited.result),
                             detail::bit(KVTRIE_E_TIMEOUT) | detail::bit(KVTRIE_E_FULL) |
                                 detail::bit(KVTRIE_E_FLUSHED));
    return waited;
  }
  void append(Tokens tokens) { must(table()->append(handle_, tokens.data(), tokens.size())); }
  /* KVTRIE_E_NOT_NOW, KVTRIE_E_NEVER, KVTRIE_E_TIMEOUT, KVTRIE_E_FULL. Sleeps only when options ask for it. */
  Outcome allocate(std::uint64_t total_tokens, const kvtrie_allocate_options* options = nullptr) {
    return checked(table()->allocate(handle_, total_tokens, options),
                   detail::bit(KVTRIE_E_NOT_NOW) | detail::bit(KVTRIE_E_NEVER) | detail::bit(KVTRIE_E_TIMEOUT) |
                       detail::bit(KVTRIE_E_FULL));
  }

  std::uint32_t page_count() const {
    std::uint32_t count = 0;
    must(table()->page_count(handle_, &count));
    return count;
  }
  /* Page indices of positions [first, first + pages.size()). */
  void get_pages(std::uint32_t first, Span<std::uint32_t> pages) const {
    must(table()->get_pages(handle_, first, count32(pages.size()), pages.data()));
  }
  /* Of all positions, in memory of its own. */
  std::vector<std::uint32_t> pages() const {
    std::vector<std::uint32_t> all(page_count());
    get_pages(0, all);
    return all;
  }
  /* How many there are; as many as fit are in `pages`. */
  std::uint32_t own_pages(Span<kvtrie_own_page> pages) const {
    std::uint32_t count = 0;
    must(table()->own_pages(handle_, pages.data(), count32(pages.size()), &count));
    return count;
  }
  void give_back(std::uint32_t first, std::uint32_t count) { must(table()->give_back(handle_, first, count)); }

  /* `layout` nullptr: whole pages. base has room for them, or for what the layout's strides span. */
  void copy_in(std::uint64_t first_token, std::uint64_t token_count, std::uint32_t plane, const kvtrie_layout* layout,
               const void* base) {
    must(table()->copy_in(handle_, first_token, token_count, plane, layout, base));
  }
  void copy_out(std::uint64_t first_token, std::uint64_t token_count, std::uint32_t plane, const kvtrie_layout* layout,
                void* base) const {
    must(table()->copy_out(handle_, first_token, token_count, plane, layout, base));
  }

  /* KVTRIE_E_FLUSHED. */
  Published publish(std::uint64_t token_count) {
    Published published;
    published.outcome =
        checked(table()->publish(handle_, token_count, &published.result), detail::bit(KVTRIE_E_FLUSHED));
    return published;
  }
  Published publish_incomplete(std::uint64_t token_count) {
    Published published;
    published.outcome =
        checked(table()->publish_incomplete(handle_, token_count, &published.result), detail::bit(KVTRIE_E_FLUSHED));
    return published;
  }

  /* KVTRIE_E_NOT_NOW, KVTRIE_E_TIMEOUT, KVTRIE_E_FULL: there is no child then. */
  inline Forked fork(const kvtrie_fork_options* options = nullptr);

 private:
  const kvtrie_api* table() const { return detail::opened(table_); }
  void must(kvtrie_code code) const { (void)detail::checked(table_, code).code(); }
  Outcome checked(kvtrie_code code, std::uint32_t outcomes) const { return detail::checked(table_, code, outcomes); }
  static std::uint32_t count32(std::size_t count) {
    if (count > UINT32_MAX) throw Error(KVTRIE_E_INVALID, "kvtrie: more than 2^32 - 1 pages");
    return static_cast<std::uint32_t>(count);
  }

  const kvtrie_api* table_ = nullptr;
  kvtrie_sequence handle_{0};
};

struct Forked {
  Outcome outcome = KVTRIE_OK;
  Sequence child;
};
struct Begun {
  Outcome outcome = KVTRIE_OK;
  BeginResult result;
  Sequence sequence;
};

inline Forked Sequence::fork(const kvtrie_fork_options* options) {
  kvtrie_sequence child{0};
  const Outcome outcome =
      checked(table()->fork_sequence(handle_, options, &child),
              detail::bit(KVTRIE_E_NOT_NOW) | detail::bit(KVTRIE_E_TIMEOUT) | detail::bit(KVTRIE_E_FULL));
  return {outcome, Sequence(table_, child)};
}

/* An attachment. Move only. Its calls are for any thread. */
class Worker {
 public:
  Worker() noexcept = default;
  /* Attaches; every failure throws. */
  Worker(const Library& library, const kvtrie_attach_options& options) {
    if (const Outcome outcome = attach(library, options); !outcome) {
      throw Error(outcome.code(), library.last_error());
    }
  }
  Worker(Worker&& other) noexcept { take(other); }
  /* Detaches what this one had, as the destructor does. */
  Worker& operator=(Worker&& other) noexcept {
    Worker ended(std::move(*this));
    take(other);
    return *this;
  }
  /* Detaches. Nobody hears KVTRIE_E_BUSY of another thread that is inside a call: the attachment then lasts until the
   * process ends. Let the threads end before, or call detach() to hear it. */
  ~Worker() { (void)detach().code(); }

  /* Of a Worker that is not attached (else it throws KVTRIE_E_INVALID). KVTRIE_E_NO_COORDINATOR, KVTRIE_E_FULL,
   * KVTRIE_E_TIMEOUT: go on without a cache and try again later. Asks the coordinator. */
  Outcome attach(const Library& library, const kvtrie_attach_options& options) {
    if (handle_.id != 0) throw Error(KVTRIE_E_INVALID, "kvtrie: this Worker is attached: detach it first");
    Worker made; /* detaches if what follows throws */
    made.calls_ = library.calls();
    const Outcome outcome = made.checked(made.table()->attach(&options, &made.handle_),
                                         detail::bit(KVTRIE_E_NO_COORDINATOR) | detail::bit(KVTRIE_E_FULL) |
                                             detail::bit(KVTRIE_E_TIMEOUT));
    if (outcome) made.page_bytes_ = made.geometry().page_bytes;
    take(made);
    return outcome;
  }
  /* Any code, never throws. KVTRIE_OK and KVTRIE_E_STALE: it is over. KVTRIE_E_BUSY: it is as before. */
  Outcome detach() noexcept {
    if (handle_.id == 0) return KVTRIE_E_STALE;
    const kvtrie_code code = calls_.table->detach(handle_);
    if (code == KVTRIE_OK || code == KVTRIE_E_STALE) handle_.id = 0;
    return code;
  }

  explicit operator bool() const noexcept { return handle_.id != 0; }
  kvtrie_worker handle() const noexcept { return handle_; }

  Geometry geometry() const {
    Geometry geometry;
    must(table()->get_geometry(handle_, &geometry));
    return geometry;
  }
  /* A namespace's handle is a value that lasts as long as the attachment: nothing to release. */
  kvtrie_namespace open_namespace(Fields fields, const char* label = nullptr) const {
    kvtrie_namespace opened{0};
    must(table()->open_namespace(handle_, fields.data(), fields.size(), label, &opened));
    return opened;
  }

  /* KVTRIE_E_NOT_NOW, KVTRIE_E_FULL, KVTRIE_E_STALE (open the namespace again): there is no sequence then. */
  Begun begin(kvtrie_namespace name_space, Tokens tokens, const kvtrie_begin_options* options = nullptr) const {
    Begun begun;
    kvtrie_sequence handle{0};
    begun.outcome = checked(
        table()->begin(handle_, name_space, tokens.data(), tokens.size(), options, &begun.result, &handle),
        detail::bit(KVTRIE_E_NOT_NOW) | detail::bit(KVTRIE_E_FULL) | detail::bit(KVTRIE_E_STALE));
    begun.sequence = Sequence(calls_.table, handle);
    return begun;
  }

  /* First byte of a page in a plane. */
  void* page_address(std::uint32_t page, std::uint32_t plane) const {
    void* address = nullptr;
    must(table()->page_address(handle_, page, plane, &address));
    return address;
  }
  /* The page's bytes in that plane: page_bytes of them. Shared pages are for reading. */
  Span<std::byte> page(std::uint32_t page, std::uint32_t plane) const {
    return {static_cast<std::byte*>(page_address(page, plane)), static_cast<std::size_t>(page_bytes_)};
  }

  /* KVTRIE_E_STALE: open the namespace again. */
  Probed probe(kvtrie_namespace name_space, Tokens tokens) const {
    Probed probed;
    probed.outcome = checked(table()->probe(handle_, name_space, tokens.data(), tokens.size(), &probed.result),
                             detail::bit(KVTRIE_E_STALE));
    return probed;
  }
  Probed probe_hashes(kvtrie_namespace name_space, Span<const std::uint64_t> hashes) const {
    Probed probed;
    probed.outcome = checked(table()->probe_hashes(handle_, name_space, hashes.data(), hashes.size(), &probed.result),
                             detail::bit(KVTRIE_E_STALE));
    return probed;
  }
  /* How many there are; as many as fit are in `hashes`. */
  std::size_t hash_tokens(kvtrie_namespace name_space, Tokens tokens, Span<std::uint64_t> hashes) const {
    std::size_t count = 0;
    must(table()->hash_tokens(handle_, name_space, tokens.data(), tokens.size(), hashes.data(), hashes.size(), &count));
    return count;
  }

  /* KVTRIE_E_NO_COORDINATOR, KVTRIE_E_REFUSED, KVTRIE_E_TIMEOUT; KVTRIE_E_STALE, KVTRIE_E_NOT_FOUND: open the namespace
   * again. Asks the coordinator. Namespace {0}: of all. */
  Evicted evict(kvtrie_namespace name_space, std::uint64_t pages_max) const {
    Evicted evicted;
    evicted.outcome = checked(table()->evict(handle_, name_space, pages_max, &evicted.pages), kAsks);
    return evicted;
  }
  /* The same outcomes. */
  Outcome flush(kvtrie_namespace name_space) const { return checked(table()->flush(handle_, name_space), kAsks); }

  Counters counters() const {
    Counters counters;
    must(table()->get_counters(handle_, &counters));
    return counters;
  }
  void drive_clock(std::uint32_t tick) const { must(table()->drive_clock(handle_, tick)); }

  /* kvtrie_device.h. KVTRIE_E_NOT_FOUND: the library is older than these calls. */
  std::uint64_t id() const {
    std::uint64_t id = 0;
    must(there(calls_.worker_id)(handle_, &id));
    return id;
  }
  /* KVTRIE_E_BUSY: not yet. */
  Outcome writer_over(std::uint64_t id) const {
    return checked(there(calls_.writer_over)(handle_, id), detail::bit(KVTRIE_E_BUSY));
  }
  PlaneDescriptor plane_descriptor(std::uint32_t plane) const {
    int descriptor = -1;
    must(there(calls_.plane_descriptor)(handle_, plane, &descriptor));
    return PlaneDescriptor(descriptor);
  }
  /* KVTRIE_E_NOT_NOW. */
  Outcome queue_copy(std::uint32_t page, std::uint32_t plane, std::uint64_t offset, Span<const std::byte> bytes) const {
    return checked(there(calls_.queue_copy)(handle_, page, plane, offset, bytes.data(), bytes.size()),
                   detail::bit(KVTRIE_E_NOT_NOW));
  }
  /* KVTRIE_E_TIMEOUT. Sleeps up to timeout_ms. */
  Outcome wait_copies(std::uint32_t timeout_ms) const {
    return checked(there(calls_.wait_copies)(handle_, timeout_ms), detail::bit(KVTRIE_E_TIMEOUT));
  }

  const Calls& calls() const noexcept { return calls_; }

 private:
  static constexpr std::uint32_t kAsks =
      detail::bit(KVTRIE_E_NO_COORDINATOR) | detail::bit(KVTRIE_E_REFUSED) | detail::bit(KVTRIE_E_TIMEOUT) |
      detail::bit(KVTRIE_E_STALE) | detail::bit(KVTRIE_E_NOT_FOUND);

  const kvtrie_api* table() const { return detail::opened(calls_.table); }
  template <typename Call>
  Call there(Call call) const {
    (void)table(); /* what was never attached says that */
    if (call == nullptr) throw Error(KVTRIE_E_NOT_FOUND, "kvtrie: this library has no calls of kvtrie_device.h");
    return call;
  }
  void must(kvtrie_code code) const { (void)detail::checked(calls_.table, code).code(); }
  Outcome checked(kvtrie_code code, std::uint32_t outcomes) const {
    return detail::checked(calls_.table, code, outcomes);
  }
  void take(Worker& other) noexcept {
    calls_ = other.calls_;
    page_bytes_ = other.page_bytes_;
    handle_ = std::exchange(other.handle_, kvtrie_worker{0});
  }

  Calls calls_;
  kvtrie_worker handle_{0};
  std::uint64_t page_bytes_ = 0;
};

/* Requests for one kvtrie_prepare_batch. Not thread-safe. Items may be added while prepare is not under way. */
class Batch {
 public:
  /* One more request; `tokens`, `options` and `computed_by` (room for a number for each position, or nullptr) stay
   * where they are until prepare() returned. */
  void add(kvtrie_namespace name_space, Tokens tokens, std::uint64_t total_tokens,
           const kvtrie_begin_options* options = nullptr, std::uint32_t* computed_by = nullptr) {
    kvtrie_batch_item item{};
    item.size = sizeof item;
    item.name_space = name_space;
    item.tokens = tokens.data();
    item.token_count = tokens.size();
    item.total_tokens = total_tokens;
    item.options = options;
    item.computed_by = computed_by;
    items_.push_back(item);
  }
  std::size_t size() const noexcept { return items_.size(); }
  const kvtrie_batch_item& item(std::size_t i) const { return items_.at(i); }
  /* Of item i, after prepare() answered KVTRIE_OK; may be moved out. */
  Sequence& sequence(std::size_t i) { return sequences_.at(i); }

  /* All or none. KVTRIE_E_NOT_NOW, KVTRIE_E_NEVER, KVTRIE_E_TIMEOUT, KVTRIE_E_FULL, KVTRIE_E_STALE (open the namespaces
   * again): nothing is held then. Sequences of a call before are released first. */
  Outcome prepare(const Worker& worker, const kvtrie_allocate_options* options = nullptr) {
    const kvtrie_api* const table = detail::opened(worker.calls().table);
    sequences_.clear();
    sequences_.reserve(items_.size()); /* before the call: afterwards nothing may throw */
    const Outcome outcome = detail::checked(
        table, table->prepare_batch(worker.handle(), items_.data(), items_.size(), options),
        detail::bit(KVTRIE_E_NOT_NOW) | detail::bit(KVTRIE_E_NEVER) | detail::bit(KVTRIE_E_TIMEOUT) |
            detail::bit(KVTRIE_E_FULL) | detail::bit(KVTRIE_E_STALE));
    if (!outcome) return outcome;
    for (const kvtrie_batch_item& item : items_) sequences_.emplace_back(table, item.sequence);
    return outcome;
  }

 private:
  std::vector<kvtrie_batch_item> items_;
  std::vector<Sequence> sequences_;
};

}  // namespace client
}  // namespace kvtrie

#endif
