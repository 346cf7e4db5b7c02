// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The plugin's side of attach (shm/wire.h): asks the coordinator for a slot, the segment and pools.
//
// In an engine's process: no threads, no signals, every descriptor close-on-exec, at most 5 s on
// the socket. Every failure is a Status and, in `message`, a text that says what failed, on what,
// and what to do about it.
//
//   attach(options, message)                  the slot is kAttaching
//   map got.segment, Segment::open
//   WorkerTable(segment).confirm(got.grant)   kActive: only leave() or the process's death end it
//   got.connection = {}                       not before: closing it unconfirmed gives the slot up
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "shm/format.h"
#include "shm/namespace_table.h"
#include "shm/shared_object.h"
#include "shm/status.h"
#include "shm/wire_client.h"
#include "shm/worker_table.h"

namespace kvtrie {

struct AttachOptions {
  CoordinatorAddress address;
  std::string name;  // for people, in `kvtrie workers`
  WorkerRole role = WorkerRole::kWorker;
  std::uint64_t plane_mask = 0;  // of a plane writer: planes that it fills
  WorkerTag scheduler{};         // of a plane writer: into whose pages
};

struct Attachment {
  SlotGrant grant;  // slot 0: an observer, whose descriptors are read-only
  FileDescriptor segment;
  std::vector<FileDescriptor> pools;  // by plane
  FileDescriptor queue;               // of a queued device
  // Planes that the grant lets this process write; bit 0 is plane 0.
  std::uint64_t writable_planes = ~std::uint64_t{0};
  std::uint64_t segment_bytes = 0;
  std::uint64_t pool_bytes = 0;  // of each
  std::uint64_t cache_id[2] = {0, 0};
  FileDescriptor connection;
};

Result<Attachment> attach(const AttachOptions& options, std::string& message);

// Finds or makes a namespace; `fields` is canonical_fields(). Ask find_namespace() first: it needs
// nobody.
Result<OpenNamespace> request_namespace(const CoordinatorAddress& address, std::string_view fields,
                                        std::string_view label, std::string& message);

}  // namespace kvtrie
