// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/admin_calls.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "shm/page_table.h"

namespace kvtrie {
namespace {

constexpr auto kPinsLook = std::chrono::seconds(1);

template <WireMessage Message>
std::vector<std::byte> bytes_of(const Message& message) {
  const auto bytes = std::as_bytes(std::span(&message, 1));
  return {bytes.begin(), bytes.end()};
}

std::vector<std::byte> done() { return bytes_of(make_message<ReplyHead>(WireKind::kReply)); }

Refused malformed(const char* what) {
  return {Refusal::kBadRequest, fmt::format("the {} request is malformed", what)};
}

Refused no_such_namespace(std::uint32_t id) {
  return {Refusal::kNoSuchNamespace,
          fmt::format(
              "namespace {} is not open, or was given to another model meanwhile: look again with "
              "kvtrie tree --depth 0 (an engine opens it again)",
              id)};
}

const char* name_of_call(WireKind kind) {
  switch (kind) {
    case WireKind::kEvict:
      return "evict";
    case WireKind::kFlush:
      return "flush";
    case WireKind::kPin:
      return "pin";
    case WireKind::kUnpin:
      return "unpin";
    case WireKind::kDrain:
      return "drain";
    case WireKind::kStop:
      return "stop";
    default:
      return nullptr;
  }
}

}  // namespace

bool AdminCalls::knows(WireKind kind) { return name_of_call(kind) != nullptr; }

std::variant<AdminCalls::Reply, Refused> AdminCalls::answer(const Peer& peer, WireKind kind,
                                                            std::span<const std::byte> packet) {
  if (std::optional<Refused> problem = permission_problem(peer, kind)) return *std::move(problem);
  if (segment_.poisoned() && kind != WireKind::kStop) {
    return Refused{Refusal::kPoisoned,
                   "the segment was given up as broken: kvtried is making its successor"};
  }
  switch (kind) {
    case WireKind::kEvict:
      return evict(peer, packet);
    case WireKind::kFlush:
      return flush(peer, packet);
    case WireKind::kPin:
      return pin(peer, packet);
    case WireKind::kUnpin:
      return unpin(peer, packet);
    case WireKind::kDrain:
      return drain(peer, packet);
    default:
      return stop(peer, packet);
  }
}

std::optional<Refused> AdminCalls::permission_problem(const Peer& peer, WireKind kind) const {
  if (admin(peer)) return std::nullopt;
  const bool for_workers = kind == WireKind::kEvict || kind == WireKind::kFlush;
  if (for_workers && attached(peer)) return std::nullopt;
  return Refused{Refusal::kAdminOnly,
                 fmt::format("{} is for root and for uid {}, as whom kvtried runs{}; uid {} asked",
                             name_of_call(kind), ::geteuid(),
                             for_workers ? ", and for attached workers" : "", peer.uid)};
}

bool AdminCalls::admin(const Peer& peer) { return peer.uid == 0 || peer.uid == ::geteuid(); }

// The kernel vouches for the pid, and a dead worker's slot was reaped before this request was
// looked at.
bool AdminCalls::attached(const Peer& peer) const {
  const WorkerTable table(segment_);
  for (std::uint32_t i = 1; i < segment_.slot_count() && peer.pid != 0; ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    if (table.word(slot).state() == SlotState::kActive &&
        segment_.worker(slot).pid.load(std::memory_order_relaxed) == peer.pid) {
      return true;
    }
  }
  return false;
}

std::variant<AdminCalls::Reply, Refused> AdminCalls::evict(const Peer& peer,
                                                           std::span<const std::byte> packet) {
  EvictRequest request{};
  if (!read_message(packet, request) || request.one_namespace > 1) return malformed("evict");
  EvictChoice choice;
  if (request.one_namespace != 0) {
    choice = {EvictChoice::Of::kNamespace, {static_cast<std::uint16_t>(request.name_space)}};
    if (!namespaces_.holds(request.name_space, request.fields_hash))
      return no_such_namespace(request.name_space);
  }
  const std::uint64_t wanted = request.pages_max == 0 ? segment_.page_count() : request.pages_max;
  std::optional<EvictLeft> left;
  const EvictReport report = keeper_.evict(wanted, choice, kEvictTime, interrupted_, left);
  pages_changed_ = true;
  auto reply = make_message<EvictReply>(WireKind::kReply);
  reply.evicted = report.evicted;
  reply.done = report.interrupted ? 0 : 1;
  // What others hold in all namespaces together is not told to a worker (C8).
  const bool tell = admin(peer) || request.one_namespace != 0;
  if (left && report.evicted < wanted && tell) {
    reply.pinned = left->pinned;
    reply.leased = left->leased;
    reply.pending = left->pending;
    reply.interior = left->interior;
    reply.other = left->other;
  }
  log_(fmt::format(
      "event=evict evicted={} pinned={} leased={} pending={} interior={} other={} done={}",
      reply.evicted, reply.pinned, reply.leased, reply.pending, reply.interior, reply.other,
      reply.done));
  return bytes_of(reply);
}

std::variant<AdminCalls::Reply, Refused> AdminCalls::flush(const Peer& peer,
                                                           std::span<const std::byte> packet) {
  FlushRequest request{};
  if (!read_message(packet, request)) return malformed("flush");
  if (!namespaces_.holds(request.name_space, request.fields_hash))
    return no_such_namespace(request.name_space);
  const NamespaceId id{static_cast<std::uint16_t>(request.name_space)};
  const Result<std::uint64_t> generation = namespaces_.flush(id, request.fields_hash);
  if (!generation) {
    return Refused{
        Refusal::kInternal,
        fmt::format(
            "namespace {} was flushed 65,535 times while pages of each time are still leased or "
            "being written: see kvtrie workers, and flush again when they went",
            id.value)};
  }
  keeper_.flushed();
  pages_changed_ = true;
  log_(fmt::format("event=flush namespace={} root_generation={} pid={} uid={}", id.value,
                   *generation, peer.pid, peer.uid));
  end_pins();  // those of this namespace protect what nobody can match
  auto reply = make_message<FlushReply>(WireKind::kReply);
  reply.root_generation = *generation;
  return bytes_of(reply);
}

std::variant<AdminCalls::Reply, Refused> AdminCalls::pin(const Peer& peer,
                                                         std::span<const std::byte> packet) {
  PinRequest request{};
  if (!read_message(packet, request) || !text_ends(request.reason) ||
      request.expires_s > kPinSecondsMax) {
    return malformed("pin");
  }
  const Handle page{request.page};
  const Refused gone{Refusal::kNotCached,
                     "that page is not cached any more: look again, or let an engine compute it"};
  if (!page.is_page() || !segment_.has(page.page_index())) return gone;
  const Descriptor& descriptor = segment_.descriptor(page.page_index());
  if (!scope_is_current(segment_, descriptor.scope.load(std::memory_order_relaxed))) return gone;
  const std::uint32_t expiry = expiry_tick_after(segment_, request.expires_s);
  const Result<std::uint32_t> number = pins_.pin(page, get_text(request.reason), expiry);
  if (!number && number.error().code() == Code::kFull) {
    return Refused{Refusal::kPinsFull,
                   fmt::format("all {} pins are taken: kvtrie pins, kvtrie unpin, or make the "
                               "cache anew with more --leases",
                               segment_.pins().size())};
  }
  if (!number) return gone;
  auto reply = make_message<PinReply>(WireKind::kReply);
  reply.pin = *number;
  reply.depth = depth_in(descriptor.depth_class.load(std::memory_order_relaxed));
  log_(fmt::format("event=pin pin={} page={} pages={} expires_s={} reason={} pid={} uid={}",
                   *number, page.page_index().value, reply.depth, request.expires_s,
                   log_value(get_text(request.reason)), peer.pid, peer.uid));
  return bytes_of(reply);
}

std::variant<AdminCalls::Reply, Refused> AdminCalls::unpin(const Peer& peer,
                                                           std::span<const std::byte> packet) {
  UnpinRequest request{};
  if (!read_message(packet, request)) return malformed("unpin");
  if (!pins_.unpin(request.pin, Handle{request.page})) {
    return Refused{Refusal::kNoSuchPin,
                   fmt::format("pin {} has ended, or holds another page by now: look again with "
                               "kvtrie pins",
                               request.pin)};
  }
  pages_changed_ = true;
  log_(fmt::format("event=unpin pin={} pid={} uid={}", request.pin, peer.pid, peer.uid));
  return done();
}

std::variant<AdminCalls::Reply, Refused> AdminCalls::drain(const Peer& peer,
                                                           std::span<const std::byte> packet) {
  DrainRequest request{};
  if (!read_message(packet, request) || request.undo > 1) return malformed("drain");
  draining_ = request.undo == 0;
  segment_.superblock().coordinator_state.store(
      static_cast<std::uint32_t>(draining_ ? CoordinatorState::kDraining
                                           : CoordinatorState::kServing),
      std::memory_order_seq_cst);
  log_(fmt::format("event=drain undo={} pid={} uid={}", request.undo, peer.pid, peer.uid));
  return done();
}

std::variant<AdminCalls::Reply, Refused> AdminCalls::stop(const Peer& peer,
                                                          std::span<const std::byte> packet) {
  PlainRequest request{};
  if (!read_message(packet, request)) return malformed("stop");
  stop_requested_ = true;
  log_(fmt::format("event=stop pid={} uid={}", peer.pid, peer.uid));
  return done();
}

bool AdminCalls::pages_changed() { return std::exchange(pages_changed_, false); }

void AdminCalls::end_pins() {
  if (const std::uint32_t ended = pins_.drop_ended(segment_.now_tick()); ended != 0) {
    pages_changed_ = true;
    log_(fmt::format("event=pins_ended pins={}", ended));
  }
}

void AdminCalls::look_after_pins() {
  const auto now = std::chrono::steady_clock::now();
  if (now < next_pins_look_ || !pins_.any()) return;
  next_pins_look_ = now + kPinsLook;
  end_pins();
}

std::int64_t AdminCalls::poll_after_ms() const {
  if (!pins_.any()) return -1;
  const auto left = next_pins_look_ - std::chrono::steady_clock::now();
  return std::max<std::int64_t>(std::chrono::ceil<std::chrono::milliseconds>(left).count(), 0);
}

}  // namespace kvtrie
