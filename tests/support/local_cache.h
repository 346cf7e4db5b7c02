// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A cache without a coordinator process, for tests of the protocol: a segment in anonymous shared memory (so a
// forked child that maps it shares it), worker slots activated by hand, and an evictor to call.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "coordinator/evictor.h"
#include "coordinator/room_keeper.h"
#include "shm/prefix_hash.h"
#include "shm/segment.h"
#include "worker_plugin/worker.h"

namespace kvtrie::test {

struct LocalCacheOptions {
  std::uint32_t pages = 64;
  std::uint32_t tokens_per_page = 4;
  std::uint32_t workers = 4;
  std::uint32_t leases = 64;
  std::uint32_t namespaces = 4;
  std::uint32_t stripes = 4;
  double low_percent = 0;
  double high_percent = 0;
};

class LocalCache {
 public:
  explicit LocalCache(const LocalCacheOptions& options) : options_(options) {
    Geometry geometry;
    geometry.pages = options.pages;
    geometry.tokens_per_page = options.tokens_per_page;
    geometry.page_bytes = 64;
    geometry.workers = options.workers;
    geometry.leases_per_worker = options.leases;
    geometry.namespaces = options.namespaces;
    geometry.stripes = options.stripes;
    const std::uint64_t bytes = layout_of(geometry).segment_bytes;
    fd_ = FileDescriptor(::memfd_create("kvtrie-test", MFD_CLOEXEC));
    if (!fd_.open() || ::ftruncate(fd_.get(), static_cast<off_t>(bytes)) != 0) std::abort();
    Result<Mapping> mapping = Mapping::map(fd_.get(), bytes, Access::kReadWrite);
    if (!mapping) std::abort();
    SegmentIdentity identity;
    identity.cache_name = "test";
    identity.hash_secret = 0x1234'5678'9ABC'DEF0ULL;
    identity.clock = ClockKind::kDriven;
    identity.tick_ns = 1'000'000;
    Result<Segment> built = Segment::build(std::move(*mapping), geometry, identity);
    if (!built) std::abort();
    segment_ = std::make_unique<Segment>(std::move(*built));
    for (std::uint16_t id = 0; id < options.namespaces; ++id) {
      NamespaceRecord& record = segment_->name_space({id});
      record.hash_seed.store(hash_bytes(identity.hash_secret, &id, sizeof id));
      record.fields_hash.store(id + 100U);
      record.root_generation.store(1);
      record.state.store(static_cast<std::uint32_t>(NamespaceState::kOpen));
    }
    for (std::uint16_t slot = 1; slot <= options.workers; ++slot) activate({slot});
    keeper_ = std::make_unique<RoomKeeper>(
        *segment_, Watermarks{options.low_percent, options.high_percent});
  }

  const Segment& segment() const { return *segment_; }
  int fd() const { return fd_.get(); }
  RoomKeeper& keeper() { return *keeper_; }
  std::unique_ptr<Worker> worker(std::uint16_t slot) const {
    return std::make_unique<Worker>(*segment_, WorkerId{slot});
  }
  static NamespaceRef name_space(std::uint16_t id = 0) { return {{id}, id + 100U}; }

  void set_tick(std::uint32_t tick) { segment_->superblock().driven_tick.store(tick); }

  // The same segment mapped again, as another process would.
  std::unique_ptr<Segment> map_again(Access access = Access::kReadWrite) const {
    Result<Mapping> mapping = Mapping::map(fd_.get(), segment_->size_bytes(), access);
    if (!mapping) std::abort();
    Result<Segment> opened = Segment::open(std::move(*mapping));
    if (!opened) std::abort();
    return std::make_unique<Segment>(std::move(*opened));
  }

  void activate(WorkerId slot) {
    WorkerRecord& record = segment_->worker(slot);
    record.pid.store(static_cast<std::uint32_t>(::getpid()));
    record.start_time.store(1);
    record.slot_state.store(static_cast<std::uint64_t>(SlotState::kActive) | 1U << 8);
  }

  std::uint64_t count_state(PageState state) const {
    std::uint64_t count = 0;
    for (std::uint32_t i = 0; i < segment_->page_count(); ++i) {
      count += StateWord{segment_->descriptor({i}).state.load()}.state() == state ? 1 : 0;
    }
    return count;
  }

  std::uint64_t evict(std::uint64_t wanted) {
    Evictor evictor(*segment_);
    return evictor.evict(wanted, [] { return false; }, [](double) {}).evicted;
  }

 private:
  LocalCacheOptions options_;
  FileDescriptor fd_;
  std::unique_ptr<Segment> segment_;
  std::unique_ptr<RoomKeeper> keeper_;
};

// Page-sized runs of tokens: path(4, {1, 2}) is two pages, all tokens of a page derived from its number.
inline std::vector<std::uint32_t> path(std::uint32_t tokens_per_page,
                                       const std::vector<std::uint32_t>& pages) {
  std::vector<std::uint32_t> tokens;
  for (const std::uint32_t page : pages) {
    for (std::uint32_t i = 0; i < tokens_per_page; ++i) tokens.push_back(page * 1000 + i);
  }
  return tokens;
}

}  // namespace kvtrie::test
