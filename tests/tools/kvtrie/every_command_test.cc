// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Every command on a live segment (a real kvtried and a worker that holds something), on a dead one (both killed), and on
// none; each answer against its schema in docs/json-schema.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <kvtrie.h>
#include <unistd.h>

#include <memory>
#include <numeric>

#include "tests/support/kvtried_process.h"
#include "tests/tools/kvtrie/json_schema.h"
#include "tests/tools/kvtrie/small_cache.h"

namespace kvtrie::test {
namespace {

using inspect::Exit;
using inspect::Json;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint32_t kFirstToken = 1000;
constexpr std::uint32_t kRequestTag = 0x77;

// 8 pages of 16 tokens: 4 published, 2 announced and not written, 2 not full; and a lease on the fourth. Then it waits to
// be killed.
int hold_something(const TemporaryCache& cache, const Line& line) {
  kvtrie_attach_options where{};
  where.size = sizeof where;
  where.directory = cache.directory().c_str();
  where.cache = cache.name().c_str();
  where.name = "holder";
  kvtrie_worker worker{};
  if (kvtrie_attach(&where, &worker) != KVTRIE_OK) return 1;
  const kvtrie_field field{"model", "m"};
  kvtrie_namespace name_space{};
  if (kvtrie_open_namespace(worker, &field, 1, "m", &name_space) != KVTRIE_OK) return 2;
  std::vector<std::uint32_t> tokens(100);
  std::iota(tokens.begin(), tokens.end(), kFirstToken);
  kvtrie_begin_options options{};
  options.size = sizeof options;
  options.request_tag = kRequestTag;
  kvtrie_begin_result begun{};
  begun.size = sizeof begun;
  kvtrie_sequence sequence{};
  if (kvtrie_begin(worker, name_space, tokens.data(), tokens.size(), &options, &begun, &sequence) != KVTRIE_OK) return 3;
  if (kvtrie_allocate(sequence, 120, nullptr) != KVTRIE_OK) return 4;
  if (kvtrie_publish(sequence, 64, nullptr) != KVTRIE_OK) return 5;
  line.say();
  while (true) ::pause();
}

struct Call {
  const char* command;  // and the name of its schema
  std::vector<std::string> arguments;
};

const std::vector<Call> kLooks = {
    {"status", {}},
    {"workers", {}},
    {"workers", {"--leases"}},
    {"workers", {"--worker", "1", "--leases"}},
    {"namespaces", {}},
    {"tree", {}},
    {"tree", {"--prefix", "1000,1001", "--state", "live", "--leased", "--worker", "1", "--min-pages", "1"}},
    {"page", {"0"}},
    {"page", {"3", "--tokens"}},
    {"page", {"3", "--stats"}},
    {"verify", {}},
};

class EveryCommandTest : public ::testing::Test {
 protected:
  void SetUp() override {
    daemon_ = std::make_unique<KvtriedProcess>(
        cache_, std::vector<std::string>{"--pages", "256", "--page-bytes", "512", "--workers", "4", "--metrics", "off"});
    ASSERT_TRUE(daemon_->ready()) << daemon_->err();
    worker_ = std::make_unique<Child>([this](const Line& line) { return hold_something(cache_, line); });
    ASSERT_EQ(worker_->line().hear(), '+');
  }

