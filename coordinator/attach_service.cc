// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/attach_service.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "coordinator/admin.h"
#include "shm/process_identity.h"

namespace kvtrie {
namespace {

constexpr std::uint32_t kRefusalsLoggedASecond = 20;

template <typename Message>
std::vector<std::byte> packet_of(const Message& message) {
  const auto bytes = std::as_bytes(std::span(&message, 1));
  return {bytes.begin(), bytes.end()};
}

constexpr char kPidNamespaceHelp[] =
    "locks do not work between two PID namespaces: run both in one (docker --pid=host or "
    "--pid=container:..., "
    "Kubernetes hostPID: true or shareProcessNamespace: true)";

template <typename... Kinds>
constexpr bool is_any_of(WireKind kind, Kinds... kinds) {
  return ((kind == kinds) || ...);
}

}  // namespace

AttachService::AttachService(const Options& options, const CacheObjects& cache, Reaper& reaper,
                             AdminCalls& admin, const LogSink& log)
    : options_(options),
      cache_(cache),
      segment_(*cache.segment),
      table_(segment_),
      namespaces_(segment_, [this] { (void)reaper_.reap_dead(); }),
      reaper_(reaper),
      admin_(admin),
      log_(log),
      log_refused_(limited_log(log, kRefusalsLoggedASecond)) {
  namespaces_.recover();
}

Answer AttachService::refuse(const Peer& peer, const No& no) {
  auto head = make_message<ReplyHead>(WireKind::kReply);
  head.refusal = static_cast<std::uint32_t>(no.refusal);
  put_text(head.message, fmt::format("cache '{}': {}", options_.cache, no.text));
  segment_.count(kCoordinatorSlot, Counter::kAttachRefused);
  log_refused_(fmt::format("event=refused reason={} pid={} uid={} gid={}", name_of(no.refusal), peer.pid,
                           peer.uid, peer.gid));
  return {packet_of(head), {}, {}, true};
}

std::optional<Answer> AttachService::greet(const Peer& peer) {
  const auto in = [](const auto& list, std::uint32_t id) {
    return std::ranges::find(list, id) != list.end();
  };
  const bool allowed = peer.uid == 0 || peer.uid == ::geteuid() ||
                       in(options_.allow_uids, peer.uid) || in(options_.allow_gids, peer.gid) ||
                       std::ranges::any_of(peer.groups, [&](std::uint32_t group) {
                         return in(options_.allow_gids, group);
                       });
  if (allowed) return std::nullopt;
  return refuse(peer,
                {Refusal::kNotAllowed,
                 fmt::format("uid {} gid {} may not attach; start kvtried with --allow-uid {} or "
                             "--allow-gid {} (and a --mode that lets them open the segment)",
                             peer.uid, peer.gid, peer.uid, peer.gid)});
}

AttachService::No AttachService::protocol_problem(std::span<const std::byte> packet) const {
  WireHeader header;
  if (packet.size() < sizeof header) {
    return {Refusal::kBadRequest, "this is not a request of a kvtrie client"};
  }
  std::memcpy(&header, packet.data(), sizeof header);
  if (header.magic != kWireMagic || header.bytes != packet.size()) {
    return {Refusal::kBadRequest, "this is not a request of a kvtrie client"};
  }
  if (header.version != kWireVersion) {
    return {Refusal::kProtocol,
            fmt::format(
                "the client speaks protocol version {}, this coordinator {}: install plugin and "
                "kvtried of one release",
                header.version, kWireVersion)};
  }
  // Namespaces and pages that it names are of another segment: what was done to ours would not be what it asked for.
  // An attach says more by itself; ping, statistics, drain and stop are of the process.
  const bool of_segment = is_any_of(static_cast<WireKind>(header.kind), WireKind::kNamespace, WireKind::kEvict,
                                    WireKind::kFlush, WireKind::kPin, WireKind::kUnpin);
  if (of_segment && header.layout_version != 0 && header.layout_version != kLayoutVersion) {
    return {Refusal::kLayout,
            fmt::format("the segment here has layout version {}, the one of who asks has {}: a kvtried of another "
                        "release has taken over; attach anew with plugin and tools of its release",
                        kLayoutVersion, header.layout_version)};
  }
  return {};
}

Answer AttachService::answer(const Peer& peer, std::span<const std::byte> packet) {
  (void)reaper_.reap_dead();  // one serve() answers many packets
  if (No no = protocol_problem(packet); no.refusal != Refusal::kNone) return refuse(peer, no);
  WireHeader header;
  std::memcpy(&header, packet.data(), sizeof header);
  const auto kind = static_cast<WireKind>(header.kind);
  if (AdminCalls::knows(kind)) return administer(peer, kind, packet);
  switch (kind) {
    case WireKind::kAttach:
      return attach(peer, packet);
    case WireKind::kNamespace:
      return open_namespace(peer, packet);
    case WireKind::kPing:
      return text_reply("pong");
    case WireKind::kStats:
      return text_reply(stats_json(segment_));
    default:
      break;
  }
  return refuse(peer, {Refusal::kBadRequest, fmt::format("unknown request {}", header.kind)});
}

Answer AttachService::administer(const Peer& peer, WireKind kind,
                                 std::span<const std::byte> packet) {
  auto answer = admin_.answer(peer, kind, packet);
  if (const No* no = std::get_if<Refused>(&answer)) return refuse(peer, *no);
  return {std::get<AdminCalls::Reply>(std::move(answer)), {}, {}, false};
}

AttachService::No AttachService::build_problem(const AttachRequest& request) const {
  if (get_text(request.cache) != options_.cache) {
    return {Refusal::kOtherCache,
            fmt::format("the socket is this cache's, asked for was '{}': check the directory",
                        log_value(get_text(request.cache)))};
  }
  if (request.layout_version != kLayoutVersion) {
    return {Refusal::kLayout,
            fmt::format("the segment has layout version {}, the plugin knows {}: install plugin "
                        "and kvtried of one release",
                        kLayoutVersion, request.layout_version)};
  }
  if (request.struct_fingerprint != struct_fingerprint()) {
    return {Refusal::kFingerprint,
            "plugin and coordinator were built with other struct sizes (compiler, C library or "
            "release): install "
            "both from one build"};
  }
  const auto role = static_cast<WorkerRole>(request.role);
  if (role != WorkerRole::kWorker && role != WorkerRole::kObserver && role != WorkerRole::kPlaneWriter) {
    return {Refusal::kRoleNotServed,
            fmt::format("role {} is not served; there are worker, observer and plane_writer", request.role)};
  }
  return {};
}

AttachService::No AttachService::writer_problem(const AttachRequest& request) const {
  if (static_cast<WorkerRole>(request.role) != WorkerRole::kPlaneWriter) {
    if (request.plane_mask == 0 && request.scheduler == 0) return {};
    return {Refusal::kBadRequest, "a plane mask and a scheduler are for plane writers"};
  }
  const std::uint32_t planes = segment_.geometry().planes;
  const std::uint64_t there = planes == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << planes) - 1;
  if (request.plane_mask == 0 || (request.plane_mask & ~there) != 0) {
    return {Refusal::kBadRequest,
            fmt::format("plane mask {:#x}: name one or more of the {} planes, bit 0 is plane 0", request.plane_mask,
                        planes)};
  }
  const SlotGrant scheduler = WorkerTag{request.scheduler}.grant();
  const SlotWord active = SlotWord::make(SlotState::kActive, scheduler.incarnation);
  const auto worker = static_cast<std::uint32_t>(WorkerRole::kWorker);
  if (scheduler.slot.value == 0 || scheduler.slot.value >= segment_.slot_count() ||
      table_.word(scheduler.slot) != active ||
      segment_.worker(scheduler.slot).role.load(std::memory_order_relaxed) != worker) {
    return {Refusal::kBadRequest,
            fmt::format("scheduler {:#x} is not an attached worker: give the id (kvtrie_worker_id) of the worker "
                        "that allocates and publishes the pages, while it is attached",
                        request.scheduler)};
  }
  return {};
}

