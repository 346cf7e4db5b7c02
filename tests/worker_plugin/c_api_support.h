// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie.h's calls on a cache without a coordinator process: segment and pools in nameless memory,
// slots, namespaces, eviction and reaping done by the test as the coordinator would.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/room_keeper.h"
#include "shm/namespace_table.h"
#include "shm/recovery.h"
#include "shm/segment.h"
#include "shm/worker_table.h"
#include "worker_plugin/c_api.h"
#include "worker_plugin/kvtrie.h"

namespace kvtrie::test {

using Tokens = std::vector<std::uint32_t>;
using Fields = std::map<std::string, std::string>;

inline constexpr std::uint32_t kPageTokens = 4;

struct TestCacheOptions {
  std::uint32_t pages = 64;
  std::uint64_t page_bytes = 64;
  std::uint32_t planes = 2;
  std::uint32_t workers = 4;
  std::uint32_t leases = 64;
  std::uint32_t namespaces = 4;
  ClockKind clock = ClockKind::kDriven;
  bool page_checksums = false;
};

class TestCache {
 public:
  explicit TestCache(const TestCacheOptions& options = {}, std::string name = "unit")
      : name_(std::move(name)) {
    Geometry geometry;
    geometry.pages = options.pages;
    geometry.tokens_per_page = kPageTokens;
    geometry.page_bytes = options.page_bytes;
    geometry.planes = options.planes;
    geometry.workers = options.workers;
    geometry.leases_per_worker = options.leases;
    geometry.namespaces = options.namespaces;
    geometry.stripes = 4;
    segment_bytes_ = layout_of(geometry).segment_bytes;
    segment_fd_ = nameless(segment_bytes_);
    for (std::uint32_t plane = 0; plane < options.planes; ++plane) {
      pool_fds_.push_back(nameless(pool_bytes(geometry)));
    }
    SegmentIdentity identity;
    identity.cache_name = name_;
    identity.cache_id[0] = static_cast<std::uint64_t>(segment_fd_.get());
    identity.hash_secret = 0x5eed'5eed'5eed'5eedULL;
    identity.clock = options.clock;
    identity.tick_ns = 1'000'000;
    identity.page_checksums = options.page_checksums;
    Result<Mapping> mapping = Mapping::map(segment_fd_.get(), segment_bytes_, Access::kReadWrite);
    if (!mapping) std::abort();
    Result<Segment> built = Segment::build(std::move(*mapping), geometry, identity);
    if (!built) std::abort();
    segment_ = std::make_unique<Segment>(std::move(*built));
    namespaces_ = std::make_unique<NamespaceTable>(*segment_);
  }

  const Segment& segment() const { return *segment_; }
  const std::string& name() const { return name_; }

  // What the coordinator's answer to attach would be. Slot 0: the table is full.
  Attachment grant() const {
    Attachment grant;
    WorkerIdentity identity;
    identity.pid = static_cast<std::uint32_t>(::getpid());
    identity.start_time = 1;
    const Result<SlotGrant> given = WorkerTable(*segment_).give(identity);
    if (given) grant.grant = *given;
    grant.segment = FileDescriptor(::dup(segment_fd_.get()));
    for (const FileDescriptor& pool : pool_fds_) {
      grant.pools.emplace_back(FileDescriptor(::dup(pool.get())));
    }
    grant.segment_bytes = segment_bytes_;
    grant.pool_bytes = pool_bytes(segment_->geometry());
    grant.cache_id[0] = segment_->superblock().cache_id[0];
    grant.cache_id[1] = segment_->superblock().cache_id[1];
    return grant;
  }

  kvtrie_worker attach() const {
    kvtrie_worker worker{0};
    EXPECT_EQ(attach_from_grant(grant(), address(), &worker), KVTRIE_OK) << kvtrie_last_error();
    return worker;
  }
  // Of no coordinator: nobody answers there.
  CoordinatorAddress address() const { return {"/nonexistent", name_, 100}; }

  // As the coordinator does when it is asked.
  void make_namespace(const Fields& fields) {
    std::vector<NamespaceField> pairs(fields.begin(), fields.end());
    const Result<std::string> text = canonical_fields(pairs);
    EXPECT_TRUE(text && namespaces_->open(*text, "test"));
  }
  kvtrie_namespace open(kvtrie_worker worker, const Fields& fields) {
    make_namespace(fields);
    kvtrie_namespace name_space{0};
    std::vector<kvtrie_field> list;
    for (const auto& [key, value] : fields)
      list.push_back({key.c_str(), value.c_str()});
    EXPECT_EQ(kvtrie_open_namespace(worker, list.data(), list.size(), nullptr, &name_space),
              KVTRIE_OK)
        << kvtrie_last_error();
    return name_space;
  }

