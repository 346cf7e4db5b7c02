// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/tools/kvtrie/small_cache.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>

#include "shm/announce.h"
#include "shm/free_pages.h"
#include "shm/namespace_table.h"
#include "shm/prefix_hash.h"
#include "shm/process_identity.h"
#include "shm/worker_table.h"
#include "tools/kvtrie/cli.h"

namespace kvtrie::test {
namespace {

void require(bool good, const char* what) {
  if (!good) throw std::runtime_error(what);
}

std::string unique_cache() {
  static std::atomic<unsigned> next{0};
  return "inspect-test-" + std::to_string(::getpid()) + "-" + std::to_string(next.fetch_add(1));
}

void make_object(const std::string& name, std::uint64_t bytes) {
  require(create_object(name, bytes, 0600).has_value(), "create_object");
  require(publish_object(name).ok(), "publish_object");
}

}  // namespace

SmallCache::SmallCache(const Options& options)
    : name_(unique_cache()), planes_(options.geometry.planes) {
  SegmentIdentity identity;
  identity.cache_name = name_;
  identity.cache_id[0] = 1;
  identity.hash_secret = 99;
  identity.clock = options.clock;
  identity.tick_ns = options.clock == ClockKind::kDriven ? 1'000'000 : 1'000'000'000;
  const auto boot = read_boot_id();
  const auto pid_namespace = own_pid_namespace();
  require(boot && pid_namespace, "identity of this host");
  if (options.this_boot) std::copy(boot->begin(), boot->end(), identity.boot_id);
  identity.pid_namespace = options.this_pid_namespace ? *pid_namespace : 1;
  identity.device = options.device;
  identity.page_checksums = options.page_checksums;
  const std::string object = segment_object_name(name_);
  const std::uint64_t bytes = layout_of(options.geometry).segment_bytes;
  make_object(object, bytes);
  auto fd = open_object(object, Access::kReadWrite);
  require(fd.has_value(), "open_object");
  auto mapping = Mapping::map(fd->get(), bytes, Access::kReadWrite);
  require(mapping.has_value(), "map");
  auto segment = Segment::build(std::move(*mapping), options.geometry, identity);
  require(segment.has_value(), "build");
  segment_.emplace(std::move(*segment));
  for (std::uint32_t plane = 0; plane < planes_; ++plane) {
    make_object(pool_object_name(name_, plane), pool_bytes(options.geometry));
  }
}

SmallCache::~SmallCache() {
  remove_object(segment_object_name(name_));
  for (std::uint32_t plane = 0; plane < planes_; ++plane)
    remove_object(pool_object_name(name_, plane));
}

std::string SmallCache::segment_path() const { return "/dev/shm/" + segment_object_name(name_); }

PathEnd SmallCache::open_namespace(const std::string& label) {
  const auto opened = NamespaceTable(*segment_).open("model=" + label + "\n", label);
  require(opened.has_value(), "open a namespace");
  return {opened->root(), opened->hash_seed, 0, opened->id, opened->root_generation};
}

WorkerId SmallCache::attach(const std::string& worker, std::uint32_t pid,
                            std::uint64_t start_time) {
  WorkerIdentity identity;
  identity.pid = pid == 0 ? static_cast<std::uint32_t>(::getpid()) : pid;
  const auto own = own_start_time();
  require(own.has_value(), "own start time");
  identity.start_time = pid == 0 ? *own : start_time;
  identity.name = worker;
  const WorkerTable table(*segment_);
  const auto grant = table.give(identity);
  require(grant && table.confirm(*grant), "attach");
  return grant->slot;
}

std::vector<PageIndex> SmallCache::take(WorkerId me, std::uint32_t pages) {
  std::vector<PageIndex> taken;
  require(FreePages(*segment_).take(me, pages, {cursor_}, cursor_, taken) == pages, "take pages");
  return taken;
}

std::vector<PageIndex> SmallCache::publish(WorkerId me, PathEnd& end, std::uint32_t pages,
                                           std::uint32_t first_token, PageState state) {
  const std::vector<PageIndex> taken = take(me, pages);
  for (const PageIndex page : taken) {
    std::vector<std::uint32_t> tokens(segment_->tokens_per_page());
    std::ranges::generate(tokens, [&] { return first_token++; });
    PageNode node;
    node.parent = end.handle;
    node.prefix_hash = hash_page(end.hash, tokens);
    node.name_space = end.name_space;
    node.root_generation = end.root_generation;
    node.depth = end.depth + 1;
    node.tick = segment_->now_tick();
    node.touch = TouchWord::make(node.tick, 1, 1, 0);
    node.publisher = me;
    const AnnounceResult result = announce_page(*segment_, StripeIndex(*segment_), me, page, node, tokens);
    require(result.outcome == AnnounceOutcome::kAnnounced, "announce");
    if (state != PageState::kPending) {
      auto& word = segment_->descriptor(page).state;
      word.store(StateWord{word.load()}.with(state).raw);
      FreePages(*segment_).drop_held(me, std::span(&page, 1));
    }
    end.handle = handle_of(page);
    end.hash = node.prefix_hash;
    ++end.depth;
  }
  return taken;
}

void SmallCache::lease(WorkerId me, std::uint32_t slot, Handle page, std::uint32_t request_tag) {
  WorkerRecord& record = segment_->worker(me);
  record.leases_high_water.store(std::max(record.leases_high_water.load(), slot + 1));
  LeaseSlot& lease = segment_->leases(me)[slot];
  lease.since_tick.store(segment_->now_tick());
  lease.request_tag.store(request_tag);
  lease.handle.store(page.raw);
}

Handle SmallCache::handle_of(PageIndex page) const {
  return Handle::page(page, StateWord{segment_->descriptor(page).state.load()});
}

void SmallCache::set_tick(std::uint32_t tick) const {
  segment_->superblock().driven_tick.store(tick);
}

void SmallCache::serve(std::uint32_t pid, std::uint64_t start_time) const {
  Superblock& block = segment_->superblock();
  block.coordinator_pid.store(pid);
  block.coordinator_start_time.store(start_time);
  block.coordinator_epoch.store(3);
  block.coordinator_state.store(static_cast<std::uint32_t>(CoordinatorState::kServing));
}

inspect::Outcome run_kvtrie(const std::vector<std::string>& arguments,
                            const inspect::Environment& environment) {
  std::vector<const char*> argv{"kvtrie"};
  for (const std::string& argument : arguments)
    argv.push_back(argument.c_str());
  return inspect::run_cli(static_cast<int>(argv.size()), argv.data(), environment);
}

inspect::Json run_json(std::vector<std::string> arguments,
                       const inspect::Environment& environment) {
  arguments.push_back("--json");
  return inspect::Json::parse(run_kvtrie(arguments, environment).out);
}

TemporaryDirectory::TemporaryDirectory() {
  path_ = (std::filesystem::temp_directory_path() / "kvtrie-inspect-XXXXXX").string();
  require(::mkdtemp(path_.data()) != nullptr, "mkdtemp");
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace kvtrie::test
