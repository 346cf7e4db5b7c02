// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie's administrative commands against a coordinator that runs: what they do, texts, JSON, exit
// codes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/coordinator/running_coordinator.h"
#include "tests/support/attached_worker.h"
#include "tests/tools/kvtrie/small_cache.h"

namespace kvtrie::test {
namespace {

using inspect::Exit;
using inspect::Json;
using inspect::Outcome;
using ::testing::HasSubstr;

class AdminTest : public testing::Test {
 protected:
  void SetUp() override {
    coordinator_ = std::make_unique<RunningCoordinator>(cache_);
    ASSERT_EQ(coordinator_->problem(), "");
    worker_ =
        std::make_unique<AttachedWorker>(CoordinatorAddress{cache_.directory(), cache_.name()});
    ASSERT_TRUE(worker_->attached()) << kvtrie_last_error();
    space_ = worker_->open("model-a");
    worker_->cache(space_, AttachedWorker::prompt(0, 3));
  }
  void TearDown() override { worker_.reset(); }

  std::vector<std::string> aimed(std::vector<std::string> words) const {
    words.insert(words.end(), {"--cache", cache_.name(), "--dir", cache_.directory()});
    return words;
  }
  Outcome call(std::vector<std::string> words) const { return run_kvtrie(aimed(std::move(words))); }
  Json json(std::vector<std::string> words) const { return run_json(aimed(std::move(words))); }
  static std::string list(const std::vector<std::uint32_t>& tokens) {
    std::string text;
    for (const std::uint32_t token : tokens)
      text += (text.empty() ? "" : ",") + std::to_string(token);
    return text;
  }

