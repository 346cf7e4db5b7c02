// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a coordinator answers, or does not: killed, stopped, drained, out of reach, with another's namespace in the
// place, with a segment that it gives up at this very moment.

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "shm/admin_client.h"
#include "shm/worker_table.h"
#include "tests/worker_plugin/errors/between.h"
#include "tests/worker_plugin/errors/every_call.h"

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kShortMs = 60;

kvtrie_code attach_to(ErrorWorld& world) {
  const kvtrie_attach_options where = world.options();
  kvtrie_worker attached{7};
  const kvtrie_code code = kvtrie_attach(&where, &attached);
  EXPECT_TRUE(code == KVTRIE_OK || attached.id == 0);
  if (code == KVTRIE_OK) (void)kvtrie_detach(attached);
  return code;
}

kvtrie_code open_new(kvtrie_worker worker) {
  const kvtrie_field field{"model", "new"};
  kvtrie_namespace opened{7};
  const kvtrie_code code = kvtrie_open_namespace(worker, &field, 1, nullptr, &opened);
  EXPECT_TRUE(code == KVTRIE_OK || opened.id == 0);
  return code;
}

kvtrie_code evict(kvtrie_worker worker, kvtrie_namespace of) {
  std::uint64_t evicted = 7;
  const kvtrie_code code = kvtrie_evict(worker, of, 0, &evicted);
  EXPECT_TRUE(code == KVTRIE_OK || evicted == 0);
  return code;
}

// Each call that asks the coordinator.
ErrorCases cases_of_askers(kvtrie_code code, const char* says) {
  return {
      {"kvtrie_attach", code, says, [](ErrorWorld& world) { return attach_to(world); }},
      {"kvtrie_open_namespace", code, says, [](ErrorWorld& world) { return open_new(world.worker); }},
      {"kvtrie_evict", code, says, [](ErrorWorld& world) { return evict(world.worker, world.space); }},
      {"kvtrie_flush", code, says, [](ErrorWorld& world) { return kvtrie_flush(world.worker, world.space); }},
  };
}

// While it lives this process may not reach the cache's socket: as another user, or, without root, behind a directory
// that is shut.
class OutOfReach {
 public:
  explicit OutOfReach(const TemporaryCache& cache) : directory_(cache.directory()), root_(::geteuid() == 0) {
    const int rc = root_ ? ::seteuid(65534) : ::chmod(directory_.c_str(), 0);
    EXPECT_EQ(rc, 0);
  }
  OutOfReach(const OutOfReach&) = delete;
  OutOfReach& operator=(const OutOfReach&) = delete;
  ~OutOfReach() {
    const int rc = root_ ? ::seteuid(0) : ::chmod(directory_.c_str(), 0700);
    EXPECT_EQ(rc, 0);
  }

 private:
  std::string directory_;
  bool root_;
};

bool sleeps(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string id, name, state;
  return stat >> id >> name >> state && state == "S";
}

kvtrie_code attach_behind(ErrorWorld& world, Between::Actions actions) {
  const Between between(world.cache(), std::move(actions));
  world.directory = between.directory();
  const kvtrie_code code = attach_to(world);
  world.directory = world.cache().directory();
  return code;
}

}  // namespace

ErrorCases no_coordinator_cases() {
  return cases_of_askers(KVTRIE_E_NO_COORDINATOR,
                         "no coordinator for cache '*nobody answers on *start it with: kvtried --cache ");
}

ErrorCases silent_coordinator_cases() {
  return cases_of_askers(
      KVTRIE_E_TIMEOUT,
      "the coordinator of cache '*did not answer within 60 ms; see whether kvtried is stopped or busy");
}

ErrorCases refusing_coordinator_cases() {
  ErrorCases cases = {
      {"kvtrie_attach", KVTRIE_E_REFUSED, "cache '*an operator drains it*kvtrie drain --undo ends that",
       [](ErrorWorld& world) { return attach_to(world); }},
      {"kvtrie_open_namespace", KVTRIE_E_REFUSED, "cache '*an operator drains it*kvtrie drain --undo ends that",
       [](ErrorWorld& world) { return open_new(world.worker); }},
  };
  for (ErrorCase& one :
       cases_of_askers(KVTRIE_E_REFUSED,
                       "not allowed to connect to /*run as the coordinator's user, or start kvtried with --mode")) {
    cases.push_back({one.call, one.code, one.says, [ask = one.provoke](ErrorWorld& world) {
                       const OutOfReach out_of_reach(world.cache());
                       return ask(world);
                     }});
  }
  return cases;
}

ErrorCases other_owner_cases() {
  const char* const says =
      "cache '*namespace 0 is not open, or was given to another model meanwhile*an engine opens it again";
  return {
      {"kvtrie_evict", KVTRIE_E_NOT_FOUND, says, [](ErrorWorld& world) { return evict(world.worker, world.space); }},
      {"kvtrie_flush", KVTRIE_E_NOT_FOUND, says,
       [](ErrorWorld& world) { return kvtrie_flush(world.worker, world.space); }},
      {"kvtrie_begin", KVTRIE_E_STALE, "the namespace was unused and its place given to another: open it again",
       [](ErrorWorld& world) {
         auto result = sized<kvtrie_begin_result>();
         kvtrie_sequence begun{7};
         return kvtrie_begin(world.worker, world.space, nullptr, 0, nullptr, &result, &begun);
       }},
  };
}