Access AttachService::access_to(const AttachRequest& request, std::uint32_t plane) {
  switch (static_cast<WorkerRole>(request.role)) {
    case WorkerRole::kWorker:
      return Access::kReadWrite;
    case WorkerRole::kPlaneWriter:
      return (request.plane_mask >> plane & 1) != 0 ? Access::kReadWrite : Access::kReadOnly;
    default:
      return Access::kReadOnly;
  }
}

AttachService::No AttachService::place_problem(const Peer& peer,
                                               const AttachRequest& request) const {
  const Result<bool> same = in_own_pid_namespace(peer.pid);
  if (!same && same.error().code() != Code::kNotFound) {
    return {Refusal::kIdentity, fmt::format("cannot look at process {} in /proc ({}): mount /proc "
                                            "without hidepid, or run kvtried as "
                                            "root or as the worker's user",
                                            peer.pid, same.error().what())};
  }
  if (!same) return {Refusal::kIdentity, fmt::format("process {} is gone", peer.pid)};
  if (!*same || request.pid_namespace != segment_.superblock().pid_namespace) {
    return {Refusal::kPidNamespace,
            fmt::format("the worker runs in another PID namespace than kvtried; {}",
                        kPidNamespaceHelp)};
  }
  if (segment_.poisoned()) {
    return {
        Refusal::kPoisoned,
        fmt::format(
            "the segment was given up as broken (reason {}): kvtried is making its successor, attach again",
            segment_.superblock().poison_reason.load(std::memory_order_relaxed))};
  }
  if (admin_.draining()) {
    return {Refusal::kDraining,
            "an operator drains it: nobody new may attach; kvtrie drain --undo ends that"};
  }
  return {};
}

