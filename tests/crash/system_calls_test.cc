// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A real kvtried, killed at the system calls of each of its operations: before the n-th one, when all that is before
// it is done. The next kvtried then serves, has what was cached, and gives every page back. (Which instructions between two
// system calls change the segment step_kill knows, and kills at each.)
//
// Killed is at each call before which the others' view had changed, at the call before that, and at every 8th;
// KVTRIE_EVERY_SYSTEM_CALL=1: at every one. A row "| operation | system calls | kills |" is printed.

#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <thread>

#include "shm/admin_client.h"
#include "shm/free_pages.h"
#include "shm/page_table.h"
#include "shm/prefix_hash.h"
#include "shm/verify.h"
#include "shm/worker_table.h"
#include "tests/support/attached_worker.h"
#include "tests/support/kvtried_process.h"

namespace kvtrie {
namespace {

using test::AttachedWorker;
using test::Child;
using test::eventually;
using test::KvtriedProcess;
using test::Line;

constexpr std::uint32_t kPages = 64;
constexpr unsigned kStride = 8;
constexpr unsigned kCallsMax = 20'000;

// A process that is stopped at the entry of each system call of its first thread.
class Traced {
 public:
  // One that runs, or was stopped before its first instruction by PTRACE_TRACEME.
  static Traced running(pid_t pid) {
    if (::ptrace(PTRACE_SEIZE, pid, nullptr, kOptions) != 0 || ::ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr) != 0) {
      throw std::runtime_error("PTRACE_SEIZE");
    }
    return Traced(pid);
  }
  static Traced started(pid_t pid) {
    int status = 0;
    if (::waitpid(pid, &status, 0) != pid || ::ptrace(PTRACE_SETOPTIONS, pid, nullptr, kOptions) != 0) {
      throw std::runtime_error("PTRACE_SETOPTIONS");
    }
    Traced traced(pid);
    traced.resume(0);
    return traced;
  }

  // To its next system call. False: it has ended.
  bool next() {
    int status = 0;
    while (::waitpid(pid_, &status, __WALL) == pid_ && WIFSTOPPED(status)) {
      const int signal_number = WSTOPSIG(status);
      const bool of_trace = signal_number == SIGTRAP || signal_number == (SIGTRAP | 0x80) || (status >> 16) != 0;
      if (signal_number == (SIGTRAP | 0x80) &&
          ::ptrace(PTRACE_GET_SYSCALL_INFO, pid_, sizeof call_, &call_) > 0 && call_.op == PTRACE_SYSCALL_INFO_ENTRY) {
        return true;
      }
      resume(of_trace ? 0 : signal_number);
    }
    return false;
  }
  void go_on() { resume(0); }
  // Nothing is left to do, it is about to sleep until somebody comes.
  bool sleeps() const { return call_.entry.nr == SYS_epoll_wait && static_cast<int>(call_.entry.args[3]) != 0; }

 private:
  static constexpr long kOptions = PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
  explicit Traced(pid_t pid) : pid_(pid) {}
  void resume(int signal_number) { ::ptrace(PTRACE_SYSCALL, pid_, nullptr, signal_number); }

  pid_t pid_;
  __ptrace_syscall_info call_{};
};

// One cache: a survivor that has cached two prompts, a victim that holds pages, a kvtried.
class Scene {
 public:
  Scene() : long_(AttachedWorker::prompt(1, 4)), short_(AttachedWorker::prompt(1000, 3)) {}

