// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Administrative requests on the socket of a coordinator that runs, with a worker that has pages.

#include "coordinator/admin_calls.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "shm/admin_client.h"
#include "shm/verify.h"
#include "tests/coordinator/running_coordinator.h"
#include "tests/support/attached_worker.h"

namespace kvtrie {
namespace {

using test::AttachedWorker;
using test::Child;
using test::eventually;
using test::Line;
using test::RunningCoordinator;

class AdminCallsTest : public testing::Test {
 protected:
  void run(const std::function<void(Options&)>& change = [](Options&) {}) {
    coordinator_ = std::make_unique<RunningCoordinator>(cache_, change);
    ASSERT_EQ(coordinator_->problem(), "");
    worker_ = std::make_unique<AttachedWorker>(address());
    ASSERT_TRUE(worker_->attached()) << kvtrie_last_error();
    space_ = worker_->open("a");
  }
  void TearDown() override {
    worker_.reset();
    if (coordinator_) coordinator_->stop();
  }
  const Segment& segment() const { return coordinator_->segment(); }
  CoordinatorAddress address() const { return {cache_.directory(), cache_.name()}; }
  NamespaceKey key(std::uint16_t id = 0) const {
    return {{id}, segment().name_space({id}).fields_hash.load()};
  }
  std::uint64_t live() const { return PageTable(segment()).stats().of(PageState::kLive); }
  // The deepest page of the only cached path with this many pages.
  Handle deepest(std::uint32_t depth) const {
    for (std::uint32_t i = 0; i < segment().page_count(); ++i) {
      const StateWord word = PageTable(segment()).state({i});
      if (word.readable() && depth_in(segment().descriptor({i}).depth_class.load()) == depth) {
        return Handle::page({i}, word);
      }
    }
    return {};
  }
  EvictedPages evict(std::uint64_t pages, std::optional<NamespaceKey> of = {}) {
    const Result<EvictedPages> done = request_eviction(address(), pages, of, message_);
    EXPECT_TRUE(done) << message_;
    return done ? *done : EvictedPages{};
  }
  static std::vector<std::uint32_t> prompt(std::uint32_t first, std::uint32_t pages) {
    return AttachedWorker::prompt(first, pages);
  }

