// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Random operations of several workers, one at a time, against the sequential model: every answer must be the same,
// and so must the pages cached, held and free. Workers are objects in this process, threads, or processes that map
// the segment by themselves; an operation runs wherever its worker lives.

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <future>
#include <map>
#include <random>
#include <thread>

#include "tests/reference/sequential_cache.h"
#include "tests/support/local_cache.h"

namespace kvtrie {
namespace {

using reference::AllocateResult;
using reference::RequestId;
using reference::SequentialCache;
using test::LocalCache;
using test::LocalCacheOptions;

constexpr std::uint32_t kPageTokens = 4;
constexpr std::uint32_t kTokensMax = 64;

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  std::uint32_t operator()() { return static_cast<std::uint32_t>(engine_()); }

 private:
  std::mt19937 engine_;
};

// What an operation is told and what it answers; plain data, so that it can go through a socket.
struct Command {
  enum class Kind : std::uint32_t { kBegin, kAppend, kAllocate, kPublish, kRelease, kQuit } kind;
  std::uint32_t sequence;
  std::uint32_t name_space;
  std::uint32_t amount;
  std::uint32_t token_count;
  std::uint32_t tokens[kTokensMax];
};
struct Answer {
  std::uint32_t code;
  std::uint32_t pages;
  std::uint32_t pending;
};

// One worker's side.
class Executor {
 public:
  Executor(const Segment& segment, std::uint16_t slot) : worker_(segment, WorkerId{slot}) {}

  Answer run(const Command& command) {
    Sequence& sequence = sequences_[command.sequence];
    const std::span<const std::uint32_t> tokens(command.tokens, command.token_count);
    Answer answer{};
    switch (command.kind) {
      case Command::Kind::kBegin: {
        BeginReport report;
        const Status status =
            worker_.begin(LocalCache::name_space(static_cast<std::uint16_t>(command.name_space)),
                          tokens, {}, sequence, report);
        answer = {static_cast<std::uint32_t>(status.code()), report.cached_pages, !report.pending.none()};
        break;
      }
      case Command::Kind::kAppend:
        worker_.append(sequence, tokens);
        break;
      case Command::Kind::kAllocate:
        answer.code = static_cast<std::uint32_t>(
            worker_.allocate(sequence, command.amount * kPageTokens, 0).code());
        break;
      case Command::Kind::kPublish: {
        PublishReport report;
        answer.code =
            static_cast<std::uint32_t>(worker_.publish(sequence, command.amount, report).code());
        answer.pages = report.pages_published;
        break;
      }
      case Command::Kind::kRelease:
        worker_.release(sequence);
        break;
      case Command::Kind::kQuit:
        break;
    }
    return answer;
  }

 private:
  Worker worker_;
  std::map<std::uint32_t, Sequence> sequences_;
};

// A worker that runs commands somewhere.
using Runner = std::function<Answer(const Command&)>;

class ThreadRunner {
 public:
  ThreadRunner(const Segment& segment, std::uint16_t slot) : executor_(segment, slot) {}
  Answer operator()(const Command& command) {
    Answer answer{};
    std::thread([&] { answer = executor_.run(command); }).join();
    return answer;
  }

 private:
  Executor executor_;
};

class ProcessRunner {
 public:
  ProcessRunner(const LocalCache& cache, std::uint16_t slot) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(pair[0]);
      serve(cache.map_again(), slot, pair[1]);
      ::_exit(0);
    }
    ::close(pair[1]);
    socket_ = pair[0];
  }
  ProcessRunner(ProcessRunner&& other) noexcept : pid_(other.pid_), socket_(other.socket_) {
    other.pid_ = -1;
  }
  ~ProcessRunner() {
    if (pid_ < 0) return;
    // Not close alone: children forked later hold a copy of this end.
    ::shutdown(socket_, SHUT_RDWR);
    ::close(socket_);
    ::waitpid(pid_, nullptr, 0);
  }
  Answer operator()(const Command& command) const {
    Answer answer{};
    EXPECT_EQ(::send(socket_, &command, sizeof command, MSG_NOSIGNAL), ssize_t{sizeof command});
    EXPECT_EQ(::recv(socket_, &answer, sizeof answer, 0), ssize_t{sizeof answer});
    return answer;
  }

 private:
  static void serve(std::unique_ptr<Segment> segment, std::uint16_t slot, int socket) {
    Executor executor(*segment, slot);
    Command command;
    while (::recv(socket, &command, sizeof command, 0) == ssize_t{sizeof command}) {
      const Answer answer = executor.run(command);
      if (::send(socket, &answer, sizeof answer, MSG_NOSIGNAL) < 0) return;
    }
  }

  pid_t pid_ = -1;
  int socket_ = -1;
};

class ModelComparisonTest : public ::testing::TestWithParam<const char*> {
 protected:
  static constexpr std::uint16_t kWorkers = 3;

  ModelComparisonTest() {
    for (std::uint16_t slot = 1; slot <= kWorkers; ++slot) {
      const std::string where = GetParam();
      if (where == "object") {
        auto executor = std::make_shared<Executor>(cache_.segment(), slot);
        runners_.push_back([executor](const Command& c) { return executor->run(c); });
      } else if (where == "thread") {
        auto runner = std::make_shared<ThreadRunner>(cache_.segment(), slot);
        runners_.push_back([runner](const Command& c) { return (*runner)(c); });
      } else {
        auto runner = std::make_shared<ProcessRunner>(cache_, slot);
        runners_.push_back([runner](const Command& c) { return (*runner)(c); });
      }
    }
  }