  CoordinatorAddress address() const { return {cache_.directory(), cache_.name()}; }
  std::vector<std::string> settings() const {
    return {"--pages", std::to_string(kPages), "--page-bytes", "64", "--workers", "4", "--stripes", "2",
            "--metrics", "off"};
  }
  void serve() {
    daemon_ = std::make_unique<KvtriedProcess>(cache_, settings());
    if (!daemon_->ready()) throw std::runtime_error("kvtried: " + daemon_->err());
    if (!segment_) segment_.emplace(std::move(*open_segment(cache_.name(), Access::kReadWrite)));
  }
  void cache_prompts() {
    survivor_ = std::make_unique<AttachedWorker>(address());
    name_space_ = survivor_->open("test");
    survivor_->cache(name_space_, long_);
    survivor_->cache(name_space_, short_);
  }
  // A worker that attaches, takes pages, and detaches when it is told to.
  void start_victim() {
    victim_ = std::make_unique<Child>([this](Line line) {
      const auto mine = std::make_unique<AttachedWorker>(address());
      if (!mine->attached()) return 1;
      kvtrie_sequence sequence{};
      (void)mine->begin(mine->open("test"), AttachedWorker::prompt(5000, 3), sequence);
      if (kvtrie_allocate(sequence, 80, nullptr) != KVTRIE_OK) return 2;
      if (kvtrie_publish(sequence, 16, nullptr) != KVTRIE_OK) return 2;
      line.say();
      return line.hear() == '+' ? 0 : 3;
    });
  }
  bool victim_is_there() const { return victim_->line().hear() == '+'; }

  // All that others see.
  std::uint64_t seen_by_others() const {
    std::uint64_t hash = 0;
    for (const auto& entry : std::filesystem::directory_iterator(cache_.directory() + "/" + cache_.name(), ignored())) {
      hash = hash_text(hash, entry.path());
    }
    for (const std::string& path : {cache_.segment_path(), cache_.pool_path(0)}) {
      std::ifstream file(path, std::ios::binary);
      hash = hash_text(hash, std::string(std::istreambuf_iterator<char>(file), {}));
    }
    return hash;
  }

  // After the death: what the next kvtried makes of it.
  void expect_all_served(bool had_cache, bool long_may_go, bool short_may_go) {
    ASSERT_NO_THROW(serve());
    if (victim_) victim_->kill();
    if (!had_cache) {
      segment_.emplace(std::move(*open_segment(cache_.name(), Access::kReadWrite)));
      cache_prompts();
    }
    name_space_ = survivor_->open("test");
    if (!long_may_go) {
      EXPECT_EQ(survivor_->cached(name_space_, long_), long_.size());
    }
    if (!short_may_go) {
      EXPECT_EQ(survivor_->cached(name_space_, short_), short_.size());
    }
    {
      AttachedWorker newcomer(address());
      ASSERT_TRUE(newcomer.attached()) << kvtrie_last_error();
      newcomer.cache(newcomer.open("test"), long_);
      EXPECT_EQ(newcomer.cached(newcomer.open("test"), long_), long_.size());
    }
    const PageTable table(*segment_);
    for (std::uint32_t pin = 0; pin < kPins_; ++pin) (void)request_unpin(address(), pin, pinned_, message_);
    // The victim's come when the kernel has reported its death.
    EXPECT_TRUE(eventually([&] {
      (void)request_eviction(address(), 0, {}, message_);
      return table.stats().of(PageState::kFree) == kPages;
    })) << table.stats().of(PageState::kFree) << " of " << kPages << " pages are Free";
    EXPECT_EQ(FreePages(*segment_).count(), kPages);
    survivor_.reset();
    EXPECT_EQ(daemon_->stop(), 0) << daemon_->err();
    const VerifyReport report = verify(*segment_, {.at_rest = true});
    EXPECT_TRUE(report.clean()) << to_string(report.findings.at(0));
  }

  Handle page_of_long() {
    kvtrie_sequence sequence{};
    (void)survivor_->begin(name_space_, long_, sequence);
    std::uint32_t page = 0;
    EXPECT_EQ(kvtrie_get_pages(sequence, 3, 1, &page), KVTRIE_OK);
    (void)kvtrie_release(sequence);
    pinned_ = Handle::page({page}, PageTable(*segment_).state({page}));
    return pinned_;
  }
  NamespaceKey name_space_key() const { return {{0}, segment_->name_space({0}).fields_hash.load()}; }

