// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A small cache to be damaged, made once a process and put back to its first bytes for each input: segment, pool and
// copy queue in nameless shared memory. Worker slots: 1 and 3 are the script's; 2 is a worker that is there and does
// nothing: it has published, announced and private pages, and leases. There are pins, a flushed page, an incomplete
// page, a Condemned page.
//
// What a path is, is told by numbers: {1, 2} is the page of number 2 below that of number 1. The bytes of a page are
// a function of the namespace and of all tokens up to each of its tokens (16 bytes a token), so a wrong page is
// always seen, and a wrong part of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "coordinator/cache_store.h"
#include "shm/copy_queue.h"
#include "shm/segment.h"
#include "worker_plugin/worker.h"

namespace kvtrie::fuzz {

inline constexpr std::uint32_t kPages = 100;  // the last chunk is not full
inline constexpr std::uint32_t kTokens = 4;
inline constexpr std::uint32_t kTokenBytes = 16;
inline constexpr std::uint32_t kPageBytes = kTokens * kTokenBytes;
inline constexpr std::uint16_t kWorkers = 4;     // slot 4 is free
inline constexpr std::uint16_t kNamespaces = 3;  // the last one is free

using Path = std::vector<std::uint32_t>;
std::vector<std::uint32_t> tokens_of(const Path& path);

// A device whose planes are the world's pool.
class PoolDevice final : public Device {
 public:
  PoolDevice(int pool, std::uint64_t bytes) : pool_(pool), bytes_(bytes) {}
  MaybeFailure make(const PlanesWanted&) override { return {}; }
  MaybeFailure publish() override { return {}; }
  MaybeFailure adopt(const PlanesWanted&) override { return {}; }
  MaybeFailure start() override { return {}; }
  std::uint32_t plane_count() const override { return 1; }
  std::uint64_t plane_bytes() const override { return bytes_; }
  int descriptor(std::uint32_t, Access) const override { return pool_; }
  bool fence(WorkerId) override { return fence_over; }
  std::string describe() const override { return {}; }

  bool fence_over = true;

 private:
  int pool_;
  std::uint64_t bytes_;
};

class World {
 public:
  // Made at the first call; stays mapped to the end of the process.
  static World& get();
  void reset();

  const Segment& segment() const { return *objects_.segment; }
  CacheObjects& objects() { return objects_; }
  PoolDevice& device() { return static_cast<PoolDevice&>(*objects_.device); }
  const CopyQueue& queue() const { return *queue_; }
  std::span<std::byte> queue_bytes() const { return queue_bytes_; }
  const Mapping& pool() const { return *pool_; }
  int segment_fd() const { return objects_.segment_writable.get(); }
  int pool_fd() const { return pool_fd_.get(); }
  std::span<std::byte> page_bytes(PageIndex page) const;
  // 0 and 1 are open.
  NamespaceRef name_space(std::uint16_t id) const { return {{id}, fields_hash_[id]}; }

  // Writes what belongs into a page at `position` of a sequence with these tokens, as far as they reach.
  void compute(std::uint16_t name_space, std::span<const std::uint32_t> tokens, std::uint32_t position,
               PageIndex page) const;
  // Whether the page holds the first `count` of its tokens' bytes.
  bool has_bytes(std::uint16_t name_space, std::span<const std::uint32_t> tokens, std::uint32_t position,
                 std::uint32_t count, PageIndex page) const;

 private:
  World();
  void fill();

  CacheObjects objects_;
  FileDescriptor pool_fd_;
  FileDescriptor queue_fd_;
  std::unique_ptr<Mapping> pool_;
  std::unique_ptr<CopyQueue> queue_;
  std::span<std::byte> queue_bytes_;
  std::vector<std::byte> blank_[3];
  std::uint64_t fields_hash_[kNamespaces] = {};
};

}  // namespace kvtrie::fuzz