  struct Open {
    RequestId model;
    std::uint32_t worker;
    std::uint32_t sequence;
    std::uint32_t tokens;
    std::uint32_t positions;
  };

  void run(unsigned seed, unsigned operations);
  void begin_one(Random& random);
  void step_one(Random& random, std::size_t which);
  void compare_state(unsigned at);

  LocalCache cache_{LocalCacheOptions{.workers = kWorkers}};
  SequentialCache model_{{.pages = 64, .tokens_per_page = kPageTokens, .evict_in_allocate = false}};
  std::vector<Runner> runners_;
  std::vector<Open> open_;
  std::uint32_t next_sequence_ = 0;
  std::uint32_t tick_ = 0;
};

void append_page(Random& random, Command& command) {
  const std::uint32_t page = random() % 3;
  for (std::uint32_t i = 0; i < kPageTokens; ++i) {
    command.tokens[command.token_count++] = page * 100 + i;
  }
}

void ModelComparisonTest::begin_one(Random& random) {
  Command command{};
  command.kind = Command::Kind::kBegin;
  command.sequence = next_sequence_++;
  command.name_space = random() % 2;
  for (unsigned pages = random() % 12; pages > 0; --pages) append_page(random, command);
  if (random() % 3 == 0) command.tokens[command.token_count++] = 7;  // an incomplete page
  const std::uint32_t worker = random() % kWorkers;
  const Answer answer = runners_[worker](command);
  const reference::BeginResult expected =
      model_.begin(command.name_space, {command.tokens, command.token_count});
  ASSERT_EQ(answer.code, 0U);
  ASSERT_EQ(answer.pages, expected.matched_pages);
  ASSERT_EQ(answer.pending != 0, expected.stopped_at_pending);
  open_.push_back({expected.request, worker, command.sequence, command.token_count, answer.pages});
}

void ModelComparisonTest::step_one(Random& random, std::size_t which) {
  Open& one = open_[which];
  Command command{};
  command.sequence = one.sequence;
  switch (random() % 6) {
    case 0:
      if (one.tokens + 2 * kPageTokens > kTokensMax || one.tokens % kPageTokens != 0) return;
      command.kind = Command::Kind::kAppend;
      append_page(random, command);
      one.tokens += kPageTokens;
      runners_[one.worker](command);
      model_.append(one.model, {command.tokens, command.token_count});
      return;
    case 1:
    case 2: {
      command.kind = Command::Kind::kAllocate;
      command.amount = one.positions + 1 + random() % 6;
      if (random() % 50 == 0) command.amount = 65;
      const Answer answer = runners_[one.worker](command);
      const AllocateResult expected = model_.allocate(one.model, command.amount);
      const Code code = static_cast<Code>(answer.code);
      ASSERT_EQ(code, expected == AllocateResult::kOk       ? Code::kOk
                      : expected == AllocateResult::kNotNow ? Code::kNotNow
                                                            : Code::kNever);
      if (code == Code::kOk) one.positions = command.amount;
      return;
    }
    case 3:
    case 4: {
      command.kind = Command::Kind::kPublish;
      command.amount = random() % (one.tokens + 8);
      const Answer answer = runners_[one.worker](command);
      const reference::PublishResult expected = model_.publish(one.model, command.amount);
      ASSERT_EQ(answer.code, 0U);
      ASSERT_EQ(answer.pages, expected.published_pages);
      return;
    }
    default:
      command.kind = Command::Kind::kRelease;
      runners_[one.worker](command);
      model_.release(one.model);
      open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(which));
  }
}

void ModelComparisonTest::compare_state(unsigned at) {
  ASSERT_EQ(cache_.count_state(PageState::kFree), model_.free_pages()) << "after operation " << at;
  ASSERT_EQ(cache_.count_state(PageState::kLive), model_.cached_pages()) << "after operation " << at;
  ASSERT_EQ(FreePages(cache_.segment()).count(), model_.free_pages()) << "after operation " << at;
}

void ModelComparisonTest::run(unsigned seed, unsigned operations) {
  Random random(seed);
  for (unsigned i = 0; i < operations; ++i) {
    cache_.set_tick(++tick_);
    model_.set_tick(tick_);
    const unsigned kind = random() % 10;
    if (kind == 0 && model_.free_pages() < 20) {
      const std::uint32_t target = model_.free_pages() + 1 + random() % 10;
      const std::uint64_t wanted = target - model_.free_pages();
      ASSERT_EQ(cache_.evict(wanted), model_.evict(target)) << "after operation " << i;
    } else if (open_.empty() || (kind < 3 && open_.size() < 8)) {
      begin_one(random);
    } else {
      step_one(random, random() % open_.size());
    }
    if (HasFatalFailure()) FAIL() << "at operation " << i << " of seed " << seed;
    if (i % 16 == 0) compare_state(i);
    if (HasFatalFailure()) return;
  }
  ASSERT_EQ(model_.find_violation(), "");
}

TEST_P(ModelComparisonTest, AnswersAndPagesAreTheModels) {
  const unsigned operations = std::string(GetParam()) == "object" ? 60'000 : 6'000;
  run(1, operations);
}

TEST_P(ModelComparisonTest, EverySeedAgrees) {
  for (unsigned seed = 2; seed < 6 && !HasFatalFailure(); ++seed) run(seed, 1'500);
}

INSTANTIATE_TEST_SUITE_P(Workers, ModelComparisonTest,
                         ::testing::Values("object", "thread", "process"),
                         [](const auto& where) { return std::string(where.param); });

}  // namespace
}  // namespace kvtrie
