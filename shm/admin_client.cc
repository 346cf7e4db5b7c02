// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/admin_client.h"

#include <chrono>

namespace kvtrie {
namespace {

template <WireMessage Request, WireMessage Reply>
Status ask(const CoordinatorAddress& address, const Request& request, Reply& reply,
           std::string& message) {
  Result<WireClient> client = WireClient::connect(address, message);
  return client ? client->call(request, reply, message) : client.error();
}

}  // namespace

// The coordinator stops each answer after a while to look at its other clients; so it is asked
// until all is done.
Result<EvictedPages> request_eviction(const CoordinatorAddress& address, std::uint64_t pages_max,
                                      const std::optional<NamespaceKey>& of, std::string& message) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(address.timeout_ms);
  auto request = make_message<EvictRequest>(WireKind::kEvict);
  request.one_namespace = of ? 1 : 0;
  request.name_space = of ? of->id.value : 0;
  request.fields_hash = of ? of->fields_hash : 0;
  EvictedPages result;
  do {
    request.pages_max = pages_max == 0 ? 0 : pages_max - result.evicted;
    EvictReply reply{};
    if (Status status = ask(address, request, reply, message); !status) return status;
    result = {result.evicted + reply.evicted,
              reply.pinned,
              reply.leased,
              reply.pending,
              reply.interior,
              reply.other,
              reply.done != 0};
  } while (!result.done && std::chrono::steady_clock::now() < end);
  return result;
}

Result<std::uint64_t> request_flush(const CoordinatorAddress& address, const NamespaceKey& of,
                                    std::string& message) {
  auto request = make_message<FlushRequest>(WireKind::kFlush);
  request.name_space = of.id.value;
  request.fields_hash = of.fields_hash;
  FlushReply reply{};
  if (Status status = ask(address, request, reply, message); !status) return status;
  return reply.root_generation;
}

Result<PinMade> request_pin(const CoordinatorAddress& address, const PinWish& wish,
                            std::string& message) {
  auto request = make_message<PinRequest>(WireKind::kPin);
  request.page = wish.page.raw;
  request.expires_s = wish.expires_s;
  put_text(request.reason, wish.reason);
  PinReply reply{};
  if (Status status = ask(address, request, reply, message); !status) return status;
  return PinMade{reply.pin, reply.depth};
}

Status request_unpin(const CoordinatorAddress& address, std::uint32_t pin, Handle page,
                     std::string& message) {
  auto request = make_message<UnpinRequest>(WireKind::kUnpin);
  request.pin = pin;
  request.page = page.raw;
  ReplyHead reply{};
  return ask(address, request, reply, message);
}

Status request_drain(const CoordinatorAddress& address, bool undo, std::string& message) {
  auto request = make_message<DrainRequest>(WireKind::kDrain);
  request.undo = undo ? 1 : 0;
  ReplyHead reply{};
  return ask(address, request, reply, message);
}

Status request_stop(const CoordinatorAddress& address, std::string& message) {
  ReplyHead reply{};
  return ask(address, make_message<PlainRequest>(WireKind::kStop), reply, message);
}

}  // namespace kvtrie
