// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/crash/plugin_scenarios.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <utility>

#include "shm/pins.h"
#include "shm/recovery.h"
#include "shm/worker_table.h"
#include "tests/crash/world_coordinator.h"
#include "worker_plugin/kvtrie.h"
#include "worker_plugin/kvtrie_device.h"

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kWaitMs = 2;
constexpr std::uint32_t kAttachMs = 60'000;  // a stepped attach is slow

// Loaded once, before any victim is forked, so that all have it at the same place.
struct Library {
  explicit Library(const char* path) : handle(::dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (handle == nullptr) throw Violation(::dlerror());
    find(get_api, "kvtrie_get_api");
    find(worker_id, "kvtrie_worker_id");
    find(writer_over, "kvtrie_writer_over");
    find(plane_descriptor, "kvtrie_plane_descriptor");
    find(queue_copy, "kvtrie_queue_copy");
    find(wait_copies, "kvtrie_wait_copies");
    find(api_version, "kvtrie_api_version");
    api = get_api(KVTRIE_API_VERSION);
    if (api == nullptr) throw Violation("no table of calls");
  }

  template <typename Function>
  void find(Function*& function, const char* name) const {
    function = reinterpret_cast<Function*>(::dlsym(handle, name));
    if (function == nullptr) throw Violation(name);
  }

  void* handle;
  const kvtrie_api* api = nullptr;
  decltype(kvtrie_get_api)* get_api = nullptr;
  decltype(kvtrie_api_version)* api_version = nullptr;
  decltype(kvtrie_worker_id)* worker_id = nullptr;
  decltype(kvtrie_writer_over)* writer_over = nullptr;
  decltype(kvtrie_plane_descriptor)* plane_descriptor = nullptr;
  decltype(kvtrie_queue_copy)* queue_copy = nullptr;
  decltype(kvtrie_wait_copies)* wait_copies = nullptr;
};

// Of the tracer, who has the coordinator too; a victim has its copy of what it needs.
const Library* library = nullptr;
std::unique_ptr<WorldCoordinator> coordinator;

// The victim's side. Static, so that it costs no instruction to have.
struct Mine {
  kvtrie_worker worker{};
  kvtrie_namespace name_space{};
  kvtrie_sequence sequence{};
  std::array<kvtrie_sequence, 3> more{};
  std::vector<std::uint32_t> tokens;
  std::vector<std::uint64_t> hashes;
  std::array<std::uint64_t, std::size_t{3} * kWorldPageWords> memory{};
} mine;

template <typename Struct>
Struct sized() {
  Struct made{};
  made.size = sizeof made;
  return made;
}

const kvtrie_api& api() { return *library->api; }

void must(kvtrie_code code, kvtrie_code expected = KVTRIE_OK) {
  if (code != expected) throw Violation(fmt::format("{}: {}", api().code_name(code), api().last_error()));
}

void attach() {
  auto options = sized<kvtrie_attach_options>();
  options.cache = "crash";
  options.directory = socket_directory().c_str();
  options.name = "victim";
  options.timeout_ms = kAttachMs;
  must(api().attach(&options, &mine.worker));
}

void open(const char* model) {
  const kvtrie_field field{"model", model};
  must(api().open_namespace(mine.worker, &field, 1, "test", &mine.name_space));
}

void come() {
  attach();
  open("test");
}

kvtrie_begin_result begin(const Path& path, std::uint32_t flags = 0) {
  mine.tokens = tokens_of(path);
  auto options = sized<kvtrie_begin_options>();
  options.flags = flags;
  auto result = sized<kvtrie_begin_result>();
  must(api().begin(mine.worker, mine.name_space, mine.tokens.data(), mine.tokens.size(), &options, &result,
                   &mine.sequence));
  return result;
}

void allocate(std::size_t pages) { must(api().allocate(mine.sequence, pages * kWorldTokens, nullptr)); }

// What an engine does between allocate and publish.
void compute(const View& view, kvtrie_sequence of, const Path& path) {
  std::array<kvtrie_own_page, 8> own{};
  std::uint32_t count = 0;
  must(api().own_pages(of, own.data(), own.size(), &count));
  for (std::uint32_t i = 0; i < count; ++i) {
    if (own[i].state > KVTRIE_PAGE_ANNOUNCED || own[i].position >= path.size()) continue;
    compute_page(view.page_words({own[i].page}), path, own[i].position + 1);
  }
}

void prepare(const View& view, const Path& path, std::size_t spare = 0) {
  (void)begin(path);
  allocate(path.size() + spare);
  compute(view, mine.sequence, path);
}

void publish(std::size_t pages) {
  auto result = sized<kvtrie_publish_result>();
  must(api().publish(mine.sequence, pages * kWorldTokens, &result));
}

