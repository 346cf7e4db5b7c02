// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <thread>

#include "coordinator/attach_service.h"
#include "coordinator/cache_store.h"
#include "shm/announce.h"
#include "shm/free_pages.h"
#include "shm/geometry.h"
#include "shm/process_identity.h"
#include "tests/coordinator/running_coordinator.h"
#include "worker_plugin/attach_client.h"

namespace kvtrie {
namespace {

using test::Child;
using test::eventually;
using test::Line;
using test::RunningCoordinator;

class AttachTest : public testing::Test {
 protected:
  void run(const std::function<void(Options&)>& change = [](Options&) {}) {
    coordinator_ = std::make_unique<RunningCoordinator>(cache_, change);
    ASSERT_EQ(coordinator_->problem(), "");
  }
  // For a child that is forked before run() and told after it: of a process with threads, a child may find the
  // allocator locked for ever (the address sanitizer's is).
  template <typename Body>
  static auto once_it_runs(Body body) {
    return [body](Line line) { return line.hear() == '+' ? body(line) : 99; };
  }
  const Segment& segment() const { return coordinator_->segment(); }
  CoordinatorAddress address() const { return {cache_.directory(), cache_.name()}; }
  AttachOptions options() const { return {address(), "unit", WorkerRole::kWorker, 0}; }
  SlotState state(std::uint16_t slot) const { return WorkerTable(segment()).word({slot}).state(); }

  AttachRequest good_request() const {
    auto request = make_message<AttachRequest>(WireKind::kAttach);
    request.layout_version = kLayoutVersion;
    request.struct_fingerprint = struct_fingerprint();
    request.start_time = *own_start_time();
    request.image = own_image();
    request.pid_namespace = *own_pid_namespace();
    put_text(request.cache, cache_.name());
    return request;
  }
  // Sends a request that was changed in one place. Returns the refusal's text.
  std::string refused(Code code, const std::function<void(AttachRequest&)>& change) {
    AttachRequest request = good_request();
    change(request);
    std::string message;
    Result<WireClient> client = WireClient::connect(address(), message);
    EXPECT_TRUE(client) << message;
    AttachReply reply{};
    EXPECT_EQ(client->call(request, reply, message).code(), code) << message;
    return message;
  }
  void expect_refused(Code code, const std::string& part,
                      const std::function<void(AttachRequest&)>& change) {
    const std::string message = refused(code, change);
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_NE(message.find(cache_.name()), std::string::npos) << message;
  }

