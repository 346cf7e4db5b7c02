// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A cache in nameless memory, without processes, whose bytes tell what they are: every byte of a
// page is a function of its namespace's fields and of all tokens on its path. So whatever a save
// and a load do, contents() can say of each page that is there whether it is the right one.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/evictor.h"
#include "save/load_cache.h"
#include "save/plane_bytes.h"
#include "save/save_cache.h"
#include "shm/announce.h"
#include "shm/free_pages.h"
#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/process_identity.h"
#include "shm/verify.h"
#include "shm/worker_table.h"
#include "tests/shm/test_support.h"

namespace kvtrie::test {

using Numbers = std::vector<std::uint32_t>;

// What a page is, whatever segment it is in: "fields|token,token,...|".
using PageKey = std::string;

struct MemoryCacheOptions {
  std::uint64_t pages = 64;
  std::uint32_t tokens_per_page = 5;  // the last token word is not full
  std::uint64_t page_bytes = 24;
  std::uint32_t planes = 2;
  std::uint32_t namespaces = 3;
  ClockKind clock = ClockKind::kDriven;
  std::uint64_t hash_secret = 7;
};

class MemoryCache {
 public:
  static constexpr WorkerId kWorker{1};

  explicit MemoryCache(const MemoryCacheOptions& options = {}) {
    Geometry geometry = small_geometry(options.pages);
    geometry.tokens_per_page = options.tokens_per_page;
    geometry.page_bytes = options.page_bytes;
    geometry.planes = options.planes;
    geometry.namespaces = options.namespaces;
    const std::uint64_t bytes = layout_of(geometry).segment_bytes;
    segment_fd_ = std::move(*nameless_object(bytes));
    SegmentIdentity identity;
    identity.cache_name = "memory";
    identity.hash_secret = options.hash_secret;
    identity.clock = options.clock;
    identity.tick_ns = options.clock == ClockKind::kDriven ? 1'000'000 : 1'000'000'000;
    segment_.emplace(std::move(
        *Segment::build(std::move(*Mapping::map(segment_fd_.get(), bytes, Access::kReadWrite)),
                        geometry, identity)));
    for (std::uint32_t plane = 0; plane < options.planes; ++plane) {
      pools_.push_back(std::move(*nameless_object(pool_bytes(geometry))));
    }
    WorkerIdentity worker;
    worker.pid = static_cast<std::uint32_t>(::getpid());
    worker.start_time = *own_start_time();
    worker.name = "memory";
    const WorkerTable workers(*segment_);
    EXPECT_TRUE(workers.confirm(*workers.give(worker)));
  }

  const Segment& segment() const { return *segment_; }
  // As another process does it: a mapping is not inherited.
  Segment map_again() const {
    return std::move(*Segment::open(
        std::move(*Mapping::map(segment_fd_.get(), segment_->size_bytes(), Access::kReadOnly))));
  }
  PlaneBytes planes() const {
    std::vector<int> descriptors;
    for (const FileDescriptor& pool : pools_)
      descriptors.push_back(pool.get());
    return {std::move(descriptors), segment_->geometry().page_bytes};
  }
  void set_tick(std::uint32_t tick) const { segment_->superblock().driven_tick.store(tick); }

  NamespaceId open_namespace(const std::string& name) {
    return NamespaceTable(*segment_).open("model=" + name + "\n", name)->id;
  }

  // Publishes what is missing of a path: {1, 2} is the page of number 2
  // below that of number 1. Each call touches the last page, a tick later
  // than the call before. `last_tokens`: of an incomplete last page.
  PageIndex publish(NamespaceId id, const Numbers& path, std::uint32_t last_tokens = 0,
                    const PageNode& extra = {}) {
    set_tick(segment_->now_tick() + 1);
    Handle above = Handle::root(id, segment_->name_space(id).root_generation.load());
    std::uint64_t hash = segment_->name_space(id).hash_seed.load();
    PageIndex page{};
    for (std::uint32_t depth = 1; depth <= path.size(); ++depth) {
      std::vector<std::uint32_t> tokens(segment_->tokens_per_page());
      for (std::uint32_t i = 0; i < tokens.size(); ++i)
        tokens[i] = path[depth - 1] * 1000 + i;
      if (depth == path.size() && last_tokens != 0) tokens.resize(last_tokens);
      PageNode node = extra;
      node.parent = above;
      node.prefix_hash = hash = hash_page(hash, tokens);
      node.name_space = id;
      node.root_generation = segment_->name_space(id).root_generation.load();
      node.depth = depth;
      node.touch = TouchWord::make(segment_->now_tick(), 1, 1, 0);
      node.tick = segment_->now_tick();
      node.publisher = kWorker;
      page = enter(node, tokens);
      above = Handle::page(page, PageTable(*segment_).state(page));
    }
    segment_->descriptor(page).touch.store(TouchWord::make(segment_->now_tick(), 2, 3, 1).raw);
    return page;
  }