void prepare_batch() {
  static const std::array<std::vector<std::uint32_t>, 3> paths{tokens_of({1, 2, 3}), tokens_of({1, 2, 4}),
                                                               tokens_of({5})};
  std::array<kvtrie_batch_item, 3> items{};
  for (std::size_t i = 0; i < items.size(); ++i) {
    items[i] = sized<kvtrie_batch_item>();
    items[i].name_space = mine.name_space;
    items[i].tokens = paths[i].data();
    items[i].token_count = items[i].total_tokens = paths[i].size();
  }
  must(api().prepare_batch(mine.worker, items.data(), items.size(), nullptr));
  for (std::size_t i = 0; i < items.size(); ++i) mine.more[i] = items[i].sequence;
}

void hash_tokens(const Path& path) {
  mine.tokens = tokens_of(path);
  mine.hashes.resize(path.size());
  std::size_t count = 0;
  must(api().hash_tokens(mine.worker, mine.name_space, mine.tokens.data(), mine.tokens.size(), mine.hashes.data(),
                         mine.hashes.size(), &count));
  if (count != path.size()) throw Violation("hashes");
}

void queue_copy(std::uint32_t position) {
  std::uint32_t page = 0;
  must(api().get_pages(mine.sequence, position, 1, &page));
  must(library->queue_copy(mine.worker, page, 0, 0, mine.memory.data(), kWorldPageBytes));
}

void perform_copies(CrashWorld& world) {
  const WorkerId victim = kVictimSlot;
  while (world.queue().next(victim)) world.queue().finish(victim);
}

// The slot that the victim will be given is nobody's, and its coordinator listens.
void let_it_attach(CrashWorld& world, DeviceKind device) {
  coordinator.reset();  // may write
  world.reset();
  const SlotWord word = WorkerTable(world.segment()).word(kVictimSlot);
  if (!reap_slot(world.segment(), kVictimSlot, word, false)) throw Violation("the slot is not free");
  coordinator = std::make_unique<WorldCoordinator>(world, device, socket_directory());
}

void cache_12(CrashWorld& world) { world.cache(kSurvivor, {1, 2}); }

// What every scenario of the plugin has in common; `setup` comes after the coordinator.
Scenario of_plugin(Scenario made, DeviceKind device = DeviceKind::kHost) {
  made.setup = [device, setup = std::move(made.setup)](CrashWorld& world) {
    let_it_attach(world, device);
    if (setup) setup(world);
  };
  if (!made.prepare) made.prepare = [](Victim&) { come(); };
  made.serve = [] { return coordinator->serve(); };
  made.recovery = [](CrashWorld&) { coordinator->reap(kVictimSlot); };
  if (made.again.empty()) made.again = {1, 2, 3};
  for (Paths* paths : {&made.cached, &made.may_come, &made.done_come}) *paths = prefixes_of(*paths);
  return made;
}

std::vector<Scenario> constants() {
  return {
      {.name = "plugin.version",
       .operate = [](Victim&) { if (api().version_string() == nullptr) throw Violation("version"); }},
      {.name = "plugin.api_version",
       .operate = [](Victim&) { if (library->api_version() != KVTRIE_API_VERSION) throw Violation("version"); }},
      {.name = "plugin.last_error",
       .prepare =
           [](Victim&) {
             come();
             must(api().release({1}), KVTRIE_E_STALE);
           },
       .operate = [](Victim&) { if (*api().last_error() == '\0') throw Violation("no text"); }},
      {.name = "plugin.code_name",
       .operate = [](Victim&) { if (api().code_name(KVTRIE_E_BUSY) == nullptr) throw Violation("no name"); }},
      {.name = "plugin.get_api",
       .operate = [](Victim&) { if (library->get_api(1) == nullptr) throw Violation("no table"); }},
  };
}