  test::TemporaryCache cache_{"attach"};
  std::unique_ptr<RunningCoordinator> coordinator_;
};

TEST_F(AttachTest, WorkerGetsSlotSegmentAndPools) {
  run();
  std::string message;
  Result<Attachment> got = attach(options(), message);
  ASSERT_TRUE(got) << message;
  EXPECT_EQ(got->grant.slot.value, 1);
  EXPECT_EQ(got->pools.size(), 2U);
  EXPECT_EQ(got->pool_bytes, 128U * 64);
  EXPECT_EQ(got->cache_id[0], segment().superblock().cache_id[0]);
  for (const int fd :
       {got->segment.get(), got->pools[0].get(), got->pools[1].get(), got->connection.get()})
    EXPECT_EQ(::fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  Result<Mapping> mapping =
      Mapping::map(got->segment.get(), got->segment_bytes, Access::kReadWrite);
  ASSERT_TRUE(mapping);
  Result<Segment> mine = Segment::open(std::move(*mapping));
  ASSERT_TRUE(mine);
  ASSERT_TRUE(WorkerTable(*mine).confirm(got->grant));
  got->connection = {};
  EXPECT_EQ(state(1), SlotState::kActive);
  EXPECT_STREQ(segment().worker({1}).name, "unit");
  EXPECT_EQ(segment().worker({1}).pid.load(), static_cast<std::uint32_t>(::getpid()));
  EXPECT_TRUE(coordinator_->logs("event=attach worker=1"));
  // Through the same mapping as the coordinator's, so that the thread sanitizer sees what orders
  // the two.
  ASSERT_TRUE(WorkerTable(segment()).leave(got->grant));
  EXPECT_TRUE(eventually([&] { return state(1) == SlotState::kFree; }));
  EXPECT_TRUE(coordinator_->logs("event=detach worker=1"));
  EXPECT_EQ(segment().total(Counter::kReapedWorkers), 0U) << "detaching is not dying";
}

TEST_F(AttachTest, ClosingUnconfirmedGivesTheSlotUp) {
  run();
  std::string message;
  Result<Attachment> got = attach(options(), message);
  ASSERT_TRUE(got) << message;
  EXPECT_EQ(state(1), SlotState::kAttaching);
  got->connection = {};
  EXPECT_TRUE(eventually([&] { return state(1) == SlotState::kFree; }));
  EXPECT_EQ(WorkerTable(segment()).confirm(got->grant).code(), Code::kStale);
}

TEST_F(AttachTest, ClosingConfirmedKeepsTheSlot) {
  run();
  std::string message;
  Result<Attachment> got = attach(options(), message);
  ASSERT_TRUE(got);
  ASSERT_TRUE(WorkerTable(segment()).confirm(got->grant));
  got->connection = {};
  ASSERT_TRUE(ping(address(), message)) << "the loop has seen the close by now";
  ASSERT_TRUE(ping(address(), message));
  EXPECT_EQ(state(1), SlotState::kActive);
}

TEST_F(AttachTest, ObserverGetsReadOnlyDescriptorsAndNoSlot) {
  run();
  AttachOptions observer = options();
  observer.role = WorkerRole::kObserver;
  std::string message;
  const Result<Attachment> got = attach(observer, message);
  ASSERT_TRUE(got) << message;
  EXPECT_EQ(got->grant.slot.value, 0);
  EXPECT_FALSE(Mapping::map(got->segment.get(), got->segment_bytes, Access::kReadWrite));
  EXPECT_TRUE(Mapping::map(got->segment.get(), got->segment_bytes, Access::kReadOnly));
  EXPECT_FALSE(Mapping::map(got->pools[1].get(), got->pool_bytes, Access::kReadWrite));
  EXPECT_EQ(WorkerTable(segment()).stats().slots[0], 3U);
}

TEST_F(AttachTest, FullTableIsRefusedAndServesAgainAfterADetach) {
  run();
  std::vector<Attachment> held;
  std::string message;
  for (int i = 0; i < 3; ++i) {
    Result<Attachment> got = attach(options(), message);
    ASSERT_TRUE(got) << message;
    ASSERT_TRUE(WorkerTable(segment()).confirm(got->grant));
    held.push_back(std::move(*got));
  }
  EXPECT_EQ(attach(options(), message).error().code(), Code::kFull);
  EXPECT_NE(message.find("--workers"), std::string::npos) << message;
  ASSERT_TRUE(WorkerTable(segment()).leave(held[1].grant));
  const Result<Attachment> next = attach(options(), message);
  ASSERT_TRUE(next) << message;
  EXPECT_EQ(next->grant, (SlotGrant{{2}, 2}));
}

TEST_F(AttachTest, EachRefusalSaysWhatToDo) {
  run();
  expect_refused(Code::kRefused, "layout version", [](AttachRequest& r) { r.layout_version += 1; });
  expect_refused(Code::kRefused, "one build", [](AttachRequest& r) { r.struct_fingerprint ^= 1; });
  expect_refused(Code::kRefused, "role 3 is not served", [](AttachRequest& r) { r.role = 3; });
  expect_refused(Code::kRefused, "role 77 is not served", [](AttachRequest& r) { r.role = 77; });
  expect_refused(Code::kInvalid, "name one or more of the 2 planes", [](AttachRequest& r) { r.role = 2; });
  expect_refused(Code::kInvalid, "for plane writers", [](AttachRequest& r) { r.plane_mask = 1; });
  expect_refused(Code::kRefused, "--pid=host", [](AttachRequest& r) { r.pid_namespace += 1; });
  expect_refused(Code::kRefused, "asked for was",
                 [](AttachRequest& r) { put_text(r.cache, "other"); });
  expect_refused(Code::kRefused, "not the one that connected",
                 [](AttachRequest& r) { r.start_time -= 1; });
  expect_refused(Code::kRefused, "one release", [](AttachRequest& r) { r.header.version += 1; });
  expect_refused(Code::kInvalid, "not a request", [](AttachRequest& r) { r.header.magic += 1; });
  expect_refused(Code::kInvalid, "not a request", [](AttachRequest& r) { r.header.bytes -= 1; });
  expect_refused(Code::kInvalid, "unknown request", [](AttachRequest& r) { r.header.kind = 99; });
  expect_refused(Code::kInvalid, "malformed",
                 [](AttachRequest& r) { std::memset(r.name, 'x', sizeof r.name); });
  expect_refused(Code::kInvalid, "malformed", [](AttachRequest& r) { r.header.kind = 2; });
  EXPECT_EQ(segment().total(Counter::kAttachRefused), 15U);
  EXPECT_TRUE(coordinator_->logs("event=refused reason=pid_namespace"));
  EXPECT_EQ(WorkerTable(segment()).stats().slots[0], 3U) << "no refusal costs a slot";
}

// What is answered between the poisoning and the successor; the loop itself ends then.
TEST_F(AttachTest, PoisonedSegmentIsNotHandedOutAndGetsNoNamespaces) {
  Options options;
  options.cache = cache_.name();
  options.directory = cache_.directory();
  options.pages = 64;
  options.page_bytes = 64;
  HostIdentity host;
  ASSERT_FALSE(read_host_identity(host));
  const LogSink log = [](std::string_view) {};
  CacheObjects objects;
  ASSERT_FALSE(open_or_make_cache(options, host, log, objects));
  Reaper reaper(*objects.segment, *objects.device, log);
  ASSERT_FALSE(reaper.start());
  RoomKeeper keeper(*objects.segment, {});
  AdminCalls admin(*objects.segment, keeper, [] { return false; }, log);
  AttachService service(options, objects, reaper, admin, log);
  objects.segment->poison(PoisonReason::kCorruptStructure);

  Peer peer;
  peer.pid = static_cast<std::uint32_t>(::getpid());
  peer.uid = ::geteuid();
  const auto refusal = [&](const auto& request) {
    const Answer answer = service.answer(peer, std::as_bytes(std::span(&request, 1)));
    ReplyHead head{};
    std::memcpy(&head, answer.packet.data(), std::min(sizeof head, answer.packet.size()));
    EXPECT_TRUE(answer.descriptors.empty());
    EXPECT_NE(std::string(head.message).find("attach again"), std::string::npos) << head.message;
    return static_cast<Refusal>(head.refusal);
  };
  EXPECT_EQ(refusal(good_request()), Refusal::kPoisoned);
  auto wish = make_message<NamespaceRequest>(WireKind::kNamespace);
  put_text(wish.fields, "a=1\n");
  wish.fields_bytes = 4;
  EXPECT_EQ(refusal(wish), Refusal::kPoisoned);
}

TEST_F(AttachTest, OtherUsersNeedToBeAllowed) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
  constexpr uid_t kNobody = 65534;
  const auto attach_as_nobody = [&](const std::function<void(Options&)>& change) {
    coordinator_.reset();
    Child child(once_it_runs([&](Line) {
      if (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0) return 50;
      std::string message;
      const Result<Attachment> got = attach(options(), message);
      if (got) return 0;
      return message.find("--allow-uid") != std::string::npos ? 1 : 2;
    }));
    run(change);
    child.line().say();
    return child.wait();
  };
  ASSERT_EQ(::chmod(cache_.directory().c_str(), 0755), 0);
  EXPECT_EQ(attach_as_nobody([](Options& o) { o.mode = 0666; }), 1);
  EXPECT_EQ(attach_as_nobody([](Options& o) {
              o.mode = 0666;
              o.allow_uids = {kNobody};
            }),
            0);
  EXPECT_EQ(attach_as_nobody([](Options& o) {
              o.mode = 0666;
              o.allow_gids = {kNobody};
            }),
            0);
  EXPECT_EQ(attach_as_nobody([](Options& o) { o.allow_uids = {kNobody}; }), 1)
      << "0600: the socket itself is closed to it";
}

TEST_F(AttachTest, ForkedChildOfAConnectionIsNotItsWorker) {
  // The kernel vouches for the process that connected; its child's own start time gives it away,
  // unless both started in the same clock tick.
  Child connects(once_it_runs([&](Line) {
    std::string message;
    Result<WireClient> client = WireClient::connect(address(), message);
    if (!client) return 8;
    Child child([&](Line) {
      AttachRequest request = good_request();
      if (request.start_time == *start_time_of(static_cast<std::uint32_t>(::getppid()))) return 9;
      AttachReply reply{};
      return static_cast<int>(client->call(request, reply, message).code());
    });
    return child.wait();
  }));
  run();
  connects.line().say();
  const int code = connects.wait();
  EXPECT_TRUE(code == static_cast<int>(Code::kRefused) || code == 9) << code;
}

TEST_F(AttachTest, NoCoordinatorFailsAtOnceAndSaysWhatToStart) {
  std::string message;
  EXPECT_EQ(attach(options(), message).error().code(), Code::kNoCoordinator);
  EXPECT_NE(message.find("start it with: kvtried --cache " + cache_.name()), std::string::npos)
      << message;
  run();
  coordinator_.reset();
  EXPECT_EQ(attach(options(), message).error().code(), Code::kNoCoordinator);
  AttachOptions bad = options();
  bad.address.cache = "../x";
  EXPECT_EQ(attach(bad, message).error().code(), Code::kInvalid);
  bad = options();
  bad.address.directory += "/" + std::string(100, 'x');
  EXPECT_EQ(attach(bad, message).error().code(), Code::kInvalid);
}

TEST_F(AttachTest, NamespacesAreFoundOrMade) {
  run();
  std::string message;
  const Result<OpenNamespace> made = request_namespace(address(), "model=m\n", "llama", message);
  ASSERT_TRUE(made) << message;
  const Result<OpenNamespace> found = find_namespace(segment(), "model=m\n");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->root(), made->root());
  EXPECT_EQ(found->hash_seed, made->hash_seed);
  EXPECT_STREQ(segment().name_space(made->id).label, "llama");
  ASSERT_TRUE(request_namespace(address(), "model=m\n", "", message));
  EXPECT_EQ(segment().total(Counter::kNamespacesMade), 1U);
  EXPECT_EQ(request_namespace(address(), "model", "", message).error().code(), Code::kInvalid);
  auto request = make_message<NamespaceRequest>(WireKind::kNamespace);
  const auto refused_request = [&] {
    Result<WireClient> client = WireClient::connect(address(), message);
    NamespaceReply reply{};
    return client->call(request, reply, message).code();
  };
  EXPECT_EQ(refused_request(), Code::kInvalid) << "the coordinator checks too";
  request.fields_bytes = 100'000;
  EXPECT_EQ(refused_request(), Code::kInvalid);
}

TEST_F(AttachTest, StatisticsAreJsonWithTheSums) {
  run();
  segment().count({1}, Counter::kPagesHit, 5);
  segment().count({3}, Counter::kPagesHit, 7);
  std::string message;
  const Result<std::string> text = request_stats(address(), message);
  ASSERT_TRUE(text) << message;
  EXPECT_NE(text->find("\"pages_hit\":12"), std::string::npos) << *text;
  EXPECT_NE(text->find("\"cache\":\"" + cache_.name() + "\""), std::string::npos) << *text;
  EXPECT_EQ(text->front(), '{');
  EXPECT_EQ(text->substr(text->size() - 2), "}}");
}

// A worker that dies holding pages and a lease.
TEST_F(AttachTest, DeathGivesBackPagesAndSlot) {
  Child child(once_it_runs([&](Line line) {
    std::string message;
    Result<Attachment> got = attach(options(), message);
    if (!got) return 1;
    Result<Mapping> mapping =
        Mapping::map(got->segment.get(), got->segment_bytes, Access::kReadWrite);
    if (!mapping) return 2;
    Result<Segment> mine = Segment::open(std::move(*mapping));
    if (!mine || !WorkerTable(*mine).confirm(got->grant)) return 3;
    std::uint32_t cursor = 0;
    std::vector<PageIndex> pages;
    if (FreePages(*mine).take(got->grant.slot, 20, {0}, cursor, pages) != 20) return 4;
    line.say();
    return line.hear() == '+' ? 0 : 5;
  }));
  run();
  child.line().say();
  ASSERT_EQ(child.line().hear(), '+');
  EXPECT_EQ(FreePages(segment()).count(), 108U);
  ASSERT_TRUE(child.stop());
  std::string message;
  ASSERT_TRUE(ping(address(), message));
  EXPECT_EQ(FreePages(segment()).count(), 108U) << "a stopped process loses nothing";
  child.kill();
  EXPECT_TRUE(eventually([&] { return state(1) == SlotState::kFree; }));
  EXPECT_EQ(FreePages(segment()).count(), 128U);
  EXPECT_TRUE(coordinator_->logs("event=reap worker=1"));
  EXPECT_EQ(segment().total(Counter::kReapedWorkers), 1U);
  EXPECT_EQ(segment().total(Counter::kReapedPages), 20U);
}

TEST_F(AttachTest, ProgramThatReplacedAWorkerGetsNothingOfItAndItsPagesComeBack) {
  run();
  std::string message;
  Result<Attachment> before = attach(options(), message);
  ASSERT_TRUE(before) << message;
  ASSERT_TRUE(WorkerTable(segment()).confirm(before->grant));
  std::uint32_t cursor = 0;
  std::vector<PageIndex> pages;
  ASSERT_EQ(FreePages(segment()).take({1}, 20, {128}, cursor, pages), 20U);
  // Another attachment of the same image takes nothing away.
  Result<Attachment> second = attach(options(), message);
  ASSERT_TRUE(second) << message;
  EXPECT_EQ(state(1), SlotState::kActive);
  // As after an execve: the same process, another image.
  AttachRequest request = good_request();
  request.image += 2;
  Result<WireClient> client = WireClient::connect(address(), message);
  ASSERT_TRUE(client) << message;
  AttachReply reply{};
  ASSERT_TRUE(client->call(request, reply, message)) << message;
  EXPECT_EQ(reply.slot, 1U) << "the old slot is free again";
  EXPECT_EQ(FreePages(segment()).count(), 128U);
  EXPECT_TRUE(coordinator_->logs("event=reap_exec worker=1"));
}

TEST_F(AttachTest, SlotWordWrittenOverPoisonsWhenItsWorkerDies) {
  Child child(once_it_runs([&](Line line) {
    std::string message;
    const Result<Attachment> got = attach(options(), message);
    line.say();
    return line.hear() == '+' && got ? 0 : 5;
  }));
  run();
  child.line().say();
  ASSERT_EQ(child.line().hear(), '+');
  segment().worker({1}).slot_state.store(0xEE);
  child.kill();
  EXPECT_TRUE(coordinator_->logs("event=corrupt worker=1"));
  EXPECT_TRUE(eventually([&] { return segment().poisoned(); }));
  EXPECT_TRUE(coordinator_->logs("event=poisoned cache=" + cache_.name() + " reason=2"));
}

}  // namespace
}  // namespace kvtrie