  // What the coordinator does about slots that were left. Returns how many.
  std::uint32_t reap_leavers() const {
    const WorkerTable table(*segment_);
    std::uint32_t reaped = 0;
    for (std::uint16_t i = 1; i < segment_->slot_count(); ++i) {
      const SlotWord word = table.word({i});
      if (word.state() != SlotState::kLeaving || !table.begin_reap({i}, word)) continue;
      reap_worker(*segment_, {i});
      table.finish_reap({i});
      ++reaped;
    }
    return reaped;
  }
  std::uint64_t count(PageState state) const {
    std::uint64_t found = 0;
    for (std::uint32_t i = 0; i < segment_->page_count(); ++i) {
      found += StateWord{segment_->descriptor({i}).state.load()}.state() == state ? 1 : 0;
    }
    return found;
  }
  // Leases that stand in slots of all workers.
  std::uint64_t leases() const {
    std::uint64_t found = 0;
    for (std::uint16_t i = 1; i < segment_->slot_count(); ++i) {
      for (const LeaseSlot& lease : segment_->leases({i}))
        found += lease.handle.load() != 0 ? 1 : 0;
    }
    return found;
  }

 private:
  static FileDescriptor nameless(std::uint64_t bytes) {
    FileDescriptor fd(::memfd_create("kvtrie-test", MFD_CLOEXEC));
    if (!fd.open() || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) std::abort();
    return fd;
  }

  std::string name_;
  std::uint64_t segment_bytes_ = 0;
  FileDescriptor segment_fd_;
  std::vector<FileDescriptor> pool_fds_;
  std::unique_ptr<Segment> segment_;
  std::unique_ptr<NamespaceTable> namespaces_;
};

template <typename T>
T sized() {
  T value{};
  value.size = sizeof value;
  return value;
}

// Tokens of the pages with these names.
inline Tokens path(const std::vector<std::uint32_t>& pages) {
  Tokens tokens;
  for (const std::uint32_t page : pages) {
    for (std::uint32_t i = 0; i < kPageTokens; ++i)
      tokens.push_back(page * 1000 + i);
  }
  return tokens;
}

struct Begun {
  kvtrie_code code;
  kvtrie_sequence sequence;
  kvtrie_begin_result result;
};

inline Begun begin(kvtrie_worker worker, kvtrie_namespace name_space, const Tokens& tokens,
                   std::uint32_t flags = 0) {
  Begun begun{KVTRIE_OK, {0}, sized<kvtrie_begin_result>()};
  auto options = sized<kvtrie_begin_options>();
  options.flags = flags;
  begun.code = kvtrie_begin(worker, name_space, tokens.data(), tokens.size(), &options,
                            &begun.result, &begun.sequence);
  return begun;
}

// Pages of `tokens` that a begin finds now.
inline std::uint32_t hits(kvtrie_worker worker, kvtrie_namespace name_space, const Tokens& tokens) {
  const Begun begun = begin(worker, name_space, tokens);
  EXPECT_EQ(begun.code, KVTRIE_OK) << kvtrie_last_error();
  EXPECT_EQ(kvtrie_release(begun.sequence), KVTRIE_OK) << kvtrie_last_error();
  return begun.result.cached_pages;
}

// Begins, allocates and publishes all of `tokens`; the sequence stays open.
inline kvtrie_sequence cache(kvtrie_worker worker, kvtrie_namespace name_space,
                             const Tokens& tokens) {
  const Begun begun = begin(worker, name_space, tokens);
  EXPECT_EQ(begun.code, KVTRIE_OK) << kvtrie_last_error();
  EXPECT_EQ(kvtrie_allocate(begun.sequence, tokens.size(), nullptr), KVTRIE_OK)
      << kvtrie_last_error();
  EXPECT_EQ(kvtrie_publish(begun.sequence, tokens.size(), nullptr), KVTRIE_OK)
      << kvtrie_last_error();
  return begun.sequence;
}

inline bool last_error_has(const std::string& part) {
  return std::string(kvtrie_last_error()).find(part) != std::string::npos;
}

// One attached worker with one namespace; detached at the end.
class CApiTest : public ::testing::Test {
 protected:
  explicit CApiTest(const TestCacheOptions& options = {}) : cache_(options) {}
  void TearDown() override {
    const kvtrie_code code = kvtrie_detach(worker_);
    EXPECT_TRUE(code == KVTRIE_OK || code == KVTRIE_E_STALE) << kvtrie_last_error();
  }

  TestCache cache_;
  kvtrie_worker worker_ = cache_.attach();
  kvtrie_namespace space_ = cache_.open(worker_, {{"model", "a"}});
};

}  // namespace kvtrie::test