std::vector<Scenario> of_workers() {
  return {
      {.name = "plugin.attach", .prepare = [](Victim&) {}, .operate = [](Victim&) { attach(); }},
      {.name = "plugin.detach",
       .prepare =
           [](Victim& v) {
             come();
             prepare(v.view, {1, 2});
             publish(1);
             prepare(v.view, {5, 6}, 1);
           },
       .operate = [](Victim&) { must(api().detach(mine.worker)); },
       .cached = {{1}}},
      {.name = "plugin.get_geometry",
       .operate =
           [](Victim&) {
             auto geometry = sized<kvtrie_geometry>();
             must(api().get_geometry(mine.worker, &geometry));
           }},
      {.name = "plugin.open_namespace", .prepare = [](Victim&) { attach(); }, .operate = [](Victim&) { open("test"); }},
      {.name = "plugin.open_namespace.new",  // the coordinator makes it
       .prepare = [](Victim&) { attach(); },
       .operate = [](Victim&) { open("other"); }},
      {.name = "plugin.get_counters",
       .operate =
           [](Victim&) {
             auto counters = sized<kvtrie_counters>();
             must(api().get_counters(mine.worker, &counters));
           }},
      {.name = "plugin.drive_clock", .operate = [](Victim&) { must(api().drive_clock(mine.worker, 100)); }},
      {.name = "plugin.worker_id",
       .operate =
           [](Victim&) {
             std::uint64_t id = 0;
             must(library->worker_id(mine.worker, &id));
           }},
      {.name = "plugin.writer_over",
       .operate = [](Victim&) { must(library->writer_over(mine.worker, WorkerTag::of({kSpareSlot, 1}).raw)); },
       .again = {1}},
      {.name = "plugin.plane_descriptor",
       .operate =
           [](Victim&) {
             int descriptor = -1;
             must(library->plane_descriptor(mine.worker, 0, &descriptor), KVTRIE_E_INVALID);  // no CUDA
           }},
      {.name = "plugin.page_address",
       .operate =
           [](Victim&) {
             void* address = nullptr;
             must(api().page_address(mine.worker, 7, 0, &address));
           }},
      {.name = "plugin.evict",
       .setup = cache_12,
       .operate =
           [](Victim&) {
             std::uint64_t evicted = 0;
             must(api().evict(mine.worker, mine.name_space, 1, &evicted));
             if (evicted != 1) throw Violation("evicted");
           },
       .cached = {{1, 2}},
       .may_go = {{1, 2}},
       .done_go = {{1, 2}}},
      {.name = "plugin.flush",
       .setup = cache_12,
       .operate = [](Victim&) { must(api().flush(mine.worker, mine.name_space)); },
       .cached = {{1, 2}},
       .may_go = {{1, 2}, {1}},
       .again = {3},
       .recovered = [](CrashWorld&) { coordinator->turn(); }},
  };
}

std::vector<Scenario> of_looks() {
  const auto come_and_hash = [](Victim&) {
    come();
    hash_tokens({1, 2, 3});
  };
  return {
      {.name = "plugin.probe",
       .setup = cache_12,
       .prepare =
           [](Victim&) {
             come();
             mine.tokens = tokens_of({1, 2, 3});
           },
       .operate =
           [](Victim&) {
             auto result = sized<kvtrie_probe_result>();
             must(api().probe(mine.worker, mine.name_space, mine.tokens.data(), mine.tokens.size(), &result));
             if (result.cached_pages != 2) throw Violation("probe");
           },
       .cached = {{1, 2}}},
      {.name = "plugin.hash_tokens", .operate = [](Victim&) { hash_tokens({1, 2, 3}); }},
      {.name = "plugin.probe_hashes",
       .setup = cache_12,
       .prepare = come_and_hash,
       .operate =
           [](Victim&) {
             auto result = sized<kvtrie_probe_result>();
             must(api().probe_hashes(mine.worker, mine.name_space, mine.hashes.data(), mine.hashes.size(), &result));
             if (result.cached_pages != 2) throw Violation("probe");
           },
       .cached = {{1, 2}}},
  };
}

