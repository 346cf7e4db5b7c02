// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The processes of a tensor-parallel engine, through kvtrie.h: a scheduler that allocates and publishes, ranks that fill
// a plane each. The engine's own channel between them is a shared page (ids, page indices) and a pipe for each rank's
// report, whose end is the news of the rank's death.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "tests/shm/test_support.h"
#include "tests/support/eventually.h"
#include "tests/support/temporary_cache.h"
#include "worker_plugin/kvtrie_device.h"

namespace kvtrie::test {

inline constexpr std::uint32_t kRanks = 2;
inline constexpr std::uint32_t kRankPages = 4;
inline constexpr std::uint32_t kRankTokens = 16;  // of a page

// What byte a rank fills its plane of a page with.
inline unsigned char rank_byte(std::uint32_t rank, std::uint32_t position) {
  return static_cast<unsigned char>(0x10 * (rank + 1) + position);
}

class RankProcesses {
 public:
  explicit RankProcesses(const TemporaryCache& cache) : cache_(cache) {
    void* const shared = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    board_ = new (shared) Board;
    for (auto& report : reports_) {
      int ends[2] = {-1, -1};
      if (::pipe2(ends, O_CLOEXEC) != 0) return;
      report = {FileDescriptor(ends[0]), FileDescriptor(ends[1])};
    }
  }
  ~RankProcesses() { ::munmap(board_, 4096); }
  RankProcesses(const RankProcesses&) = delete;
  RankProcesses& operator=(const RankProcesses&) = delete;

  kvtrie_worker attach(std::uint32_t role, std::uint64_t plane_mask, std::uint64_t scheduler) const {
    kvtrie_attach_options options{};
    options.size = sizeof options;
    options.cache = cache_.name().c_str();
    options.directory = cache_.directory().c_str();
    options.name = role == KVTRIE_ROLE_WORKER ? "scheduler" : "rank";
    options.role = role;
    options.plane_mask = plane_mask;
    options.scheduler = scheduler;
    kvtrie_worker worker{0};
    (void)kvtrie_attach(&options, &worker);
    return worker;
  }

  // Body of the scheduler's process. Says 'a' when the pages are there; publishes after every rank reported and says
  // 'p'; after a rank's death gives the pages back once that rank is over, and says 'r'. Then waits to be told to end.
  int schedule(Line line) {
    for (auto& report : reports_) report.write = {};
    const kvtrie_worker worker = attach(KVTRIE_ROLE_WORKER, 0, 0);
    std::uint64_t id = 0;
    if (kvtrie_worker_id(worker, &id) != KVTRIE_OK) return 10;
    kvtrie_field fields[] = {{"model", "m"}};
    kvtrie_namespace space{0};
    if (kvtrie_open_namespace(worker, fields, 1, "m", &space) != KVTRIE_OK) return 11;
    std::array<std::uint32_t, kRankPages * kRankTokens> tokens{};
    std::iota(tokens.begin(), tokens.end(), 1U);
    kvtrie_begin_result begun{};
    begun.size = sizeof begun;
    kvtrie_sequence sequence{0};
    if (kvtrie_begin(worker, space, tokens.data(), tokens.size(), nullptr, &begun, &sequence) != KVTRIE_OK) return 12;
    if (kvtrie_allocate(sequence, tokens.size(), nullptr) != KVTRIE_OK) return 13;
    if (kvtrie_get_pages(sequence, 0, kRankPages, board_->pages) != KVTRIE_OK) return 14;
    board_->scheduler.store(id);
    line.say('a');
    for (std::uint32_t rank = 0; rank < kRanks; ++rank) {
      if (reported(rank)) continue;
      // Dead. Its slot is over when nothing of it can write any more.
      if (!eventually([&] { return kvtrie_writer_over(worker, board_->ranks[rank].load()) == KVTRIE_OK; })) return 15;
      if (kvtrie_release(sequence) != KVTRIE_OK) return 16;
      line.say('r');
      return line.hear() == '+' && kvtrie_detach(worker) == KVTRIE_OK ? 0 : 17;
    }
    kvtrie_publish_result published{};
    published.size = sizeof published;
    if (kvtrie_publish(sequence, tokens.size(), &published) != KVTRIE_OK) return 18;
    if (published.pages_published != kRankPages) return 19;
    line.say('p');
    return line.hear() == '+' && kvtrie_release(sequence) == KVTRIE_OK && kvtrie_detach(worker) == KVTRIE_OK ? 0 : 20;
  }

  // Body of a rank's process. Attaches to the scheduler and says 'a'; told '+', writes its plane of all pages, of
  // `stops_at` of them if that is fewer: then says 'h' and waits. Reports to the scheduler, says 'w', waits, detaches.
  int write_plane(std::uint32_t rank, Line line, std::uint32_t stops_at = kRankPages) {
    for (std::uint32_t other = 0; other < kRanks; ++other) {
      reports_[other].read = {};
      if (other != rank) reports_[other].write = {};
    }
    ::signal(SIGPIPE, SIG_IGN);
    if (!eventually([&] { return board_->scheduler.load() != 0; })) return 30;
    const kvtrie_worker worker = attach(KVTRIE_ROLE_PLANE_WRITER, std::uint64_t{1} << rank, board_->scheduler.load());
    std::uint64_t id = 0;
    if (kvtrie_worker_id(worker, &id) != KVTRIE_OK) return 31;
    board_->ranks[rank].store(id);
    line.say('a');
    if (line.hear() != '+') return 32;
    for (std::uint32_t i = 0; i < kRankPages; ++i) {
      if (i == stops_at) {
        line.say('h');
        if (line.hear() != '+') return 33;
      }
      void* address = nullptr;
      if (kvtrie_page_address(worker, board_->pages[i], rank, &address) != KVTRIE_OK) return 34;
      std::memset(address, rank_byte(rank, i), 1024);
    }
    const char done = 'w';  // to a scheduler that died meanwhile, too
    if (::write(reports_[rank].write.get(), &done, 1) != 1 && errno != EPIPE) return 35;
    line.say('w');
    return line.hear() == '+' && kvtrie_detach(worker) == KVTRIE_OK ? 0 : 36;
  }

  // In the test's own process, once all are forked: or no pipe would ever end.
  void close_reports() {
    for (auto& report : reports_) report = {};
  }
  std::uint64_t scheduler_id() const { return board_->scheduler.load(); }
  std::uint64_t rank_id(std::uint32_t rank) const { return board_->ranks[rank].load(); }
  const std::uint32_t* pages() const { return board_->pages; }

 private:
  struct Board {
    std::atomic<std::uint64_t> scheduler{0};
    std::atomic<std::uint64_t> ranks[kRanks] = {};
    std::uint32_t pages[kRankPages] = {};
  };
  struct Report {
    FileDescriptor read;
    FileDescriptor write;
  };

  bool reported(std::uint32_t rank) const {
    pollfd waited{reports_[rank].read.get(), POLLIN, 0};
    char what = 0;
    return ::poll(&waited, 1, kChildWaitMs) == 1 && ::read(waited.fd, &what, 1) == 1 && what == 'w';
  }

  const TemporaryCache& cache_;
  Board* board_ = nullptr;
  std::array<Report, kRanks> reports_;
};

}  // namespace kvtrie::test
