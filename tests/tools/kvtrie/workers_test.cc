// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie workers and kvtrie namespaces: who has what.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "shm/page_table.h"
#include "tests/tools/kvtrie/small_cache.h"

namespace kvtrie::test {
namespace {

using inspect::Exit;
using inspect::Json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class WorkersTest : public ::testing::Test {
 protected:
  std::string text(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--cache", cache_.name()});
    const auto outcome = run_kvtrie(arguments);
    EXPECT_EQ(outcome.code, Exit::kOk) << outcome.err;
    return outcome.out;
  }
  Json json(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--cache", cache_.name()});
    return run_json(arguments);
  }
  Exit code(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--cache", cache_.name()});
    return run_kvtrie(arguments).code;
  }

  SmallCache cache_;
  PathEnd end_ = cache_.open_namespace("m");
  WorkerId one_ = cache_.attach("one");
  WorkerId two_ = cache_.attach("two", 0x3FFFFFFF);
};

TEST_F(WorkersTest, ListsLeasesOldestFirstAndSaysHowManyItLeftOut) {
  cache_.set_tick(1000);
  const auto pages = cache_.publish(one_, end_, 3, 0);
  for (std::uint32_t i = 0; i < 3; ++i) {
    cache_.set_tick(4000 - 1000 * i);  // the last slot has the oldest lease
    cache_.lease(one_, i, cache_.handle_of(pages[i]), 0x10 + i);
  }
  cache_.set_tick(10'000);
  const Json row = json({"workers", "--leases", "--limit", "2"})["workers"][1];
  ASSERT_EQ(row["lease_list"].size(), 2U);
  EXPECT_EQ(row["lease_list"][0]["lease"], 2);
  EXPECT_EQ(row["lease_list"][0]["held_seconds"], 8.0);
  EXPECT_EQ(row["lease_list"][0]["depth"], 3);
  EXPECT_EQ(row["lease_list"][0]["namespace"], "0 \"m\"");
  EXPECT_EQ(row["lease_list"][0]["page_state"], "live");
  EXPECT_EQ(row["leases_left_out"], 1);
  EXPECT_THAT(text({"workers", "--leases", "--limit", "2"}),
              AllOf(HasSubstr("slot 1 (one), 3 leases"), HasSubstr("0x12"), HasSubstr("and 1 younger lease left out")));
  EXPECT_FALSE(json({"workers"})["workers"][1].contains("lease_list"));
}

TEST_F(WorkersTest, SaysWhatALeaseOfAnotherLifeIs) {
  const auto pages = cache_.publish(one_, end_, 1, 0);
  cache_.lease(one_, 0, Handle::page(pages[0], 77), 1);
  cache_.lease(one_, 1, Handle::page({5000}, 0), 1);
  EXPECT_THAT(text({"workers", "--leases"}),
              AllOf(HasSubstr("of another life of the page: protects nothing"), HasSubstr("names no page of this segment")));
}

TEST_F(WorkersTest, ShowsOneWorkerWithItsCounters) {
  cache_.segment().count(two_, Counter::kLookups, 12);
  EXPECT_THAT(text({"workers", "--worker", "2"}),
              AllOf(HasSubstr("counters: lookups 12"), Not(HasSubstr("  one"))));
  const Json by_pid = json({"workers", "--pid", std::to_string(::getpid())});
  ASSERT_EQ(by_pid["workers"].size(), 1U);
  EXPECT_EQ(by_pid["workers"][0]["name"], "one");
  EXPECT_EQ(by_pid["attached"], 2);
  EXPECT_EQ(code({"workers", "--worker", "3"}), Exit::kNotFound);
  EXPECT_EQ(code({"workers", "--worker", "999"}), Exit::kNotFound);
  EXPECT_EQ(code({"workers", "--pid", "1"}), Exit::kNotFound);
}

TEST_F(WorkersTest, SaysForHowLongPagesHaveBeenWritten) {
  cache_.set_tick(1000);
  cache_.take(one_, 2);
  cache_.set_tick(3000);
  cache_.take(one_, 1);
  cache_.publish(one_, end_, 1, 0, PageState::kPending);
  cache_.set_tick(9000);
  const Json row = json({"workers"})["workers"][1];
  EXPECT_EQ(row["pages_writing"], 3);
  EXPECT_EQ(row["oldest_writing_seconds"], 8.0);
  EXPECT_EQ(row["oldest_pending_seconds"], 6.0);
  EXPECT_THAT(text({"workers"}), AllOf(HasSubstr("3, 8 s"), HasSubstr("1, 6 s")));
}

TEST_F(WorkersTest, SaysThatOthersSleepUntilAPageComes) {
  WorkerRecord& record = cache_.segment().worker(one_);
  record.pending_word.store(1);
  EXPECT_EQ(json({"workers"})["workers"][1]["pages_awaited"], false) << "no page is pending";
  cache_.publish(one_, end_, 1, 0, PageState::kPending);
  EXPECT_EQ(json({"workers"})["workers"][1]["pages_awaited"], true);
  EXPECT_THAT(text({"workers"}), HasSubstr(", awaited"));
}

TEST_F(WorkersTest, SaysForWhomAPlaneWriterWritesWhat) {
  WorkerRecord& record = cache_.segment().worker(two_);
  record.role.store(static_cast<std::uint32_t>(WorkerRole::kPlaneWriter));
  record.scheduler.store(one_.value);
  record.plane_mask.store(0b1'0010);
  const Json rows = json({"workers"})["workers"];
  EXPECT_TRUE(rows[1]["planes"].is_null());
  EXPECT_EQ(rows[2]["scheduler"], one_.value);
  EXPECT_EQ(rows[2]["planes"], Json::array({1, 4}));
  EXPECT_THAT(text({"workers"}), HasSubstr("plane_writer of 1: 1, 4"));
}

TEST_F(WorkersTest, NamespacesSayWhatEachHas) {
  PathEnd other = cache_.open_namespace("other");
  cache_.publish(one_, end_, 3, 0);
  cache_.publish(one_, end_, 2, 100, PageState::kPending);
  cache_.publish(one_, other, 8, 0);
  cache_.lease(one_, 0, other.handle, 1);
  const Json report = json({"namespaces"});
  EXPECT_EQ(report["bytes_per_page"], 128);  // two planes of 64
  ASSERT_EQ(report["namespaces"].size(), 2U);
  const Json first = report["namespaces"][0];  // most pages first
  EXPECT_EQ(first["label"], "other");
  EXPECT_EQ(first["fields"], "model=other");
  EXPECT_EQ(first["pages"]["live"], 8);
  EXPECT_EQ(first["pages"]["tokens"], 32);
  EXPECT_EQ(first["pages"]["bytes"], 8 * 128);
  EXPECT_EQ(first["pages"]["share"], 8.0 / 256);
  EXPECT_EQ(first["pages"]["leases"], 1);
  EXPECT_EQ(report["namespaces"][1]["pages"]["pending"], 2);
  EXPECT_EQ(report["namespaces"][1]["pages"]["flushed"], 0);
}

TEST_F(WorkersTest, NamespacesShowFlushedPagesThatStillStand) {
  cache_.publish(one_, end_, 3, 0);
  cache_.lease(one_, 0, end_.handle, 1);
  cache_.segment().name_space(end_.name_space).root_generation.fetch_add(1);
  PathEnd again = cache_.open_namespace("m");
  cache_.publish(one_, again, 1, 0);
  const Json pages = json({"namespaces"})["namespaces"][0]["pages"];
  EXPECT_EQ(pages["total"], 4);
  EXPECT_EQ(pages["flushed"], 3);
  EXPECT_EQ(pages["flushed_leases"], 1);
  EXPECT_THAT(text({"namespaces"}), HasSubstr("3 (1 lease)"));
}

TEST_F(WorkersTest, NamespacesCountPagesOfNamespacesThatCannotBe) {
  cache_.publish(one_, end_, 2, 0);
  cache_.segment().descriptor({0}).scope.store(scope_of({999}, 1));
  EXPECT_EQ(json({"namespaces"})["unknown_namespace_pages"], 1);
  EXPECT_THAT(text({"namespaces"}), HasSubstr("! 1 page of namespaces that this segment does not have"));
}

}  // namespace
}  // namespace kvtrie::test
