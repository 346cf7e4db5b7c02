// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "metrics/segment_collector.h"

#include <gtest/gtest.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <sstream>
#include <string>

#include "metrics/metrics_server.h"
#include "shm/counter_names.h"
#include "shm/namespace_table.h"
#include "shm/worker_table.h"
#include "tests/shm/test_support.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie {
namespace {

class SegmentCollectorTest : public testing::Test {
 protected:
  void SetUp() override {
    fd_ = std::move(*test::nameless_object(layout_of(geometry_).segment_bytes));
    Result<Segment> segment = test::build_segment(fd_.get(), geometry_);
    ASSERT_TRUE(segment);
    segment_.emplace(std::move(*segment));
    collector_ = std::make_shared<SegmentCollector>(*segment_, pauses_, "1.2.3");
  }
  std::string text() const { return prometheus::TextSerializer().Serialize(collector_->Collect()); }
  void expect_line(const std::string& line) const {
    EXPECT_NE(text().find("\n" + line + "\n"), std::string::npos) << line << " is not in\n"
                                                                  << text();
  }
  void set_state(std::uint32_t page, std::uint64_t raw) const {
    segment_->descriptor({page}).state.store(raw);
  }

  const Geometry geometry_ = test::small_geometry();
  FileDescriptor fd_;
  std::optional<Segment> segment_;
  PauseHistogram pauses_;
  std::shared_ptr<SegmentCollector> collector_;
};

TEST_F(SegmentCollectorTest, CountsPagesByState) {
  set_state(0, StateWord::make(PageState::kLive, 3).raw);
  set_state(1, StateWord::make(PageState::kLive, 0).raw);
  set_state(2, StateWord::make(PageState::kPending, 0, {2}).raw);
  set_state(3, 0xF);
  expect_line("kvtrie_pages{state=\"live\"} 2");
  expect_line("kvtrie_pages{state=\"pending\"} 1");
  expect_line("kvtrie_pages{state=\"free\"} 252");
  expect_line("kvtrie_pages{state=\"malformed\"} 1");
}

TEST_F(SegmentCollectorTest, CountsLeasesOfWorkersAndPins) {
  segment_->worker({1}).leases_high_water.store(2);
  segment_->leases({1})[1].handle.store(Handle::page({1}, 0).raw);
  segment_->leases({2})[0].handle.store(Handle::page({1}, 0).raw);  // above its mark: never used
  segment_->worker({3}).leases_high_water.store(~0U);               // of a segment that is broken
  segment_->worker(kCoordinatorSlot).leases_high_water.store(8);
  segment_->leases(kCoordinatorSlot)[7].handle.store(Handle::page({1}, 0).raw);
  expect_line("kvtrie_leases 2");
}

TEST_F(SegmentCollectorTest, SumsCountersOverAllSlots) {
  segment_->count({1}, Counter::kPagesHit, 3);
  segment_->count({2}, Counter::kPagesHit, 4);
  segment_->count({2}, Counter::kFailedNever, 5);
  expect_line("kvtrie_lookup_pages_hit_total 7");
  expect_line("kvtrie_allocation_failures_total{reason=\"never\"} 5");
  expect_line("kvtrie_allocation_failures_total{reason=\"not_now\"} 0");
}

TEST_F(SegmentCollectorTest, ShowsWorkersNamespacesAndBuild) {
  ASSERT_TRUE(WorkerTable(*segment_).give({1, 2, 3, WorkerRole::kWorker, "", 0}));
  ASSERT_TRUE(NamespaceTable(*segment_).open("a=1\n", ""));
  segment_->poison(PoisonReason::kOperator);
  expect_line("kvtrie_workers{state=\"attaching\"} 1");
  expect_line("kvtrie_workers{state=\"free\"} 2");
  expect_line("kvtrie_namespaces 1");
  expect_line("kvtrie_segment_poisoned 1");
  expect_line("kvtrie_build_info{version=\"1.2.3\",layout=\"1\",cache=\"unit\"} 1");
}

TEST_F(SegmentCollectorTest, PausesAreAHistogramInSeconds) {
  pauses_.observe(5e-6);
  pauses_.observe(60e-6);
  pauses_.observe(7);
  expect_line("kvtrie_eviction_pause_seconds_count 3");
  expect_line("kvtrie_eviction_pause_seconds_bucket{le=\"1\"} 2");
  expect_line("kvtrie_eviction_pause_seconds_bucket{le=\"+Inf\"} 3");
  EXPECT_DOUBLE_EQ(pauses_.snapshot().sum_seconds, 7.000065);
}

TEST_F(SegmentCollectorTest, CensusIsTakenAtMostOnceASecond) {
  CensusCache cache(*segment_);
  EXPECT_EQ(cache.get().pages.by_state[0], 256U);
  set_state(0, StateWord::make(PageState::kLive, 0).raw);
  EXPECT_EQ(cache.get().pages.by_state[0], 256U);
  EXPECT_EQ(PageTable(*segment_).stats().by_state[0], 255U);
}

TEST_F(SegmentCollectorTest, EveryCounterIsExported) {
  // Each counter gets a value of its own; each value must be found.
  for (std::size_t i = 0; i < kCounters; ++i)
    segment_->count({1}, static_cast<Counter>(i), 70'000 + i);
  const std::string all = text();
  for (std::size_t i = 0; i < kCounters; ++i) {
    const char* name = name_of(static_cast<Counter>(i));
    if (name == nullptr) continue;
    EXPECT_NE(all.find(" " + std::to_string(70'000 + i) + "\n"), std::string::npos) << name;
  }
}

TEST_F(SegmentCollectorTest, NamesFollowTheConventions) {
  std::set<std::string> names;
  for (const prometheus::MetricFamily& family : collector_->Collect()) {
    EXPECT_TRUE(family.name.starts_with("kvtrie_")) << family.name;
    EXPECT_FALSE(family.help.empty()) << family.name;
    EXPECT_TRUE(names.insert(family.name).second) << family.name << " is there twice";
    EXPECT_EQ(family.name.ends_with("_total"), family.type == prometheus::MetricType::Counter)
        << family.name;
    EXPECT_NE(family.type, prometheus::MetricType::Untyped) << family.name;
  }
}

class MetricsServerTest : public SegmentCollectorTest {};

TEST_F(MetricsServerTest, ServesOnAFreePortAndSaysWhich) {
  MetricsServer server;
  EXPECT_EQ(server.address(), "off");
  ASSERT_EQ(server.listen("127.0.0.1:0"), "");
  server.serve({collector_}, {});
  EXPECT_TRUE(server.address().starts_with("127.0.0.1:"));
  EXPECT_NE(server.address(), "127.0.0.1:0");
}

TEST_F(MetricsServerTest, PortInUseIsAnErrorThatSaysWhatToDo) {
  MetricsServer first;
  ASSERT_EQ(first.listen("127.0.0.1:0"), "");
  MetricsServer second;
  const std::string problem = second.listen(first.address());
  EXPECT_NE(problem.find(first.address()), std::string::npos) << problem;
  EXPECT_NE(problem.find("--metrics off"), std::string::npos) << problem;
  EXPECT_NE(second.listen("nowhere"), "");
}

TEST_F(MetricsServerTest, PromtoolIsSilent) {
  if (std::system("promtool --version >/dev/null 2>&1") != 0)
    GTEST_SKIP() << "promtool is not installed";
  if (std::system("curl --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "curl is not installed";
  pauses_.observe(1e-3);
  MetricsServer server;
  ASSERT_EQ(server.listen("127.0.0.1:0"), "");
  server.serve({collector_}, {});
  const test::TemporaryCache files("promtool");
  const std::string scraped = files.directory() + "/metrics";
  const std::string said = files.directory() + "/said";
  // Twice: the server's own metrics have values after the first time only.
  const std::string scrape = "curl -sf http://" + server.address() + "/metrics >" + scraped;
  ASSERT_EQ(std::system(scrape.c_str()), 0);
  ASSERT_EQ(std::system(scrape.c_str()), 0);
  EXPECT_EQ(std::system(("promtool check metrics <" + scraped + " >" + said + " 2>&1").c_str()), 0);
  EXPECT_EQ(std::system(("! grep . " + said).c_str()), 0) << "promtool said something";
}

}  // namespace
}  // namespace kvtrie
