// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/concurrency/support/history_run.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <random>
#include <type_traits>
#include <vector>

#include "shm/crash_point.h"
#include "shm/free_pages.h"
#include "tests/support/local_cache.h"

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kTokens = 4;
constexpr std::uint32_t kOpenMax = 2;     // sequences of a worker
constexpr std::uint32_t kEvictsMax = 600;
constexpr std::uint32_t kRecordsMax = std::max(kHistoryCalls + kOpenMax, kEvictsMax);
constexpr int kRunMs = 10'000;
static_assert(std::is_trivially_copyable_v<Operation>, "written by other processes");

// In memory that all processes of a run map.
struct Board {
  std::atomic<std::uint32_t> here{0};
  std::atomic<std::uint32_t> ended{0};
  std::array<std::atomic<std::uint64_t>, kHistoryPages> bytes{};  // a page's: the key of its path
  std::array<std::atomic<std::uint32_t>, kHistoryWorkers + 1> recorded{};
  std::array<std::array<Operation, kRecordsMax>, kHistoryWorkers + 1> operations{};
};

std::minstd_rand random_here;  // of this process
std::uint32_t below(std::uint32_t bound) { return static_cast<std::uint32_t>(random_here() % bound); }

// Lets others run: those on another processor, and now and then those that wait for this one. (Not by sched_yield:
// beside a busy process that gives a whole slice away.)
void give_way_for(std::uint32_t turns) {
  for (std::uint32_t i = below(turns); i > 0; --i) std::atomic_signal_fence(std::memory_order_seq_cst);
}
void sleep_a_moment() {
  const timespec moment{0, 1};  // some ten microseconds
  ::nanosleep(&moment, nullptr);
}

