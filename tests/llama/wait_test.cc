// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Several processes with the same new prompt.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sstream>

#include "tests/llama/llama_process.h"

namespace kvtrie::test {
namespace {

// A kvtrie-llama that has its model loaded and waits for go().
class Asked {
 public:
  Asked(const std::string& command, const std::string& out) : out_(out) {
    std::array<int, 2> input{};
    if (::pipe2(input.data(), O_CLOEXEC) != 0) return;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(input[0], 0);
      ::execl("/bin/sh", "sh", "-c", ("exec " + command + " --start-on-input >" + out).c_str(), nullptr);
      ::_exit(127);
    }
    ::close(input[0]);
    input_ = input[1];
  }
  Asked(const Asked&) = delete;
  Asked& operator=(const Asked&) = delete;
  ~Asked() {
    if (pid_ > 0) {
      send(SIGKILL);
      (void)wait();
    }
    if (input_ >= 0) ::close(input_);
  }
  bool ready() const {
    return eventually([&] { return text().starts_with("ready\n"); });
  }
  bool go() const { return ::write(input_, "\n", 1) == 1; }
  void send(int signal) const {
    if (pid_ > 0) ::kill(pid_, signal);
  }
  bool over() {
    int status = 0;
    if (pid_ <= 0 || ::waitpid(pid_, &status, WNOHANG) != pid_) return pid_ <= 0;
    pid_ = 0;
    return true;
  }
  int wait() {
    int status = 0;
    if (pid_ <= 0 || ::waitpid(pid_, &status, 0) != pid_) return -1;
    pid_ = 0;
    return status;
  }
  std::string text() const {
    std::ifstream file(out_);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  nlohmann::json answer() const {
    const std::string all = text();
    return nlohmann::json::parse(all.substr(all.find('\n') + 1));
  }

 private:
  std::string out_;
  pid_t pid_ = 0;
  int input_ = -1;
};

class LlamaWaitTest : public LlamaTest {
 protected:
  static constexpr int kTokens = 3000;
  static constexpr std::uint64_t kPages = kTokens / 16;

