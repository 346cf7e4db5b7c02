// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/fuzz/world.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/pins.h"
#include "shm/prefix_hash.h"
#include "shm/process_identity.h"
#include "shm/worker_table.h"
#include "tests/fuzz/finding.h"

namespace kvtrie::fuzz {
namespace {

FileDescriptor make_memory(const char* name, std::uint64_t bytes) {
  FileDescriptor fd(::memfd_create(name, MFD_CLOEXEC));
  require(fd.open() && ::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0, "memfd");
  return fd;
}

Mapping map_all(int fd, std::uint64_t bytes) {
  Result<Mapping> mapping = Mapping::map(fd, bytes, Access::kReadWrite);
  require(mapping.has_value(), "map");
  return std::move(*mapping);
}

// Of the token at `index`: a function of the namespace and of all tokens up to it.
void token_bytes(std::uint16_t name_space, std::span<const std::uint32_t> tokens, std::size_t index,
                 std::byte* into) {
  const std::uint64_t hash = hash_bytes(name_space + 77U, tokens.data(), (index + 1) * sizeof tokens[0]);
  const std::uint64_t words[] = {hash, ~hash};
  static_assert(sizeof words == kTokenBytes);
  std::memcpy(into, words, sizeof words);
}

}  // namespace

std::vector<std::uint32_t> tokens_of(const Path& path) {
  std::vector<std::uint32_t> tokens;
  for (const std::uint32_t number : path) {
    for (std::uint32_t i = 0; i < kTokens; ++i)
      tokens.push_back(number * 16 + i + 1);
  }
  return tokens;
}

World& World::get() {
  static auto* const world = new World;  // never unmapped: a lock in it may be on this thread's list
  return *world;
}

World::World() {
  Geometry geometry;
  geometry.pages = kPages;
  geometry.tokens_per_page = kTokens;
  geometry.page_bytes = kPageBytes;
  geometry.workers = kWorkers;
  geometry.leases_per_worker = 8;
  geometry.namespaces = kNamespaces;
  geometry.stripes = 2;
  const std::uint64_t bytes = layout_of(geometry).segment_bytes;
  objects_.segment_writable = make_memory("kvtrie-fuzz-segment", bytes);
  pool_fd_ = make_memory("kvtrie-fuzz-pool", pool_bytes(geometry));
  queue_fd_ = make_memory("kvtrie-fuzz-queue", CopyQueue::size_bytes(geometry));
  objects_.segment_read_only = FileDescriptor(::dup(objects_.segment_writable.get()));
  objects_.device = std::make_unique<PoolDevice>(pool_fd_.get(), pool_bytes(geometry));
  SegmentIdentity identity;
  identity.cache_name = "fuzz";
  identity.hash_secret = 0x1234'5678'9ABC'DEF0ULL;
  identity.cache_id[0] = 1;
  identity.pid_namespace = *own_pid_namespace();
  const auto boot = *read_boot_id();
  std::ranges::copy(boot, identity.boot_id);
  identity.clock = ClockKind::kDriven;
  identity.tick_ns = 1'000'000;
  Result<Segment> built = Segment::build(map_all(segment_fd(), bytes), geometry, identity);
  require(built.has_value(), "build");
  objects_.segment.emplace(std::move(*built));
  pool_ = std::make_unique<Mapping>(map_all(pool_fd_.get(), pool_bytes(geometry)));
  Mapping queue = map_all(queue_fd_.get(), CopyQueue::size_bytes(geometry));
  queue_bytes_ = {queue.data(), queue.size_bytes()};
  queue_ = std::make_unique<CopyQueue>(CopyQueue::build(std::move(queue), geometry, identity.cache_id));
  fill();
  const std::span<std::byte> all[] = {
      {segment().data(), segment().size_bytes()}, {pool_->data(), pool_->size_bytes()}, queue_bytes_};
  for (std::size_t i = 0; i < 3; ++i)
    blank_[i].assign(all[i].begin(), all[i].end());
}

// Some of everything.
void World::fill() {
  Superblock& block = segment().superblock();
  block.driven_tick.store(100);
  block.coordinator_pid.store(static_cast<std::uint32_t>(::getpid()));
  block.coordinator_start_time.store(*own_start_time());
  block.coordinator_state.store(static_cast<std::uint32_t>(CoordinatorState::kServing));
  for (const char* fields : {"model=a\n", "model=b\n"}) {
    const Result<OpenNamespace> opened = NamespaceTable(segment()).open(fields, "fuzz");
    require(opened.has_value(), "namespace");
    fields_hash_[opened->id.value] = opened->fields_hash;
  }
  const WorkerTable table(segment());
  for (std::uint16_t slot = 1; slot < kWorkers; ++slot) {
    const Result<SlotGrant> grant =
        table.give({static_cast<std::uint32_t>(::getpid()), *own_start_time(), 0, WorkerRole::kWorker, "fuzz", 0});
    require(grant && table.confirm(*grant), "slot");
  }
  Worker worker(segment(), {2});
  const auto open = [&](std::uint16_t id, const Path& path, Sequence& sequence, std::size_t less = 0) {
    BeginReport report;
    std::vector<std::uint32_t> tokens = tokens_of(path);
    tokens.resize(tokens.size() - less);
    require(worker.begin(name_space(id), tokens, {}, sequence, report).ok(), "begin");
    require(worker.allocate(sequence, tokens.size(), 0).ok(), "allocate");
    for (std::uint32_t p = report.cached_pages; p < path.size(); ++p)
      compute(id, tokens, p, sequence.page_at(p));
  };
  PublishReport done;
  const auto cache = [&](std::uint16_t id, const Path& path) {
    block.driven_tick.fetch_add(1);
    Sequence sequence;
    open(id, path, sequence);
    require(worker.publish(sequence, path.size() * kTokens, done).ok(), "publish");
    worker.release(sequence);
  };
  cache(1, {1, 2});
  require(NamespaceTable(segment()).flush({1}, name_space(1).fields_hash).has_value(), "flush");
  cache(1, {1, 2, 3});
  for (const Path& path :
       {Path{1, 2, 3, 4}, Path{1, 2, 5}, Path{2, 1, 3}, Path{3, 2, 3}, Path{4}, Path{4, 5, 4, 5, 4}})
    cache(0, path);
  Sequence incomplete;
  open(0, {2, 6}, incomplete, kTokens - 2);
  require(worker.publish_incomplete(incomplete, kTokens + 2, done).ok() && done.incomplete_tokens == 2, "incomplete");
  worker.release(incomplete);
  Sequence held;
  open(0, {1, 2, 3}, held);
  Sequence half;  // one page Live, one Pending, one private
  open(0, {5, 6}, half);
  require(worker.publish(half, kTokens, done).ok() && worker.allocate(half, 3 * kTokens, 0).ok(), "half");
  // Nobody's any more: held, half live on as those of a worker that does nothing.
  const Handle pinned = held.shared.at(1);
  require(PinTable(segment()).pin(pinned, "fuzz", 0).has_value(), "pin");
  Sequence last;
  open(0, {4}, last);
  const Handle leaf = last.shared.at(0);
  worker.release(last);
  require(PageTable(segment()).move(leaf, PageState::kLive, PageState::kCondemned), "condemn");
}

void World::reset() {
  std::memcpy(segment().data(), blank_[0].data(), blank_[0].size());
  std::memcpy(pool_->data(), blank_[1].data(), blank_[1].size());
  std::memcpy(queue_bytes_.data(), blank_[2].data(), blank_[2].size());
  device().fence_over = true;
}

std::span<std::byte> World::page_bytes(PageIndex page) const {
  return {pool_->data() + std::uint64_t{page.value} * kPageBytes, kPageBytes};
}

void World::compute(std::uint16_t name_space, std::span<const std::uint32_t> tokens, std::uint32_t position,
                    PageIndex page) const {
  for (std::uint32_t i = 0; i < kTokens && position * kTokens + i < tokens.size(); ++i)
    token_bytes(name_space, tokens, position * kTokens + i, page_bytes(page).data() + i * kTokenBytes);
}

bool World::has_bytes(std::uint16_t name_space, std::span<const std::uint32_t> tokens, std::uint32_t position,
                      std::uint32_t count, PageIndex page) const {
  std::byte right[kTokenBytes];
  for (std::uint32_t i = 0; i < count; ++i) {
    token_bytes(name_space, tokens, position * kTokens + i, right);
    if (std::memcmp(right, page_bytes(page).data() + i * kTokenBytes, sizeof right) != 0) return false;
  }
  return true;
}

}  // namespace kvtrie::fuzz