Answer AttachService::attach(const Peer& peer, std::span<const std::byte> packet) {
  AttachRequest request{};
  if (!read_message(packet, request) || !text_ends(request.cache) || !text_ends(request.name)) {
    return refuse(peer, {Refusal::kBadRequest, "the attach request is malformed"});
  }
  if (No no = build_problem(request); no.refusal != Refusal::kNone) return refuse(peer, no);
  if (No no = place_problem(peer, request); no.refusal != Refusal::kNone) return refuse(peer, no);
  if (No no = writer_problem(request); no.refusal != Refusal::kNone) return refuse(peer, no);
  const auto role = static_cast<WorkerRole>(request.role);
  if (role == WorkerRole::kObserver) return attached(peer, request, {});
  return grant(peer, request, role);
}

Answer AttachService::grant(const Peer& peer, const AttachRequest& request, WorkerRole role) {
  Result<FileDescriptor> pidfd = open_pidfd_of(peer.pid, request.start_time);
  if (!pidfd && pidfd.error().code() == Code::kNotFound) {
    return refuse(
        peer,
        {Refusal::kIdentity,
         fmt::format("process {} is not the one that connected (forked since, or another time "
                     "namespace): connect from the process that attaches",
                     peer.pid)});
  }
  if (!pidfd) {
    return refuse(
        peer,
        {Refusal::kInternal,
         fmt::format("the coordinator cannot watch process {} ({}): raise its limit of open files "
                     "(LimitNOFILE)",
                     peer.pid, pidfd.error().what())});
  }
  // The request is of that process: its pidfd was opened by the kernel's word of the peer.
  reaper_.reap_other_images(peer.pid, request.start_time, request.image);
  // A worker that just left may be the one that makes room.
  Result<SlotGrant> slot = Status{Code::kFull, ""};
  for (int attempt = 0; attempt < 2 && !slot; ++attempt) {
    if (attempt == 1 && reaper_.reap_dead() + reaper_.reap_leaving() == 0) break;
    slot = table_.give({peer.pid, request.start_time, peer.uid, role, get_text(request.name), request.plane_mask,
                        request.image, WorkerTag{request.scheduler}.grant().slot},
                       [this](WorkerId one) { return reaper_.watches(one); });
  }
  if (!slot) {
    return refuse(
        peer,
        {Refusal::kTableFull,
         fmt::format("all {} worker slots are taken: detach workers, or make the cache anew with "
                     "more --workers",
                     segment_.geometry().workers)});
  }
  if (MaybeFailure failure = reaper_.watch(*slot, std::move(*pidfd))) {
    reaper_.give_up(*slot);
    return refuse(peer, {Refusal::kInternal, failure->text});
  }
  return attached(peer, request, *slot);
}

