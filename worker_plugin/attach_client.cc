// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/attach_client.h"

#include <fmt/format.h>

#include <algorithm>

#include "shm/geometry.h"
#include "shm/process_identity.h"
#include "shm/robust_mutex.h"

namespace kvtrie {
namespace {

Status own_identity(AttachRequest& request, std::string& message) {
  const Result<std::uint64_t> start_time = own_start_time();
  const Result<std::uint64_t> pid_namespace = own_pid_namespace();
  if (!start_time || !pid_namespace) {
    message = "cannot read /proc/self (is /proc mounted in this container?)";
    return start_time ? pid_namespace.error() : start_time.error();
  }
  request.start_time = *start_time;
  request.image = own_image();
  request.pid_namespace = *pid_namespace;
  return {};
}

}  // namespace

Result<Attachment> attach(const AttachOptions& options, std::string& message) {
  if (options.role == WorkerRole::kWorker && !RobustMutex::has_robust_list()) {
    message =
        "this thread has no robust list, so the kernel would not release its locks if it died: "
        "attach from "
        "a thread made by pthread_create or std::thread";
    return Status{Code::kRefused, "attaching from a thread without a robust list"};
  }
  auto request = make_message<AttachRequest>(WireKind::kAttach);
  if (Status status = own_identity(request, message); !status) return status;
  request.layout_version = kLayoutVersion;
  request.struct_fingerprint = struct_fingerprint();
  request.role = static_cast<std::uint32_t>(options.role);
  request.plane_mask = options.plane_mask;
  request.scheduler = options.scheduler.raw;
  put_text(request.cache, options.address.cache);
  put_text(request.name, options.name);

  Result<WireClient> client = WireClient::connect(options.address, message);
  if (!client) return client.error();
  AttachReply reply{};
  std::vector<FileDescriptor> descriptors;
  if (Status status = client->call(request, reply, message, &descriptors); !status) return status;
  if (reply.pool_count == 0 || reply.pool_count > kPlanesMax ||
      reply.queue_count > 1 || descriptors.size() != reply.pool_count + reply.queue_count + 1 || reply.slot > kWorkersMax ||
      (reply.slot == 0) != (options.role == WorkerRole::kObserver)) {
    message = fmt::format("cache '{}': the coordinator's answer to attach makes no sense",
                          options.address.cache);
    return Status{Code::kCorrupt, "the coordinator's answer to attach makes no sense"};
  }
  Attachment got;
  got.grant = {{static_cast<std::uint16_t>(reply.slot)}, reply.incarnation};
  got.segment = std::move(descriptors.front());
  if (reply.queue_count == 1) {
    got.queue = std::move(descriptors.back());
    descriptors.pop_back();
  }
  if (options.role != WorkerRole::kWorker) got.writable_planes = options.plane_mask;
  std::move(descriptors.begin() + 1, descriptors.end(), std::back_inserter(got.pools));
  got.segment_bytes = reply.segment_bytes;
  got.pool_bytes = reply.pool_bytes;
  std::copy_n(reply.cache_id, 2, got.cache_id);
  got.connection = client->take_socket();
  return got;
}

Result<OpenNamespace> request_namespace(const CoordinatorAddress& address, std::string_view fields,
                                        std::string_view label, std::string& message) {
  message = namespace_fields_problem(fields);
  if (!message.empty()) return Status{Code::kInvalid, "namespace fields are not canonical"};
  auto request = make_message<NamespaceRequest>(WireKind::kNamespace);
  request.fields_bytes = static_cast<std::uint32_t>(fields.size());
  std::copy(fields.begin(), fields.end(), request.fields);
  put_text(request.label, label);
  Result<WireClient> client = WireClient::connect(address, message);
  if (!client) return client.error();
  NamespaceReply reply{};
  if (Status status = client->call(request, reply, message); !status) return status;
  return OpenNamespace{{static_cast<std::uint16_t>(reply.id)},
                       reply.root_generation,
                       reply.hash_seed,
                       reply.fields_hash};
}

}  // namespace kvtrie