  // Of each Live page; tells of each that has wrong bytes.
  std::map<PageKey, PageIndex> contents() const {
    std::map<PageKey, PageIndex> found;
    for (std::uint32_t i = 0; i < segment_->page_count(); ++i) {
      if (!PageTable(*segment_).state({i}).readable()) continue;
      const PageKey key = key_of({i});
      EXPECT_TRUE(found.emplace(key, PageIndex{i}).second) << key << " is there twice";
      EXPECT_EQ(bytes_in({i}), bytes_of(key)) << "wrong bytes in " << key;
    }
    return found;
  }

  PageKey key_of(PageIndex page) const {
    std::string tokens;
    for (;;) {
      const Descriptor& d = segment_->descriptor(page);
      std::string own;
      for (std::uint32_t i = 0; i < d.token_count.load(); ++i) {
        const std::uint64_t pair = segment_->token_words(page)[i / 2].load();
        own += std::to_string(static_cast<std::uint32_t>(pair >> (i % 2 * 32))) + ",";
      }
      tokens = own + "|" + tokens;
      const Handle parent{d.parent.load()};
      if (parent.is_page()) {
        page = parent.page_index();
        continue;
      }
      const NamespaceRecord& record = segment_->name_space(parent.namespace_id());
      return std::string(record.fields, record.fields_bytes.load()) + "|" + tokens;
    }
  }

  std::string findings() const {
    std::string text;
    for (const Finding& finding : verify(*segment_, {.at_rest = true, .settle_ms = 0}).findings) {
      text += to_string(finding) + "\n";
    }
    return text;
  }

  void evict_down_to(std::uint64_t pages) const {
    const std::uint64_t live = segment_->page_count() - FreePages(*segment_).count();
    (void)Evictor(*segment_).evict(
        live - pages, [] { return false; }, [](double) {});
  }

 private:
  // The canonical page of this key: found, or written and published now.
  PageIndex enter(const PageNode& node, const std::vector<std::uint32_t>& tokens) {
    std::vector<PageIndex> taken;
    EXPECT_EQ(FreePages(*segment_).take(kWorker, 1, PageIndex{~0U}, cursor_, taken), 1U);
    const PageIndex page = taken.at(0);
    const AnnounceResult result = announce_page(*segment_, StripeIndex(*segment_), kWorker, page, node, tokens);
    if (result.outcome == AnnounceOutcome::kDuplicate) {
      FreePages(*segment_).give_back(kWorker, taken);
      return result.other.page_index();
    }
    EXPECT_EQ(result.outcome, AnnounceOutcome::kAnnounced);
    const std::string bytes = bytes_of(key_of(page));
    for (std::uint32_t plane = 0; plane < pools_.size(); ++plane) {
      const std::uint64_t count = segment_->geometry().page_bytes;
      EXPECT_TRUE(planes().write(page, plane, 0,
                                 std::as_bytes(std::span(bytes).subspan(plane * count, count))));
    }
    AtomicU64& state = segment_->descriptor(page).state;
    state.store(StateWord{state.load()}.with(PageState::kLive).raw);
    FreePages(*segment_).drop_held(kWorker, taken);
    return page;
  }

  // All planes, one after the other.
  std::string bytes_of(const PageKey& key) const {
    std::string bytes(segment_->geometry().page_bytes * pools_.size(), '\0');
    std::uint64_t word = hash_bytes(1, key.data(), key.size());
    for (char& byte : bytes) {
      byte = static_cast<char>(word >> 56);
      word = word * 6364136223846793005ULL + 1442695040888963407ULL;
    }
    return bytes;
  }
  std::string bytes_in(PageIndex page) const {
    const std::uint64_t count = segment_->geometry().page_bytes;
    std::string bytes(count * pools_.size(), '\0');
    for (std::uint32_t plane = 0; plane < pools_.size(); ++plane) {
      EXPECT_TRUE(planes().read(
          page, plane, 0, std::as_writable_bytes(std::span(bytes).subspan(plane * count, count))));
    }
    return bytes;
  }

  FileDescriptor segment_fd_;
  std::optional<Segment> segment_;
  std::vector<FileDescriptor> pools_;
  std::uint32_t cursor_ = 0;
};

// Loads into a new cache; without a value when the head is damaged, as kvtried does it.
inline std::optional<LoadReport> load_into(MemoryCache& cache, const std::string& path) {
  Result<SavedFile> file = SavedFile::open(path);
  EXPECT_TRUE(file) << file.error().what();
  if (file->head_state() != SavedFile::HeadState::kIntact) return std::nullopt;
  EXPECT_EQ(file->difference(cache.segment().geometry()), "");
  const Result<LoadReport> report =
      load_cache(*file, cache.segment(), cache.planes(), [](const LoadReport&) { return false; });
  EXPECT_TRUE(report) << report.error().what();
  return *report;
}

}  // namespace kvtrie::test