Answer AttachService::attached(const Peer& peer, const AttachRequest& request, SlotGrant grant) const {
  const bool observes = static_cast<WorkerRole>(request.role) == WorkerRole::kObserver;
  const Device& device = *cache_.device;
  auto reply = make_message<AttachReply>(WireKind::kReply);
  reply.slot = grant.slot.value;
  reply.incarnation = grant.incarnation;
  reply.pool_count = device.plane_count();
  reply.segment_bytes = segment_.size_bytes();
  reply.pool_bytes = device.plane_bytes();
  reply.queue_count = device.queue_descriptor() >= 0 && !observes ? 1 : 0;
  std::copy_n(segment_.superblock().cache_id, 2, reply.cache_id);
  Answer answer;
  answer.packet = packet_of(reply);
  answer.descriptors.push_back(observes ? cache_.segment_read_only.get() : cache_.segment_writable.get());
  for (std::uint32_t plane = 0; plane < device.plane_count(); ++plane) {
    answer.descriptors.push_back(device.descriptor(plane, access_to(request, plane)));
  }
  if (reply.queue_count == 1) answer.descriptors.push_back(device.queue_descriptor());
  if (grant.slot.value != 0) answer.unconfirmed = grant;
  log_(fmt::format("event=attach worker={} pid={} uid={} role={} name={}", grant.slot.value,
                   peer.pid, peer.uid, name_of(static_cast<WorkerRole>(request.role)),
                   log_value(get_text(request.name))));
  return answer;
}

Answer AttachService::open_namespace(const Peer& peer, std::span<const std::byte> packet) {
  NamespaceRequest request{};
  if (!read_message(packet, request) || request.fields_bytes > sizeof request.fields ||
      !text_ends(request.label)) {
    return refuse(peer, {Refusal::kBadRequest, "the namespace request is malformed"});
  }
  if (segment_.poisoned()) {
    return refuse(peer,
                  {Refusal::kPoisoned, "the segment was given up as broken: detach and attach again"});
  }
  const std::string_view fields(request.fields, request.fields_bytes);
  if (std::string problem = namespace_fields_problem(fields); !problem.empty()) {
    return refuse(peer, {Refusal::kNamespaceInvalid, problem});
  }
  if (admin_.draining() && !find_namespace(segment_, fields)) {
    return refuse(peer, {Refusal::kDraining,
                         "an operator drains it: no new namespaces; kvtrie drain --undo ends that"});
  }
  const std::uint64_t made_before = segment_.total(Counter::kNamespacesMade);
  const Result<OpenNamespace> opened = namespaces_.open(fields, get_text(request.label));
  if (!opened) {
    return refuse(
        peer,
        {Refusal::kNamespacesFull,
         fmt::format("all {} namespaces are taken and have pages: make the cache anew with more "
                     "--namespaces",
                     segment_.namespace_count())});
  }
  if (segment_.total(Counter::kNamespacesMade) != made_before) {
    log_(fmt::format("event=namespace id={} label={} pid={}", opened->id.value,
                     log_value(get_text(request.label)), peer.pid));
  }
  auto reply = make_message<NamespaceReply>(WireKind::kReply);
  reply.id = opened->id.value;
  reply.root_generation = opened->root_generation;
  reply.hash_seed = opened->hash_seed;
  reply.fields_hash = opened->fields_hash;
  return {packet_of(reply), {}, {}, false};
}

Answer AttachService::text_reply(const std::string& text) const {
  auto reply = make_message<TextReply>(WireKind::kReply);
  put_text(reply.text, text);
  reply.text_bytes = static_cast<std::uint32_t>(std::min(text.size(), sizeof reply.text - 1));
  return {packet_of(reply), {}, {}, false};
}

}  // namespace kvtrie
