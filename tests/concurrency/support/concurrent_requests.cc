// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/concurrency/support/concurrent_requests.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <new>
#include <ostream>
#include <thread>
#include <utility>

namespace kvtrie::test {
namespace {

// Of concurrency_mutants_test.cc: where kvtried and the plugin are that have a mutant in them.
const char* mutants_directory() { return std::getenv("KVTRIE_TEST_MUTANTS_DIR"); }

std::string program_directory() {
  const char* const mutants = mutants_directory();
  return mutants != nullptr ? mutants : KVTRIE_TEST_BIN_DIR;
}
std::string plugin_path() {
  const char* const mutants = mutants_directory();
  return std::string(mutants != nullptr ? mutants : KVTRIE_TEST_LIB_DIR) + "/libkvtrie_worker.so";
}

bool has_ended(pid_t pid) {  // without taking its status
  siginfo_t info{};
  return ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
}

}  // namespace

void PrintTo(const Setting& setting, std::ostream* out) {
  *out << setting.requests << (setting.apart == Apart::kThreads ? " threads" : " processes");
}

std::string setting_name(const testing::TestParamInfo<Setting>& info) {
  return fmt::format("{}{}", info.param.apart == Apart::kThreads ? "Threads" : "Processes", info.param.requests);
}

std::uint32_t patience_ms() {
  const char* const mutant = std::getenv("KVTRIE_TEST_MUTANT");
  return mutant == nullptr || std::string_view(mutant) == "none" ? 20'000 : 1'000;  // of a mutant: it comes or never
}

client::AllocateOptions patience(std::uint32_t wait_ms) {
  client::AllocateOptions options;
  options.wait_ms = wait_ms;
  return options;
}

Requester::Requester(std::uint32_t number_now, std::uint32_t count_now, const client::Worker& worker_now,
                     kvtrie_namespace space_now, Board& board_now)
    : number(number_now),
      count(count_now),
      worker(worker_now),
      space(space_now),
      board(board_now),
      random_(number_now + 1) {}

void Requester::meet() {
  const std::uint32_t opened = board.opened.load();
  if (board.arrived.fetch_add(1) + 1 == count) {
    board.arrived.store(0);
    board.opened.store(opened + 1);
    return;
  }
  // Nobody comes to the gate any more who has ended.
  const auto open_or_never = [&] { return board.opened.load() != opened || board.ended.load() != 0; };
  if (!comes(open_or_never) || board.opened.load() == opened) throw std::runtime_error("the others did not come");
}

void Requester::complain(std::string_view what) {
  const std::uint32_t place = board.complaints.fetch_add(1);
  if (place >= Board::kTextsMax) return;
  const std::string text = fmt::format("request {}: {}", number, what);
  auto& out = board.texts[place];
  std::copy_n(text.begin(), std::min(text.size(), out.size() - 1), out.begin());
}

void Requester::hold(std::uint32_t page) {
  if (page >= kBoardPages) return complain(fmt::format("there is no page {}", page));
  const std::uint32_t before = board.holder[page].exchange(number + 1);
  if (before != 0) complain(fmt::format("page {} is request {}'s, too", page, before - 1));
}

void Requester::drop(std::uint32_t page) {
  if (page >= kBoardPages) return;
  const std::uint32_t before = board.holder[page].exchange(0);
  if (before != number + 1) complain(fmt::format("page {} was given to another one", page));
}

ConcurrencyTest::ConcurrencyTest() {
  void* const shared =
      ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  board_ = new (shared) Board;
}

ConcurrencyTest::~ConcurrencyTest() { ::munmap(board_, sizeof(Board)); }

void ConcurrencyTest::serve(std::vector<std::string> more) {
  std::vector<std::string> words = {"--tokens-per-page", std::to_string(kTokensPerPage), "--page-bytes",
                                    std::to_string(kPageBytes), "--planes", std::to_string(kPlanes), "--workers",
                                    "40", "--leases", "2048", "--namespaces", "4", "--stripes", "8", "--metrics",
                                    "off"};
  words.insert(words.end(), more.begin(), more.end());
  daemon_ = std::make_unique<KvtriedProcess>(cache_, words, program_directory() + "/kvtried");
  ASSERT_TRUE(daemon_->ready()) << daemon_->err();
  Result<Segment> opened = open_segment(cache_.name(), Access::kReadOnly);
  ASSERT_TRUE(opened);
  segment_ = std::make_unique<Segment>(std::move(*opened));
}

const client::Library& ConcurrencyTest::plugin() const {
  if (plugin_ == nullptr) plugin_ = std::make_unique<client::Library>(client::Library::open(plugin_path().c_str()));
  return *plugin_;
}

client::Worker ConcurrencyTest::attach(const client::Library& library, const char* name) const {
  client::AttachOptions options;
  options.cache = cache_.name().c_str();
  options.directory = cache_.directory().c_str();
  options.name = name;
  options.timeout_ms = patience_ms();
  return {library, options};
}

kvtrie_namespace ConcurrencyTest::open_space(const client::Worker& worker) const {
  const kvtrie_field fields[] = {{"model", "concurrency"}};
  return worker.open_namespace(fields, "concurrency");
}

void ConcurrencyTest::be(std::uint32_t number, const client::Worker& worker, const Body& body) const {
  Requester me(number, GetParam().requests, worker, worker ? open_space(worker) : kvtrie_namespace{0}, *board_);
  try {
    body(me);
  } catch (const std::exception& failure) {
    me.complain(failure.what());
  }
}

void ConcurrencyTest::run_threads(const Body& body, const std::function<void()>& meanwhile) {
  client::Worker worker = attach(plugin(), "threads");
  std::vector<std::thread> threads;
  for (std::uint32_t i = 0; i < GetParam().requests; ++i) {
    threads.emplace_back([this, i, &worker, &body] {
      be(i, worker, body);
      board_->ended.fetch_add(1);
    });
  }
  for (; meanwhile && board_->ended.load() != threads.size(); ::sched_yield()) meanwhile();
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(worker.detach() == KVTRIE_OK);
}

void ConcurrencyTest::run_processes(const Body& body, const std::function<void()>& meanwhile) {
  std::vector<std::unique_ptr<Child>> children;
  for (std::uint32_t i = 0; i < GetParam().requests; ++i) {
    children.push_back(std::make_unique<Child>([this, i, &body](const Line&) {
      ::alarm(kLifeSeconds);
      try {
        const client::Library library = client::Library::open(plugin_path().c_str());
        client::Worker worker = attach(library, "process");
        be(i, worker, body);
        board_->ended.fetch_add(1);
        return worker.detach() == KVTRIE_OK ? 0 : 1;
      } catch (const std::exception& failure) {
        std::fprintf(stderr, "request %u: %s\n", i, failure.what());
        board_->ended.fetch_add(1);
        return 2;
      }
    }));
  }
  const auto all_ended = [&] {
    return std::ranges::all_of(children, [](const auto& child) { return has_ended(child->pid()); });
  };
  for (; meanwhile && !all_ended(); ::sched_yield()) meanwhile();
  for (std::uint32_t i = 0; i < children.size(); ++i) EXPECT_EQ(children[i]->wait(), 0) << "process of request " << i;
}

void ConcurrencyTest::run_together(const Body& body, const std::function<void()>& meanwhile) {
  board_->ended.store(0);
  board_->arrived.store(0);
  if (GetParam().apart == Apart::kThreads) {
    run_threads(body, meanwhile);
  } else {
    run_processes(body, meanwhile);
  }
  EXPECT_EQ(board_->complaints.load(), 0U);
  for (const auto& text : board_->texts) {
    if (text[0] != 0) ADD_FAILURE() << text.data();
  }
}

void ConcurrencyTest::expect_whole() const {
  const VerifyReport report = verify(segment());
  EXPECT_TRUE(report.clean()) << (report.findings.empty() ? "" : to_string(report.findings.front()));
}

void ConcurrencyTest::expect_at_rest() const {
  // The coordinator may still be evicting, and taking back the slots of who detached.
  VerifyReport report;
  const bool clean = comes([&] {
    report = verify(segment(), {.at_rest = true});
    return report.clean();
  });
  EXPECT_TRUE(clean) << (report.findings.empty() ? "" : to_string(report.findings.front()));
  EXPECT_EQ(report.leases, 0U);
  const auto in = [&](PageState state) { return report.pages[static_cast<std::size_t>(state)]; };
  EXPECT_EQ(in(PageState::kFree) + in(PageState::kLive), segment().page_count());
}

void ConcurrencyTest::expect_all_pages_can_be_freed() const {
  const client::Worker worker = attach();
  const client::Evicted evicted = worker.evict({0}, 0);
  EXPECT_TRUE(evicted.outcome == KVTRIE_OK);
  EXPECT_EQ(pages_in(PageState::kFree), segment().page_count());
  client::Batch all;
  all.add(open_space(worker), {}, std::uint64_t{segment().page_count()} * kTokensPerPage);
  EXPECT_TRUE(all.prepare(worker) == KVTRIE_OK) << "some page that is free cannot be had";
}

}  // namespace kvtrie::test