  std::unique_ptr<KvtriedProcess> daemon_;
  std::unique_ptr<AttachedWorker> survivor_;
  std::unique_ptr<Child> victim_;
  std::optional<Segment> segment_;
  Handle pinned_{};
  std::string message_;
  test::TemporaryCache& cache() { return cache_; }

 private:
  static constexpr std::uint32_t kPins_ = 2;
  static std::error_code& ignored() {
    static std::error_code error;
    return error;
  }
  static std::uint64_t hash_text(std::uint64_t seed, const std::string& text) {
    return hash_bytes(seed, text.data(), text.size());
  }

  test::TemporaryCache cache_{"calls"};
  const std::vector<std::uint32_t> long_;
  const std::vector<std::uint32_t> short_;
  kvtrie_namespace name_space_{};
};

struct Operation {
  const char* name;
  bool starts = false;                            // killed while it starts; else while it serves
  std::function<void(Scene&)> prepare = {};       // a kvtried serves
  std::function<void(Scene&)> trigger = {};       // by a thread of its own, until it is answered or kvtried is dead
  std::function<bool(Scene&)> over = {};          // what must hold when it was done; empty: the trigger's end
  bool had_cache = true;
  bool long_may_go = false;
  bool short_may_go = false;
};

bool victims_slot_is_free(Scene& scene) {
  const WorkerTable table(*scene.segment_);
  return table.word(WorkerId{2}).state() == SlotState::kFree;
}

const std::vector<Operation>& operations() {
  const auto with_victim = [](Scene& s) {
    s.start_victim();
    EXPECT_TRUE(s.victim_is_there());
  };
  static const std::vector<Operation> all{
      {.name = "start", .starts = true, .had_cache = false},
      {.name = "start.adopt",  // workers that live and one that is dead, one that was pinned for
       .starts = true,
       .prepare =
           [with_victim](Scene& s) {
             with_victim(s);
             EXPECT_TRUE(request_pin(s.address(), {s.page_of_long(), 0, "kept"}, s.message_));
             s.daemon_->send(SIGKILL);
             (void)s.daemon_->wait();
             s.victim_->kill();
           }},
      {.name = "attach", .trigger = [](Scene& s) { s.start_victim(); (void)s.victim_is_there(); }},
      {.name = "namespace",
       .trigger = [](Scene& s) {
         const kvtrie_field field{"model", "other"};
         kvtrie_attach_options where{};
         where.size = sizeof where;
         const CoordinatorAddress address = s.address();
         where.cache = address.cache.c_str();
         where.directory = address.directory.c_str();
         kvtrie_worker worker{};
         if (kvtrie_attach(&where, &worker) != KVTRIE_OK) return;
         kvtrie_namespace opened{};
         (void)kvtrie_open_namespace(worker, &field, 1, "other", &opened);
         (void)kvtrie_detach(worker);
       }},
      {.name = "detach",
       .prepare = with_victim,
       .trigger = [](Scene& s) { s.victim_->line().say(); },
       .over = victims_slot_is_free},
      {.name = "reap",
       .prepare = with_victim,
       .trigger = [](Scene& s) { s.victim_->send(SIGKILL); },
       .over = victims_slot_is_free},
      {.name = "evict",
       .trigger = [](Scene& s) { (void)request_eviction(s.address(), 0, {}, s.message_); },
       .long_may_go = true,
       .short_may_go = true},
      {.name = "flush",
       .trigger = [](Scene& s) { (void)request_flush(s.address(), s.name_space_key(), s.message_); },
       .long_may_go = true,
       .short_may_go = true},
      {.name = "pin",
       .prepare = [](Scene& s) { (void)s.page_of_long(); },
       .trigger = [](Scene& s) { (void)request_pin(s.address(), {s.pinned_, 0, "kept"}, s.message_); }},
      {.name = "unpin",
       .prepare =
           [](Scene& s) { EXPECT_TRUE(request_pin(s.address(), {s.page_of_long(), 0, "kept"}, s.message_)); },
       .trigger = [](Scene& s) { (void)request_unpin(s.address(), 0, s.pinned_, s.message_); }},
      {.name = "drain", .trigger = [](Scene& s) { (void)request_drain(s.address(), false, s.message_); }},
      {.name = "stop", .trigger = [](Scene& s) { (void)request_stop(s.address(), s.message_); }},
  };
  return all;
}

class SystemCallTest : public testing::TestWithParam<Operation> {
 protected:
  // Runs the operation in a new scene, telling `at_call` of each system call, and kills kvtried where that says false,
  // or when the operation was done. Returns how many calls there were.
  static unsigned run(Scene& scene, const Operation& operation, const std::function<bool(unsigned)>& at_call) {
    if (operation.had_cache) {
      scene.serve();
      scene.cache_prompts();
    }
    if (operation.prepare) operation.prepare(scene);
    return operation.starts ? run_start(scene, at_call) : run_served(scene, operation, at_call);
  }

