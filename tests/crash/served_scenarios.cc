// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The coordinator is the victim: kvtried's own parts, from the packet in their socket, or a death that the kernel
// reported, to the answer.

#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "shm/admin_wire.h"
#include "shm/geometry.h"
#include "shm/page_table.h"
#include "shm/pins.h"
#include "shm/process_identity.h"
#include "shm/recovery.h"
#include "shm/runtime_directory.h"
#include "shm/worker_table.h"
#include "tests/crash/plugin_scenarios.h"
#include "tests/crash/world_coordinator.h"

namespace kvtrie::test {
namespace {

// A process that has the victim's slot in stories in which that one's worker dies.
class Holder {
 public:
  ~Holder() { kill(); }
  void start() {
    kill();
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) ::pause();
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    (void)::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

struct Tracer {
  Holder holder;
  FileDescriptor client;
  Handle pinned{};
} tracer;

// The victim's.
std::unique_ptr<WorldCoordinator> served;

std::uint64_t start_time(pid_t pid) {
  const Result<std::uint64_t> found = start_time_of(static_cast<std::uint32_t>(pid));
  if (!found) throw Violation("start time");
  return *found;
}

void give_to(CrashWorld& world, WorkerId slot, pid_t pid) {
  WorkerRecord& record = world.segment().worker(slot);
  record.pid.store(static_cast<std::uint32_t>(pid));
  record.start_time.store(start_time(pid));
}

// Survivors are this process; the victim's slot is free, or a holder's.
void set_up(CrashWorld& world, bool held) {
  tracer.client = {};
  (void)socket_directory();  // made by the tracer, so that it is there for all victims
  for (const std::uint16_t slot : {kSurvivor, kOtherSurvivor}) give_to(world, WorkerId{slot}, ::getpid());
  if (held) {
    tracer.holder.start();
    give_to(world, kVictimSlot, tracer.holder.pid());
  } else if (!reap_slot(world.segment(), kVictimSlot, WorkerTable(world.segment()).word(kVictimSlot), false)) {
    throw Violation("the slot is not free");
  }
}

// A packet that waits in the socket, whatever becomes of its coordinator.
template <typename Request>
void send(const Request& request) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  const std::string path = socket_path(socket_directory(), "crash");
  std::copy(path.begin(), path.end(), name.sun_path);
  tracer.client = FileDescriptor(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const int fd = tracer.client.get();
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name) != 0 ||
      ::send(fd, &request, sizeof request, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof request)) {
    throw Violation("the coordinator does not listen");
  }
}

void send_attach(CrashWorld&) {
  auto request = make_message<AttachRequest>(WireKind::kAttach);
  request.start_time = start_time(::getpid());
  request.image = own_image();
  const Result<std::uint64_t> pid_namespace = own_pid_namespace();
  if (!pid_namespace) throw Violation("PID namespace");
  request.pid_namespace = *pid_namespace;
  request.layout_version = kLayoutVersion;
  request.struct_fingerprint = struct_fingerprint();
  put_text(request.cache, "crash");
  put_text(request.name, "newcomer");
  send(request);
}

void send_namespace(CrashWorld&) {
  auto request = make_message<NamespaceRequest>(WireKind::kNamespace);
  const std::string_view fields = "model=other\n";
  request.fields_bytes = static_cast<std::uint32_t>(fields.size());
  std::copy(fields.begin(), fields.end(), request.fields);
  send(request);
}

void send_evict(CrashWorld&) { send(make_message<EvictRequest>(WireKind::kEvict)); }

void send_flush(CrashWorld& world) {
  auto request = make_message<FlushRequest>(WireKind::kFlush);
  request.fields_hash = world.view().name_space().fields_hash;
  send(request);
}

void send_pin(CrashWorld&) {
  auto request = make_message<PinRequest>(WireKind::kPin);
  request.page = tracer.pinned.raw;
  put_text(request.reason, "because");
  send(request);
}

void send_unpin(CrashWorld&) {
  auto request = make_message<UnpinRequest>(WireKind::kUnpin);
  request.page = tracer.pinned.raw;
  send(request);
}

void listen(Victim& v) {
  served = std::make_unique<WorldCoordinator>(v.objects, DeviceKind::kHost, socket_directory());
  served->adopt();
}

void answer(Victim&) {
  if (!served->serve()) throw Violation("nothing came");
  while (served->serve()) {
  }
  served->turn();
}

SlotState state_of_slot(const Segment& segment) { return WorkerTable(segment).word(kVictimSlot).state(); }

void end_pins(CrashWorld& world) {
  for (const Pin& left : PinTable(world.segment()).list()) {
    if (!PinTable(world.segment()).unpin(left.number, left.page)) throw Violation("a pin that cannot be ended");
  }
}

// Cached {1, 2}, whose deepest page is known.
void cached_12(CrashWorld& world) {
  set_up(world, false);
  world.cache(kSurvivor, {1, 2});
  tracer.pinned = world.handle_of({1, 2});
}

// The holder has announced pages and leases.
void held_pages(CrashWorld& world) {
  set_up(world, true);
  world.cache(kSurvivor, {1});
  Engine scheduler(world.view(), kVictimSlot);
  Sequence pending;
  (void)scheduler.prepare(pending, {1, 2, 3});
}

void its_holder_dies(CrashWorld&) { tracer.holder.kill(); }

void must_be_free(Victim& v) {
  if (state_of_slot(v.segment()) != SlotState::kFree) throw Violation("the slot is not free");
}

}  // namespace