  std::unique_ptr<Asked> ask(const std::string& wait, std::uint32_t name = 1) {
    auto asked = std::make_unique<Asked>(
        llama(prompt(name) + "--wait " + wait + cached()),
        cache_.directory() + "/answer" + std::to_string(++asked_));
    EXPECT_TRUE(asked->ready());
    return asked;
  }
  std::uint64_t counter(const std::string& name) const {
    const Ran ran =
        run(program("kvtrie") + " status --json --cache " + cache_.name() + " --dir " + cache_.directory());
    return ran.code == 0 ? Json::parse(ran.out)["counters"].value(name, std::uint64_t{0}) : 0;
  }
  static std::string prompt(std::uint32_t name = 1) { return tokens(kTokens, name) + "-n 4 --batch 64 "; }
  Json alone() const { return answer(prompt()); }
  void expect_same(const Json& answer, const Json& alone) const {
    EXPECT_TRUE(same_answer(answer, alone, prompt()));
    EXPECT_FALSE(answer.contains("last_failure")) << answer["last_failure"];
  }
  // Once it has published some pages.
  void stop_in_the_middle(Asked& owner) const {
    ASSERT_TRUE(owner.go());
    ASSERT_TRUE(eventually([&] { return counter("pages_published") > 4; }));
    owner.send(SIGSTOP);
    ASSERT_FALSE(owner.over()) << "it was done before it could be stopped";
  }
  int asked_ = 0;
};

TEST_F(LlamaWaitTest, FourProcessesComputeOnePrompt) {
  serve(16, 1024);  // room for what each computes
  const Json alone = this->alone();
  std::vector<std::unique_ptr<Asked>> all;
  for (int i = 0; i < 4; ++i) all.push_back(ask("always"));
  for (const auto& one : all) ASSERT_TRUE(one->go());
  int computed = 0;
  int waited = 0;
  for (const auto& one : all) {
    ASSERT_EQ(one->wait(), 0) << one->text();
    const Json answer = one->answer();
    expect_same(answer, alone);
    computed += answer["prefilled_tokens"].get<int>();
    waited += answer["counters"]["waits"] > 0 ? 1 : 0;
  }
  // The last page is not full, and each computes it.
  EXPECT_EQ(computed, kTokens + 3 * (kTokens % 16));
  EXPECT_EQ(waited, 3);
}

// As the policy thinks best, which a busy host may change; the answer is the same.
TEST_F(LlamaWaitTest, ByThePolicyTheAnswerIsTheSame) {
  serve(16, 1024);  // room for what all three compute
  const Json alone = this->alone();
  std::vector<std::unique_ptr<Asked>> all;
  for (const std::string wait : {"auto", "auto", "never"}) all.push_back(ask(wait));
  for (const auto& one : all) ASSERT_TRUE(one->go());
  for (const auto& one : all) {
    ASSERT_EQ(one->wait(), 0) << one->text();
    expect_same(one->answer(), alone);
  }
  EXPECT_EQ(all[2]->answer()["counters"]["waits"], 0);
}

// The limit is of the whole request: who gave up does not begin to wait again.
TEST_F(LlamaWaitTest, TheLimitIsOfAllWaits) {
  serve(16, 1024);
  const Json alone = this->alone();
  const std::unique_ptr<Asked> owner = ask("always");
  const std::unique_ptr<Asked> other = ask("always --wait-limit 700");
  ASSERT_NO_FATAL_FAILURE(stop_in_the_middle(*owner));
  ASSERT_TRUE(other->go());
  ASSERT_EQ(other->wait(), 0);
  expect_same(other->answer(), alone);
  const Json counters = other->answer()["counters"];
  EXPECT_GE(counters["wait_ns"], 700'000'000U);
  EXPECT_LT(counters["wait_ns"], 1'300'000'000U);
  EXPECT_EQ(counters["waits"], 1);
  EXPECT_LE(counters["pages_private"], kPages) << "a page is private once, however often that is said";
  owner->send(SIGCONT);
  ASSERT_EQ(owner->wait(), 0);
}

// One that is stopped in the middle computes for nobody: by the policy the others go on after a while.
TEST_F(LlamaWaitTest, AnOwnerThatStopsIsNotWaitedForForEver) {
  serve(16, 1024);  // room for what each computes
  const Json alone = this->alone();
  const std::unique_ptr<Asked> owner = ask("auto");
  const std::unique_ptr<Asked> other = ask("auto");
  ASSERT_NO_FATAL_FAILURE(stop_in_the_middle(*owner));
  ASSERT_TRUE(other->go());
  ASSERT_EQ(other->wait(), 0);
  expect_same(other->answer(), alone);
  owner->send(SIGCONT);
  ASSERT_EQ(owner->wait(), 0);
  expect_same(owner->answer(), alone);
}

TEST_F(LlamaWaitTest, WhenTheOneThatComputesIsKilledAnotherTakesOver) {
  serve(16, 1024);  // room for what each computes
  const Json alone = this->alone();
  const std::unique_ptr<Asked> owner = ask("always");
  std::vector<std::unique_ptr<Asked>> others;
  for (int i = 0; i < 3; ++i) others.push_back(ask("always"));
  ASSERT_NO_FATAL_FAILURE(stop_in_the_middle(*owner));
  for (const auto& one : others) ASSERT_TRUE(one->go());
  ASSERT_TRUE(eventually([&] { return counter("pending_waits") == 3; }));
  for (const auto& one : others) ASSERT_FALSE(one->over());
  const std::uint64_t published = counter("pages_published");
  ASSERT_LT(published, kPages);
  owner->send(SIGKILL);
  EXPECT_EQ(owner->wait(), SIGKILL);
  int computed = 0;
  for (const auto& one : others) {
    ASSERT_EQ(one->wait(), 0) << one->text();
    const Json answer = one->answer();
    expect_same(answer, alone);
    computed += answer["prefilled_tokens"].get<int>();
  }
  EXPECT_EQ(computed, kTokens - static_cast<int>(published) * 16 + 2 * (kTokens % 16));
}

}  // namespace
}  // namespace kvtrie::test