#ifdef KVTRIE_DEV
void give_way(const char* /*place*/) {
  const std::uint32_t what = below(64);
  if (what < 8) give_way_for(2'000);
  if (what >= 62) sleep_a_moment();
}
#endif

// Why the fences: the stamp of an invocation is stored, and with it the clock read, before the call's first load may
// run; and what the call stored is out of the store buffer, so seen by all, before the clock of its response is
// read. So a call is never taken to be later, or over earlier, than it was.
class Stamped {
 public:
  Stamped(Board& board, std::uint32_t process, Call call)
      : board_(board), process_(process), index_(board.recorded[process].load(std::memory_order_relaxed)) {
    record() = {};
    record().call = call;
    record().process = static_cast<std::uint8_t>(process);
    reinterpret_cast<volatile std::uint64_t&>(record().invoked) = now();
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  ~Stamped() { board_.recorded[process_].store(index_ + 1, std::memory_order_release); }
  Stamped(const Stamped&) = delete;
  Stamped& operator=(const Stamped&) = delete;

  void responded() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    record().responded = now();
  }
  Operation& record() { return board_.operations[process_][index_]; }

 private:
  static std::uint64_t now() {
    timespec read{};
    ::clock_gettime(CLOCK_MONOTONIC, &read);
    return static_cast<std::uint64_t>(read.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(read.tv_nsec);
  }
  Board& board_;
  std::uint32_t process_;
  std::uint32_t index_;
};

struct Open {
  std::uint32_t number = 0;
  std::vector<std::uint32_t> path;
  Sequence sequence;
  std::uint32_t written = 0;  // positions whose bytes are there

  std::uint64_t bytes_at(std::uint32_t position) const {
    std::uint64_t key = 1;
    for (std::uint32_t i = 0; i <= position; ++i) key = key * 8 + path[i] + 1;
    return key;
  }
};

class Process {
 public:
  Process(const LocalCache& cache, Board& board, std::uint32_t number)
      : segment_(cache.map_again()), board_(board), number_(number),
        worker_(*segment_, WorkerId{static_cast<std::uint16_t>(number + 1)}) {}

  int run() {
    for (std::uint32_t i = 0; i < kHistoryCalls; ++i) {
      if (!step()) return 1;
    }
    while (!open_.empty()) release(open_.size() - 1);
    return 0;
  }

 private:
  bool step() {
    const std::uint32_t what = below(16);
    if (open_.empty() || (open_.size() < kOpenMax && what < 5)) return begin();
    const std::size_t which = below(static_cast<std::uint32_t>(open_.size()));
    if (what < 8) return allocate(open_[which]);
    if (what < 13) return publish(open_[which]);
    release(which);
    return true;
  }

  bool begin() {
    Open open;
    open.number = next_++;
    open.path.resize(1 + below(kHistoryDepth));
    for (std::uint32_t& name : open.path) name = below(4) == 0 ? 1 : 0;
    const std::vector<std::uint32_t> tokens = path(kTokens, open.path);
    BeginReport report;
    Stamped call(board_, number_, Call::kBegin);
    const Status status = worker_.begin(LocalCache::name_space(), tokens, {}, open.sequence, report);
    call.responded();
    if (!status) return false;
    call.record().pending = report.pending.raw;
    open.written = report.cached_pages;
    note(open, call.record());
    open_.push_back(std::move(open));
    return true;
  }

  bool allocate(Open& open) {
    const std::uint32_t pages = 1 + below(static_cast<std::uint32_t>(open.path.size()));
    const std::uint64_t passed = passed_by();
    Stamped call(board_, number_, Call::kAllocate);
    const Status status = worker_.allocate(open.sequence, std::uint64_t{pages} * kTokens, 0);
    call.responded();
    call.record().asked = static_cast<std::uint8_t>(pages);
    call.record().done = status.ok();
    call.record().passed_by = passed_by() != passed;
    for (; open.written < open.sequence.positions(); ++open.written)
      bytes(open.sequence.page_at(open.written)).store(open.bytes_at(open.written), std::memory_order_relaxed);
    note(open, call.record());
    return status.ok() || status.code() == Code::kNotNow;
  }

  bool publish(Open& open) {
    const std::uint32_t pages = 1 + below(static_cast<std::uint32_t>(open.path.size()));
    const std::uint64_t passed = passed_by();
    PublishReport report;
    Stamped call(board_, number_, Call::kPublish);
    const Status status = worker_.publish(open.sequence, std::uint64_t{pages} * kTokens, report);
    call.responded();
    call.record().asked = static_cast<std::uint8_t>(pages);
    call.record().passed_by = passed_by() != passed;
    note(open, call.record());
    return status.ok();
  }

  void release(std::size_t which) {
    Open& open = open_[which];
    const bool wrong = !has_its_bytes(open);
    Stamped call(board_, number_, Call::kRelease);
    worker_.release(open.sequence);
    call.responded();
    call.record().sequence = open.number;
    call.record().wrong_bytes = wrong;
    if (which + 1 != open_.size()) open_[which] = std::move(open_.back());
    open_.pop_back();
  }

  // What the sequence has after a call.
  void note(const Open& open, Operation& record) const {
    const Sequence& sequence = open.sequence;
    record.sequence = open.number;
    record.path_pages = static_cast<std::uint8_t>(open.path.size());
    std::ranges::copy(open.path, record.path.begin());
    record.positions = static_cast<std::uint8_t>(std::min(sequence.positions(), kHistoryDepth));
    record.wrong_bytes = !has_its_bytes(open);
    for (std::uint32_t i = 0; i < record.positions; ++i) {
      Position& position = record.after[i];
      position.node = sequence.node_at(i).raw;
      if (i < sequence.shared.size()) {
        position.page = position.node;
        continue;
      }
      const OwnPage& own = sequence.own_at(i);
      position.page = Handle::page(own.page, StateWord{segment_->descriptor(own.page).state.load()}).raw;
      position.kept = own.state == OwnState::kPrivate   ? Kept::kPrivate
                      : own.state == OwnState::kPending ? Kept::kAnnounced
                                                        : Kept::kPublished;
      position.before_other = own.before_other;
    }
  }

  bool has_its_bytes(const Open& open) const {
    for (std::uint32_t i = 0; i < open.written; ++i) {
      if (bytes(open.sequence.page_at(i)).load(std::memory_order_relaxed) != open.bytes_at(i)) return false;
    }
    return true;
  }
  std::atomic<std::uint64_t>& bytes(PageIndex page) const { return board_.bytes[page.value]; }
  std::uint64_t passed_by() const {
    const auto& counters = segment_->worker(worker_.slot()).counters;
    return counters[static_cast<std::size_t>(Counter::kStripesPassedBy)].load() +
           counters[static_cast<std::size_t>(Counter::kBucketsFull)].load();
  }

  const std::unique_ptr<Segment> segment_;
  Board& board_;
  const std::uint32_t number_;
  Worker worker_;
  std::vector<Open> open_;
  std::uint32_t next_ = 0;
};

int run_evictor(const LocalCache& cache, Board& board) {
  const std::unique_ptr<Segment> segment = cache.map_again();
  Evictor evictor(*segment);
  for (std::uint32_t i = 0; i < kEvictsMax && board.ended.load() < kHistoryWorkers; ++i) {
    if (below(2) == 0) sleep_a_moment();
    give_way_for(10'000);
    const std::uint32_t wanted = 1 + below(4);
    Stamped call(board, kHistoryWorkers, Call::kEvict);
    const EvictReport report = evictor.evict(wanted, [] { return false; }, [](double) {});
    call.responded();
    call.record().asked = static_cast<std::uint8_t>(wanted);
    call.record().evicted = static_cast<std::uint32_t>(report.evicted);
    for (std::uint32_t page = 0; page < kHistoryPages; ++page)
      call.record().generations[page] =
          static_cast<std::uint16_t>(StateWord{segment->descriptor({page}).state.load()}.generation());
  }
  return 0;
}

// A mapping of its own, so that no process of an earlier run has it.
class SharedBoard {
 public:
  SharedBoard() {
    void* const memory = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    board_ = new (memory) Board;
  }
  ~SharedBoard() { ::munmap(board_, sizeof(Board)); }
  SharedBoard(const SharedBoard&) = delete;
  SharedBoard& operator=(const SharedBoard&) = delete;
  Board& operator*() const { return *board_; }
  Board* operator->() const { return board_; }

 private:
  Board* board_ = nullptr;
};

// All processes of the run; true when each ended by itself and well.
bool run_processes(const LocalCache& cache, Board& board, std::uint32_t seed) {
  std::vector<pid_t> pids;
  for (std::uint32_t number = 0; number <= kHistoryWorkers; ++number) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      random_here.seed(seed * (kHistoryWorkers + 1) + number + 1);
#ifdef KVTRIE_DEV
      crash_hook.store(give_way);
#endif
      board.here.fetch_add(1);
      while (board.here.load() <= kHistoryWorkers) ::sched_yield();
      const int result = number == kHistoryWorkers ? run_evictor(cache, board) : Process(cache, board, number).run();
      board.ended.fetch_add(1);
      ::_exit(result);
    }
    if (pid > 0) pids.push_back(pid);
  }
  bool well = pids.size() == kHistoryWorkers + 1;
  for (const pid_t pid : pids) {
    const FileDescriptor ends(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    pollfd waited{ends.get(), POLLIN, 0};
    if (!well || ::poll(&waited, 1, kRunMs) != 1) ::kill(pid, SIGKILL);
    int status = 0;
    ::waitpid(pid, &status, 0);
    well = well && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  return well;
}

}  // namespace

std::optional<History> record_history(std::uint32_t seed) {
  const LocalCache cache({.pages = kHistoryPages, .tokens_per_page = kTokens, .workers = kHistoryWorkers + 1,
                          .leases = 8, .stripes = 2});
  const std::unique_ptr<Worker> keeper = cache.worker(kHistoryWorkers + 1);
  Sequence away;
  BeginReport begun;
  if (!keeper->begin(LocalCache::name_space(), {}, {}, away, begun) ||
      !keeper->allocate(away, kHistoryPagesAway * kTokens, 0)) {
    return std::nullopt;
  }
  const SharedBoard board;
  if (!run_processes(cache, *board, seed)) return std::nullopt;
  keeper->release(away);
  History history;
  for (std::uint32_t i = 0; i <= kHistoryWorkers; ++i) {
    const auto begin = board->operations[i].begin();
    history.operations.insert(history.operations.end(), begin, begin + board->recorded[i].load());
  }
  for (std::uint32_t page = 0; page < kHistoryPages; ++page) {
    const StateWord word{cache.segment().descriptor({page}).state.load()};
    if (word.state() == PageState::kLive) history.cached.push_back(Handle::page({page}, word).raw);
  }
  history.free_pages = static_cast<std::uint32_t>(FreePages(cache.segment()).count());
  return history;
}

}  // namespace kvtrie::test