std::vector<Scenario> served_scenarios() {
  std::vector<Scenario> all{
      {.name = "kvtried.attach",
       .setup = [](CrashWorld& w) { set_up(w, false); },
       .meanwhile = send_attach,
       .operate =
           [](Victim& v) {
             answer(v);
             if (state_of_slot(v.segment()) != SlotState::kAttaching) throw Violation("no slot was given");
           }},
      {.name = "kvtried.namespace", .setup = [](CrashWorld& w) { set_up(w, false); }, .meanwhile = send_namespace},
      {.name = "kvtried.detach",
       .setup = held_pages,
       .meanwhile =
           [](CrashWorld& w) {
             const WorkerTable table(w.segment());
             if (!table.leave({kVictimSlot, table.word(kVictimSlot).incarnation()})) throw Violation("leave");
           },
       .operate =
           [](Victim& v) {
             served->turn();
             must_be_free(v);
           },
       .cached = {{1}}},
      {.name = "kvtried.reap",
       .setup = held_pages,
       .meanwhile = its_holder_dies,
       .operate =
           [](Victim& v) {
             served->turn();
             must_be_free(v);
           },
       .cached = {{1}},
       .dead = {kVictimSlot}},
      {.name = "kvtried.adopt",  // a worker that died meanwhile, and an eviction that was half done
       .setup =
           [](CrashWorld& w) {
             held_pages(w);
             w.cache(kSurvivor, {7, 8});
             if (!PageTable(w.segment()).move(w.handle_of({7, 8}), PageState::kLive, PageState::kCondemned)) {
               throw Violation("condemn");
             }
           },
       .prepare =
           [](Victim& v) {
             served = std::make_unique<WorldCoordinator>(v.objects, DeviceKind::kHost, socket_directory());
           },
       .meanwhile = its_holder_dies,
       .operate =
           [](Victim& v) {
             served->adopt();
             must_be_free(v);
           },
       .cached = {{1}, {7, 8}},
       .dead = {kVictimSlot}},
      {.name = "kvtried.evict",
       .setup = cached_12,
       .meanwhile = send_evict,
       .cached = {{1, 2}},
       .may_go = {{1, 2}, {1}},
       .done_go = {{1, 2}, {1}}},
      {.name = "kvtried.flush",
       .setup = cached_12,
       .meanwhile = send_flush,
       .cached = {{1, 2}},
       .may_go = {{1, 2}, {1}},
       .done_go = {{1, 2}, {1}},
       .again = {3},
       .recovered =
           [](CrashWorld& w) {
             RoomKeeper keeper(w.segment(), {0, 0});
             (void)keeper.pass([] { return false; });
           }},
      {.name = "kvtried.pin",
       .setup = cached_12,
       .meanwhile = send_pin,
       .operate =
           [](Victim& v) {
             answer(v);
             if (PinTable(v.segment()).list().size() != 1) throw Violation("no pin");
           },
       .cached = {{1, 2}},
       .recovered = end_pins},
      {.name = "kvtried.unpin",
       .setup =
           [](CrashWorld& w) {
             cached_12(w);
             if (!PinTable(w.segment()).pin(tracer.pinned, "because", 0)) throw Violation("pin");
           },
       .meanwhile = send_unpin,
       .operate =
           [](Victim& v) {
             answer(v);
             if (!PinTable(v.segment()).list().empty()) throw Violation("the pin stays");
           },
       .cached = {{1, 2}},
       .recovered = end_pins},
  };
  for (Scenario& one : all) {
    one.role = Role::kCoordinator;
    if (!one.prepare) one.prepare = listen;
    if (!one.operate) one.operate = answer;
    if (one.again.empty()) one.again = {1, 2, 3};
    for (Paths* paths : {&one.cached, &one.may_come, &one.done_come}) *paths = prefixes_of(*paths);
  }
  return all;
}

}  // namespace kvtrie::test