  test::TemporaryCache cache_{"admin"};
  std::unique_ptr<RunningCoordinator> coordinator_;
  std::unique_ptr<AttachedWorker> worker_;
  kvtrie_namespace space_{};
  std::string message_;
};

TEST_F(AdminCallsTest, EvictsAsManyAsAskedForTheOldestFirst) {
  run();
  worker_->cache(space_, prompt(0, 3));
  worker_->cache(space_, prompt(1000, 3));
  const EvictedPages some = evict(2);
  EXPECT_EQ(some.evicted, 2U);
  EXPECT_TRUE(some.done);
  EXPECT_EQ(live(), 4U);
  EXPECT_EQ(worker_->cached(space_, prompt(1000, 3)), 48U);
  EXPECT_EQ(evict(0).evicted, 4U);
  EXPECT_EQ(live(), 0U);
}

TEST_F(AdminCallsTest, EvictionSaysWhatStayedAndWhy) {
  run();
  worker_->cache(space_, prompt(0, 3));
  worker_->cache(space_, prompt(1000, 4));
  ASSERT_TRUE(request_pin(address(), {deepest(4), 0, "test"}, message_)) << message_;
  kvtrie_sequence held{};
  ASSERT_EQ(worker_->begin(space_, prompt(0, 3), held), 48U);
  const EvictedPages none = evict(0);
  EXPECT_EQ(none.evicted, 0U);
  EXPECT_EQ(none.pinned, 1U);
  EXPECT_EQ(none.leased, 1U);
  EXPECT_EQ(none.interior, 5U);
  EXPECT_TRUE(none.done);
  ASSERT_EQ(kvtrie_release(held), KVTRIE_OK);
  EXPECT_EQ(evict(0).evicted, 3U);
}

TEST_F(AdminCallsTest, EvictionOfANamespaceLeavesTheOthersAlone) {
  run();
  const kvtrie_namespace other = worker_->open("b");
  worker_->cache(space_, prompt(0, 2));
  worker_->cache(other, prompt(0, 3));
  EXPECT_EQ(evict(0, key(1)).evicted, 3U);
  EXPECT_EQ(worker_->cached(space_, prompt(0, 2)), 32U);
  NamespaceKey stale = key(1);
  stale.fields_hash ^= 1;
  EXPECT_EQ(request_eviction(address(), 0, stale, message_).error().code(), Code::kNotFound);
  EXPECT_NE(message_.find("another model"), std::string::npos) << message_;
  EXPECT_EQ(request_eviction(address(), 0, NamespaceKey{{999}, 0}, message_).error().code(),
            Code::kNotFound);
}

TEST_F(AdminCallsTest, NothingOfAFlushedNamespaceIsMatchedAndItsPagesGo) {
  run();
  worker_->cache(space_, prompt(0, 3));
  const Result<std::uint64_t> generation = request_flush(address(), key(), message_);
  ASSERT_TRUE(generation) << message_;
  EXPECT_EQ(*generation, 2U);
  EXPECT_EQ(worker_->cached(space_, prompt(0, 3)), 0U);
  EXPECT_TRUE(eventually([&] { return live() == 0; })) << "without any pressure";
  EXPECT_EQ(segment().total(Counter::kFlushes), 1U);
  worker_->cache(space_, prompt(0, 3));
  EXPECT_EQ(worker_->cached(space_, prompt(0, 3)), 48U);
}

TEST_F(AdminCallsTest, LeasedPagesOfAFlushedNamespaceGoWhenTheLeaseFalls) {
  run();
  worker_->cache(space_, prompt(0, 3));
  worker_->cache(space_, prompt(1000, 2));
  kvtrie_sequence held{};
  ASSERT_EQ(worker_->begin(space_, prompt(0, 3), held), 48U);
  ASSERT_TRUE(request_flush(address(), key(), message_)) << message_;
  EXPECT_TRUE(eventually([&] { return live() == 3; }));
  EXPECT_EQ(worker_->cached(space_, prompt(0, 3)), 0U) << "leased, and not matched all the same";
  (void)kvtrie_release(held);
  EXPECT_TRUE(eventually([&] { return live() == 0; }));
}

TEST_F(AdminCallsTest, PinsOfAFlushedNamespaceEnd) {
  run();
  worker_->cache(space_, prompt(0, 3));
  ASSERT_TRUE(request_pin(address(), {deepest(3), 0, "test"}, message_)) << message_;
  ASSERT_TRUE(request_flush(address(), key(), message_)) << message_;
  EXPECT_TRUE(PinTable(segment()).list().empty());
  EXPECT_TRUE(eventually([&] { return live() == 0; }));
}

TEST_F(AdminCallsTest, PinKeepsItsPathUntilItIsEnded) {
  run();
  worker_->cache(space_, prompt(0, 3));
  const Handle page = deepest(3);
  const Result<PinMade> made = request_pin(address(), {page, 0, "system prompt"}, message_);
  ASSERT_TRUE(made) << message_;
  EXPECT_EQ(made->depth, 3U);
  EXPECT_EQ(evict(0).evicted, 0U);
  const std::vector<Pin> pins = PinTable(segment()).list();
  ASSERT_EQ(pins.size(), 1U);
  EXPECT_EQ(pins[0].page, page);
  EXPECT_EQ(pins[0].reason, "system prompt");
  EXPECT_TRUE(verify(segment(), {}).clean());
  EXPECT_EQ(request_unpin(address(), made->pin, deepest(2), message_).code(), Code::kNotFound);
  EXPECT_TRUE(request_unpin(address(), made->pin, page, message_)) << message_;
  EXPECT_EQ(request_unpin(address(), made->pin, page, message_).code(), Code::kNotFound);
  EXPECT_EQ(evict(0).evicted, 3U);
  EXPECT_EQ(request_pin(address(), {page, 0, "gone"}, message_).error().code(), Code::kNotFound);
}

TEST_F(AdminCallsTest, PinEndsByItself) {
  run([](Options& options) { options.tick_ns = 1'000'000; });
  worker_->cache(space_, prompt(0, 3));
  ASSERT_TRUE(request_pin(address(), {deepest(3), 1, "for a second"}, message_)) << message_;
  EXPECT_EQ(PinTable(segment()).list().size(), 1U);
  EXPECT_TRUE(eventually([&] { return PinTable(segment()).list().empty(); }));
  EXPECT_TRUE(coordinator_->logs("event=pins_ended pins=1"));
}

TEST_F(AdminCallsTest, EveryPinTakenIsRefusedWithWhatToDo) {
  run();
  worker_->cache(space_, prompt(0, 1));
  for (int i = 0; i < 8; ++i)
    ASSERT_TRUE(request_pin(address(), {deepest(1), 0, "one of 8"}, message_)) << message_;
  EXPECT_EQ(request_pin(address(), {deepest(1), 0, "ninth"}, message_).error().code(), Code::kFull);
  EXPECT_NE(message_.find("kvtrie unpin"), std::string::npos) << message_;
}

TEST_F(AdminCallsTest, DrainingTakesNobodyNewAndServesTheOthers) {
  run();
  ASSERT_TRUE(request_drain(address(), false, message_)) << message_;
  EXPECT_EQ(coordinator_->coordinator().ready_problem().substr(0, 8), "draining");
  EXPECT_EQ(coordinator_->coordinator().alive_problem(), "");
  EXPECT_FALSE(AttachedWorker(address()).attached());
  EXPECT_NE(std::string(kvtrie_last_error()).find("kvtrie drain --undo"), std::string::npos)
      << kvtrie_last_error();
  const std::uint64_t refused = segment().total(Counter::kAttachRefused);
  {
    std::string text;
    Result<WireClient> client = WireClient::connect(address(), text);
    ASSERT_TRUE(client);
    auto wish = make_message<NamespaceRequest>(WireKind::kNamespace);
    put_text(wish.fields, "model=new\n");
    wish.fields_bytes = 10;
    NamespaceReply reply{};
    EXPECT_EQ(client->call(wish, reply, text).code(), Code::kRefused);
  }
  EXPECT_EQ(segment().total(Counter::kAttachRefused), refused + 1);
  worker_->cache(worker_->open("a"), prompt(0, 2));
  EXPECT_EQ(live(), 2U);
  ASSERT_TRUE(request_drain(address(), true, message_)) << message_;
  EXPECT_EQ(coordinator_->coordinator().ready_problem(), "");
  EXPECT_TRUE(AttachedWorker(address()).attached());
}

TEST_F(AdminCallsTest, StopEndsTheLoopAndKeepsTheCache) {
  run();
  worker_->cache(space_, prompt(0, 2));
  ASSERT_TRUE(request_stop(address(), message_)) << message_;
  EXPECT_TRUE(coordinator_->logs("event=stop pid="));
  CoordinatorAddress impatient = address();
  impatient.timeout_ms = 500;
  EXPECT_TRUE(eventually([&] { return !ping(impatient, message_); }));
  EXPECT_EQ(live(), 2U);
}

TEST_F(AdminCallsTest, MalformedRequestsAreRefused) {
  run();
  const auto refused = [&](const auto& request) {
    Result<WireClient> client = WireClient::connect(address(), message_);
    ReplyHead reply{};
    return client ? client->call(request, reply, message_).code() : Code::kOk;
  };
  EXPECT_EQ(refused(make_message<PlainRequest>(WireKind::kEvict)), Code::kInvalid);
  EXPECT_EQ(refused(make_message<PlainRequest>(WireKind::kFlush)), Code::kInvalid);
  EXPECT_EQ(refused(make_message<PlainRequest>(WireKind::kPin)), Code::kInvalid);
  EXPECT_EQ(refused(make_message<PlainRequest>(WireKind::kUnpin)), Code::kInvalid);
  EXPECT_EQ(refused(make_message<PlainRequest>(WireKind::kDrain)), Code::kInvalid);
  EXPECT_EQ(refused(make_message<DrainRequest>(WireKind::kStop)), Code::kInvalid);
  auto pin = make_message<PinRequest>(WireKind::kPin);
  std::fill(std::begin(pin.reason), std::end(pin.reason), 'x');
  EXPECT_EQ(refused(pin), Code::kInvalid);
  auto evict = make_message<EvictRequest>(WireKind::kEvict);
  evict.one_namespace = 2;
  EXPECT_EQ(refused(evict), Code::kInvalid);
}

// Who may: a user that may attach, and is not the coordinator's, evicts and flushes only while it
// is attached.
TEST_F(AdminCallsTest, OtherUsersEvictWhileAttachedAndDoNothingElse) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
  constexpr uid_t kNobody = 65534;
  ASSERT_EQ(::chmod(cache_.directory().c_str(), 0755), 0);
  const CoordinatorAddress where = address();
  // Forked before the coordinator's threads are there.
  Child child([where](Line line) {
    if (line.hear() != '+' || ::setgid(kNobody) != 0 || ::setuid(kNobody) != 0) return 1;
    std::string message;
    if (request_eviction(where, 0, {}, message).error().code() != Code::kRefused) return 2;
    if (message.find("attached workers") == std::string::npos) return 3;
    AttachedWorker worker(where);
    if (!worker.attached()) return 4;
    if (!request_eviction(where, 0, {}, message)) return 5;
    if (request_stop(where, message).code() != Code::kRefused) return 6;
    if (request_drain(where, false, message).code() != Code::kRefused) return 7;
    if (request_pin(where, {Handle::page({0}, 0), 0, "x"}, message).error().code() !=
        Code::kRefused)
      return 8;
    return message.find("for root") == std::string::npos ? 9 : 0;
  });
  run([](Options& options) {
    options.mode = 0666;
    options.allow_uids = {kNobody};
  });
  child.line().say();
  EXPECT_EQ(child.wait(), 0);
}

}  // namespace
}  // namespace kvtrie