  inspect::Outcome run(const char* command, std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), command);
    arguments.insert(arguments.end(), {"--cache", cache_.name(), "--dir", cache_.directory()});
    return run_kvtrie(arguments);
  }
  Json json(const char* command, std::vector<std::string> arguments = {}) const {
    arguments.emplace_back("--json");
    return Json::parse(run(command, arguments).out);
  }
  void expect_all_look() const {
    for (const auto& [command, arguments] : kLooks) {
      const inspect::Outcome outcome = run(command, arguments);
      EXPECT_EQ(outcome.code, Exit::kOk) << command << ": " << outcome.out << outcome.err;
      EXPECT_FALSE(outcome.out.empty()) << command;
      EXPECT_THAT(schema_problems(load_schema(command), json(command, arguments)), IsEmpty()) << command;
    }
  }
  // What the worker holds is there, whoever lives.
  void expect_what_is_held() const {
    const Json row = json("workers", {"--worker", "1", "--leases"})["workers"][0];
    EXPECT_EQ(row["pages_writing"], 2);
    EXPECT_EQ(row["pages_pending"], 2);
    EXPECT_TRUE(row["oldest_writing_seconds"].is_number() && row["oldest_writing_seconds"] < 60);
    EXPECT_EQ(row["lease_list"][0]["request_tag"], kRequestTag);
    EXPECT_EQ(row["lease_list"][0]["depth"], 4);
    const Json pages = json("namespaces")["namespaces"][0]["pages"];
    EXPECT_EQ(pages["live"], 4);
    EXPECT_EQ(pages["pending"], 2);
    EXPECT_EQ(pages["leases"], 1);
    EXPECT_EQ(json("tree", {"--prefix", "1000,1001"})["matching_pages"], 6);
    const Json page = json("page", {row["lease_list"][0]["page"].dump(), "--tokens"});
    EXPECT_EQ(page["path_tokens"].size(), 64U);
    EXPECT_EQ(page["path_tokens"][0], kFirstToken);
    EXPECT_EQ(page["evictable"]["possible"], false);
  }

  TemporaryCache cache_{"every-command"};
  std::unique_ptr<KvtriedProcess> daemon_;
  std::unique_ptr<Child> worker_;
};

TEST_F(EveryCommandTest, WorksOnALiveSegment) {
  expect_all_look();
  expect_what_is_held();
  EXPECT_EQ(json("workers")["workers"][1]["process"], "running");
  const inspect::Outcome refused = run("destroy", {"--json"});
  EXPECT_EQ(refused.code, Exit::kRefused);
  EXPECT_THAT(schema_problems(load_schema("error"), Json::parse(refused.out)), IsEmpty());
}

TEST_F(EveryCommandTest, WorksWhenAllProcessesWereKilled) {
  daemon_->send(SIGKILL);
  EXPECT_EQ(daemon_->wait(), -SIGKILL);
  worker_->kill();
  expect_all_look();
  expect_what_is_held();
  EXPECT_EQ(json("status")["coordinator"]["liveness"], "dead");
  const Json row = json("workers")["workers"][1];
  EXPECT_EQ(row["process"], "dead");
  EXPECT_EQ(row["note"], "dead, waits for its reap");
  const Json destroyed = json("destroy");
  EXPECT_THAT(schema_problems(load_schema("destroy"), destroyed), IsEmpty());
  EXPECT_FALSE(destroyed["removed"].empty());
}

TEST_F(EveryCommandTest, WorksWithoutACoordinatorWhileWorkersGoOn) {
  EXPECT_EQ(daemon_->stop(), 0);
  ASSERT_TRUE(worker_->stop());
  expect_all_look();
  expect_what_is_held();
  const Json row = json("workers")["workers"][1];
  EXPECT_EQ(row["process"], "stopped");
  EXPECT_THAT(row["note"].get<std::string>(), HasSubstr("stopped: keeps what it holds"));
}

TEST_F(EveryCommandTest, SaysThatThereIsNoSuchCache) {
  for (const auto& [command, arguments] : kLooks) {
    std::vector<std::string> all = {command, "--cache", "nobody-has-this-name", "--json"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    const inspect::Outcome outcome = run_kvtrie(all);
    EXPECT_EQ(outcome.code, Exit::kNotFound) << command;
    EXPECT_THAT(schema_problems(load_schema("error"), Json::parse(outcome.out)), IsEmpty()) << command;
  }
}

}  // namespace
}  // namespace kvtrie::test