  static unsigned run_start(Scene& scene, const std::function<bool(unsigned)>& at_call) {
    std::vector<std::string> words{std::string(KVTRIE_TEST_BIN_DIR) + "/kvtried", "--cache", scene.cache().name(),
                                   "--dir", scene.cache().directory()};
    const std::vector<std::string> more = scene.settings();
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
      const int null = ::open("/dev/null", O_WRONLY);
      ::dup2(null, 1);
      ::dup2(null, 2);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    Traced traced = Traced::started(pid);
    unsigned calls = 0;
    for (; calls < kCallsMax && traced.next() && !traced.sleeps() && at_call(calls); ++calls) traced.go_on();
    ::kill(pid, SIGKILL);
    int status = 0;
    while (::waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status)) {
    }
    return calls;
  }

  static unsigned run_served(Scene& scene, const Operation& operation, const std::function<bool(unsigned)>& at_call) {
    Traced traced = Traced::running(scene.daemon_->pid());
    std::atomic<bool> answered{false};
    std::thread asks([&] {
      operation.trigger(scene);
      answered.store(true);
    });
    unsigned calls = 0;
    while (calls < kCallsMax && traced.next()) {
      const bool done = answered.load() && (!operation.over || operation.over(scene));
      if (done && traced.sleeps()) break;
      if (!at_call(calls)) break;
      ++calls;
      traced.go_on();
    }
    scene.daemon_->send(SIGKILL);
    (void)scene.daemon_->wait();
    asks.join();
    return calls;
  }
};

TEST_P(SystemCallTest, TheNextCoordinatorHasEverything) {
  const Operation& operation = GetParam();
  const bool every = std::getenv("KVTRIE_EVERY_SYSTEM_CALL") != nullptr;
  std::set<unsigned> places;
  unsigned calls = 0;
  {
    Scene scene;
    std::uint64_t before = 0;
    calls = run(scene, operation, [&](unsigned n) {
      const std::uint64_t now = scene.seen_by_others();
      if (std::exchange(before, now) != now && n > 0) places.insert({n - 1, n});
      if (every || n % kStride == 0) places.insert(n);
      return true;
    });
    ASSERT_LT(calls, kCallsMax);
    ASSERT_GT(calls, 3U);
    places.insert(calls);  // done
    scene.expect_all_served(operation.had_cache, operation.long_may_go, operation.short_may_go);
  }
  for (const unsigned place : places) {
    SCOPED_TRACE("died at system call " + std::to_string(place));
    Scene scene;
    (void)run(scene, operation, [&](unsigned n) { return n < place; });
    scene.expect_all_served(operation.had_cache, operation.long_may_go, operation.short_may_go);
    if (HasFailure()) return;
  }
  std::cout << "| " << operation.name << " | " << calls << " | " << places.size() << " |\n";
}

INSTANTIATE_TEST_SUITE_P(All, SystemCallTest, testing::ValuesIn(operations()), [](const auto& of) {
  std::string name = of.param.name;
  std::ranges::replace(name, '.', '_');
  return name;
});

}  // namespace
}  // namespace kvtrie