  TemporaryCache cache_{"kvtrie-admin"};
  std::unique_ptr<RunningCoordinator> coordinator_;
  std::unique_ptr<AttachedWorker> worker_;
  kvtrie_namespace space_{};
};

TEST_F(AdminTest, EvictsAndSaysWhatStayed) {
  EXPECT_THAT(call({"evict", "--pages", "1"}).out, HasSubstr("1 page evicted"));
  kvtrie_sequence held{};
  ASSERT_EQ(worker_->begin(space_, AttachedWorker::prompt(0, 3), held), 32U);
  const Json none = json({"evict", "--namespace", "model-a"});
  EXPECT_EQ(none["evicted"], 0);
  EXPECT_EQ(none["stayed"]["leased"], 1);
  EXPECT_EQ(none["stayed"]["interior"], 1);
  EXPECT_EQ(none["namespace"], 0);
  EXPECT_EQ(none["pages_max"], nullptr);
  EXPECT_EQ(none["done"], true);
  EXPECT_THAT(call({"evict"}).out, HasSubstr("leased by workers (kvtrie workers)"));
  (void)kvtrie_release(held);
  EXPECT_EQ(json({"evict", "--pages", "100"})["evicted"], 2);
  EXPECT_EQ(call({"evict", "--namespace", "nobody"}).code, Exit::kNotFound);
  EXPECT_EQ(call({"evict", "--pages", "0"}).code, Exit::kUsage);
}

TEST_F(AdminTest, FlushesByIdAndLabel) {
  const Json flushed = json({"flush", "model-a"});
  EXPECT_EQ(flushed["root_generation"], 2);
  EXPECT_EQ(flushed["label"], "model-a");
  EXPECT_EQ(worker_->cached(space_, AttachedWorker::prompt(0, 3)), 0U);
  EXPECT_THAT(call({"flush", "0"}).out, HasSubstr("root generation 3"));
  EXPECT_EQ(call({"flush"}).code, Exit::kUsage);
  EXPECT_EQ(call({"flush", "3"}).code, Exit::kNotFound);
}

TEST_F(AdminTest, PinsAPrefixListsItAndEndsIt) {
  const std::string tokens = list(AttachedWorker::prompt(0, 2)) + ",77";
  const Json made = json({"pin", "--namespace", "0", "--tokens", tokens, "--reason",
                          "system prompt", "--expires", "60"});
  EXPECT_EQ(made["pages"], 2);
  EXPECT_EQ(made["tokens"], 32);
  EXPECT_EQ(made["tokens_given"], 33);
  const Json pins = json({"pins"});
  ASSERT_EQ(pins["pins"].size(), 1U);
  EXPECT_EQ(pins["pins"][0]["reason"], "system prompt");
  EXPECT_EQ(pins["pins"][0]["label"], "model-a");
  EXPECT_EQ(pins["pins"][0]["pages"], 2);
  EXPECT_GT(pins["pins"][0]["expires_seconds"], 50.0);
  EXPECT_EQ(json({"evict"})["evicted"], 1) << "the page below the pinned ones";
  const std::string page = std::to_string(made["page"].get<std::uint32_t>());
  EXPECT_THAT(call({"pin", "--page", page, "--reason", "again"}).out,
              HasSubstr("until kvtrie unpin"));
  EXPECT_THAT(call({"pins"}).out, HasSubstr("2 pins, 8 possible"));
  EXPECT_EQ(json({"unpin", "1"})["pins"], Json::array({1}));
  EXPECT_EQ(call({"unpin", "1"}).code, Exit::kNotFound);
  EXPECT_THAT(call({"unpin", "--namespace", "0", "--tokens", tokens}).out,
              HasSubstr("ended: pin 0"));
  EXPECT_EQ(json({"pins"})["pins"].size(), 0U);
}

TEST_F(AdminTest, TokensComeFromAFileToo) {
  const std::string path = cache_.directory() + "/tokens";
  std::ofstream(path) << list(AttachedWorker::prompt(0, 1)) << "\n";
  EXPECT_EQ(call({"pin", "--namespace", "0", "--tokens", "@" + path, "--reason", "r"}).code,
            Exit::kOk);
  const Outcome missing =
      call({"pin", "--namespace", "0", "--tokens", "@/nowhere", "--reason", "r"});
  EXPECT_EQ(missing.code, Exit::kUsage);
  EXPECT_THAT(missing.err, HasSubstr("/nowhere"));
}

TEST_F(AdminTest, WhatCannotBePinnedSaysWhy) {
  const auto pin = [&](const std::string& tokens) {
    return call({"pin", "--namespace", "0", "--tokens", tokens, "--reason", "r"});
  };
  EXPECT_EQ(pin("1,2,3").code, Exit::kUsage);
  EXPECT_THAT(pin("1,x").err, HasSubstr("'x' is not a token id"));
  const Outcome more = pin(list(AttachedWorker::prompt(0, 4)));
  EXPECT_EQ(more.code, Exit::kNotFound);
  EXPECT_THAT(more.err, HasSubstr("only 3 of the prefix's 4 pages are cached"));
  EXPECT_EQ(call({"pin", "--page", "127", "--reason", "r"}).code, Exit::kNotFound);
  EXPECT_EQ(call({"pin", "--reason", "r"}).code, Exit::kUsage);
  EXPECT_EQ(call({"pin", "--page", "0"}).code, Exit::kUsage) << "a reason is asked for";
  EXPECT_EQ(call({"unpin"}).code, Exit::kUsage);
}

TEST_F(AdminTest, DrainsAndTakesItBack) {
  const Json drained = json({"drain"});
  EXPECT_EQ(drained["draining"], true);
  EXPECT_EQ(drained["workers_active"], 1);
  EXPECT_EQ(json({"status"})["coordinator"]["state"], "draining");
  EXPECT_THAT(call({"drain", "--undo"}).out, HasSubstr("takes new workers again"));
  EXPECT_EQ(json({"status"})["coordinator"]["state"], "serving");
}

TEST_F(AdminTest, WithoutACoordinatorOnlyLookingWorks) {
  worker_.reset();
  coordinator_->stop();
  for (const std::vector<std::string>& words : std::vector<std::vector<std::string>>{
           {"evict"},
           {"flush", "0"},
           {"drain"},
           {"stop"},
           {"pin", "--namespace", "0", "--tokens", list(AttachedWorker::prompt(0, 3)), "--reason",
            "r"}}) {
    const Outcome outcome = call(words);
    EXPECT_EQ(outcome.code, Exit::kNoCoordinator) << words[0] << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("start it with: kvtried"));
  }
  EXPECT_EQ(call({"pins"}).code, Exit::kOk);
}

}  // namespace
}  // namespace kvtrie::test