std::vector<Scenario> of_requests() {
  const auto prepared_12 = [](Victim& v) {
    come();
    prepare(v.view, {1, 2}, 1);
  };
  return {
      {.name = "plugin.begin",
       .setup = cache_12,
       .operate = [](Victim&) { if (begin({1, 2, 3}).cached_pages != 2) throw Violation("begin"); },
       .cached = {{1, 2}}},
      {.name = "plugin.begin.partial",
       .setup = [](CrashWorld& w) { w.cache(kSurvivor, {1, half(2)}); },
       .operate = [](Victim&) { if (begin({1, 2}, KVTRIE_PARTIAL).partial_tokens == 0) throw Violation("begin"); },
       .cached = {{1, half(2)}}},
      {.name = "plugin.prepare_batch",
       .setup = [](CrashWorld& w) { w.cache(kSurvivor, {1}); },
       .operate = [](Victim&) { prepare_batch(); },
       .cached = {{1}}},
      {.name = "plugin.wait_pending",
       .setup = [](CrashWorld& w) { w.open(kSurvivor, {1, 2}); },
       .prepare =
           [](Victim&) {
             come();
             (void)begin({1, 2, 3});
           },
       .meanwhile =
           [](CrashWorld& w) {
             OpenSequence& open = w.opened().front();
             (void)w.engine(kSurvivor).publish(open.sequence, 2);
             w.engine(kSurvivor).release(open.sequence);
             w.opened().clear();
           },
       .operate =
           [](Victim&) {
             auto result = sized<kvtrie_begin_result>();
             must(api().wait_pending(mine.sequence, 0, &result));
             if (result.cached_pages != 2) throw Violation("wait");
           },
       .cached = {{1, 2}}},
      {.name = "plugin.allocate",
       .setup = cache_12,
       .prepare =
           [](Victim&) {
             come();
             (void)begin({1, 2, 3, 4});
           },
       .operate = [](Victim&) { allocate(5); },
       .cached = {{1, 2}}},
      {.name = "plugin.allocate.partial",  // with the copy
       .setup = [](CrashWorld& w) { w.cache(kSurvivor, {1, half(2)}); },
       .prepare =
           [](Victim&) {
             come();
             (void)begin({1, 2}, KVTRIE_PARTIAL);
           },
       .operate = [](Victim&) { allocate(2); },
       .cached = {{1, half(2)}}},
      {.name = "plugin.append",
       .prepare = prepared_12,
       .operate = [](Victim&) { must(api().append(mine.sequence, mine.tokens.data(), kWorldTokens)); }},
      {.name = "plugin.fork",
       .prepare =
           [prepared_12](Victim& v) {
             prepared_12(v);
             publish(1);
           },
       .operate = [](Victim&) { must(api().fork_sequence(mine.sequence, nullptr, &mine.more[0])); },
       .cached = {{1}}},
      {.name = "plugin.give_back",
       .prepare = prepared_12,
       .operate = [](Victim&) { must(api().give_back(mine.sequence, 1, 2)); }},
      {.name = "plugin.publish",
       .prepare = prepared_12,
       .operate = [](Victim&) { publish(2); },
       .may_come = {{1, 2}},
       .done_come = {{1, 2}}},
      {.name = "plugin.publish_incomplete",
       .prepare =
           [](Victim& v) {
             come();
             prepare(v.view, {1, half(2)});
           },
       .operate =
           [](Victim&) {
             auto result = sized<kvtrie_publish_result>();
             must(api().publish_incomplete(mine.sequence, mine.tokens.size(), &result));
           },
       .may_come = {{1, half(2)}},
       .done_come = {{1, half(2)}}},
      {.name = "plugin.release",
       .prepare =
           [prepared_12](Victim& v) {
             prepared_12(v);
             publish(1);
           },
       .operate = [](Victim&) { must(api().release(mine.sequence)); },
       .cached = {{1}}},
      {.name = "plugin.get_pages",
       .prepare = prepared_12,
       .operate =
           [](Victim&) {
             std::array<std::uint32_t, 3> pages{};
             must(api().get_pages(mine.sequence, 0, pages.size(), pages.data()));
           }},
      {.name = "plugin.page_count",
       .prepare = prepared_12,
       .operate =
           [](Victim&) {
             std::uint32_t count = 0;
             must(api().page_count(mine.sequence, &count));
           }},
      {.name = "plugin.own_pages",
       .prepare = prepared_12,
       .operate =
           [](Victim&) {
             std::array<kvtrie_own_page, 3> own{};
             std::uint32_t count = 0;
             must(api().own_pages(mine.sequence, own.data(), own.size(), &count));
           }},
      {.name = "plugin.copy_in",
       .prepare = prepared_12,
       .operate =
           [](Victim&) { must(api().copy_in(mine.sequence, 0, 2 * kWorldTokens, 0, nullptr, mine.memory.data())); }},
      {.name = "plugin.copy_out",
       .prepare = prepared_12,
       .operate =
           [](Victim&) { must(api().copy_out(mine.sequence, 0, 2 * kWorldTokens, 0, nullptr, mine.memory.data())); }},
  };
}

std::vector<Scenario> of_queued_devices() {
  const auto with_pages = [](Victim& v) {
    come();
    prepare(v.view, {1, 2});
  };
  return {
      {.name = "plugin.queue_copy",
       .prepare = with_pages,
       .operate =
           [](Victim&) {
             queue_copy(0);
             queue_copy(1);
           },
       .fence = perform_copies},
      {.name = "plugin.wait_copies",
       .prepare =
           [with_pages](Victim& v) {
             with_pages(v);
             queue_copy(0);
           },
       .operate = [](Victim&) { must(library->wait_copies(mine.worker, kWaitMs), KVTRIE_E_TIMEOUT); },
       .sleeps = true,
       .fence = perform_copies},
  };
}

}  // namespace

std::vector<Scenario> plugin_scenarios(const char* plugin) {
  static const Library loaded(plugin);
  library = &loaded;
  std::vector<Scenario> all;
  for (std::vector<Scenario> part : {constants(), of_workers(), of_looks(), of_requests()}) {
    for (Scenario& one : part) all.push_back(of_plugin(std::move(one)));
  }
  for (Scenario& one : of_queued_devices()) all.push_back(of_plugin(std::move(one), DeviceKind::kQueued));
  return all;
}

}  // namespace kvtrie::test