// Answers to attach that are not what a coordinator says when all is well.
ErrorCases odd_answer_cases() {
  return {
      {"kvtrie_attach", KVTRIE_E_STALE, "cache '*the coordinator gave the worker slot up meanwhile; attach again",
       [](ErrorWorld& world) {
         return attach_behind(world, {.on_reply = [&](Between::Packet&, FileDescriptor& server) {
                                server = {};  // as if this process had been stopped for too long
                                world.settle();
                              }});
       }},
      {"kvtrie_attach", KVTRIE_E_CORRUPT, "cache '*the coordinator's answer to attach makes no sense",
       [](ErrorWorld& world) {
         return attach_behind(world, {.on_reply = [](Between::Packet& packet, FileDescriptor&) {
                                AttachReply reply{};
                                std::memcpy(&reply, packet.data(), sizeof reply);
                                reply.pool_count = 1;
                                std::memcpy(packet.data(), &reply, sizeof reply);
                              }});
       }},
      {"kvtrie_attach", KVTRIE_E_CORRUPT, "cache '*superblock checksum does not match",
       [](ErrorWorld& world) {
         world.segment().superblock().tick_ns ^= 1;
         const kvtrie_code code = attach_to(world);
         world.segment().superblock().tick_ns ^= 1;
         return code;
       }},
      {"kvtrie_attach", KVTRIE_E_REFUSED, "cache '*the coordinator's answer is of another version",
       [](ErrorWorld& world) {
         return attach_behind(world, {.on_reply = [](Between::Packet& packet, FileDescriptor&) {
                                WireHeader header{};
                                std::memcpy(&header, packet.data(), sizeof header);
                                ++header.version;
                                std::memcpy(packet.data(), &header, sizeof header);
                              }});
       }},
      {"kvtrie_attach", KVTRIE_E_NO_COORDINATOR, "closed the connection without an answer: it stopped*try again",
       [](ErrorWorld& world) {
         return attach_behind(world, {.on_reply = [](Between::Packet& packet, FileDescriptor&) { packet.clear(); }});
       }},
  };
}

// The segment is given up when the coordinator has the connection and not yet the request: the last that it answers.
ErrorCases poisoned_coordinator_cases() {
  return cases_of_askers(KVTRIE_E_POISONED, "cache '*the segment was given up*");
}

namespace {

TEST(AbiErrorsTest, CoordinatorThatDied) {
  ErrorWorld world({}, kShortMs);
  world.kill_daemon();
  world.run(no_coordinator_cases());
}

TEST(AbiErrorsTest, CoordinatorThatIsStopped) {
  ErrorWorld world({}, kShortMs);
  world.daemon().send(SIGSTOP);
  world.run(silent_coordinator_cases());
  world.daemon().send(SIGCONT);
}

TEST(AbiErrorsTest, CoordinatorThatSaysNo) {
  ErrorWorld world;
  std::string message;
  ASSERT_TRUE(request_drain({world.cache().directory(), world.cache().name()}, false, message)) << message;
  world.run(refusing_coordinator_cases());
}

TEST(AbiErrorsTest, NamespaceWhosePlaceIsAnothers) {
  ErrorWorld world({"--namespaces", "1"});
  // Its pages are gone, so its place goes to who asks next.
  EXPECT_EQ(kvtrie_release(world.sequence), KVTRIE_OK);
  EXPECT_EQ(evict(world.worker, world.space), KVTRIE_OK) << kvtrie_last_error();
  const kvtrie_worker other = world.attach();
  world.sequence = world.allocated(other, world.open(other, "another"), prompt(4, 2), kPageTokens);
  world.run(other_owner_cases());
}

TEST(AbiErrorsTest, AnswersThatMakeNoSense) {
  ErrorWorld world;
  world.run(odd_answer_cases());
}

TEST(AbiErrorsTest, SegmentThatIsGivenUpWhileTheCoordinatorIsAsked) {
  for (const ErrorCase& one : poisoned_coordinator_cases()) {
    ErrorWorld world;
    bool armed = false;
    // While it sleeps and without a ring of its bell: it wakes for the request, and looks at its segment afterwards.
    const auto give_up = [&] {
      if (!armed) return;
      EXPECT_TRUE(eventually([&] { return sleeps(world.daemon().pid()); }));
      world.segment().superblock().poison_reason = static_cast<std::uint32_t>(PoisonReason::kOperator);
      world.segment().superblock().poison_state = 1;
    };
    const Between between(world.cache(), {.before_request = give_up});
    world.directory = between.directory();
    world.worker = world.attach();
    world.space = world.open(world.worker, "model");
    armed = true;
    world.run({one});
    armed = false;
  }
}

}  // namespace
}  // namespace kvtrie::test
