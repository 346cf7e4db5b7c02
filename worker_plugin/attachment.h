// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// One attachment of this process to one cache: its mappings, its worker, the namespaces it opened.
//
// Thread-safe. It lives from attach to detach and ends only when no thread is inside (the handle
// table sees to that), since a robust mutex whose page is unmapped under its holder is lost for
// everybody. It keeps no file descriptor open, but those of device memory. In a forked child it must not be touched at all, not
// even destroyed: its mappings are not there, and other things may be at their addresses.
//
// A namespace handle is {generation 48 | record 16}. A record that was given to other fields and
// opened again gets a new handle, so the old one answers stale.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shm/copy_queue.h"
#include "shm/segment.h"
#include "shm/shared_object.h"
#include "shm/status.h"
#include "worker_plugin/attach_client.h"
#include "worker_plugin/handle_table.h"
#include "worker_plugin/private_mutex.h"
#include "worker_plugin/worker.h"

namespace kvtrie {

class AttachedCache {
 public:
  // Maps and checks what the coordinator gave and takes the slot (kAttaching to kActive). The
  // grant's connection is open until then and closed here. `address` is asked for new namespaces.
  static Result<std::unique_ptr<AttachedCache>> make(Attachment grant, CoordinatorAddress address,
                                                     std::string& message);
  AttachedCache(const AttachedCache&) = delete;
  AttachedCache& operator=(const AttachedCache&) = delete;

  Worker& worker() { return worker_; }
  const Segment& segment() const { return segment_; }
  const std::string& cache_name() const { return address_.cache; }
  const CoordinatorAddress& address() const { return address_; }
  // Planes in device memory have no address here: a view of no planes.
  PoolView pool_view() const;
  // Whether this process writes into planes by itself: no copy queue, no driver in between.
  bool writes_planes() const { return segment_.device() == DeviceKind::kHost; }
  // This attachment's life of its slot.
  SlotGrant grant() const { return grant_; }
  bool plane_writer() const { return plane_writer_; }

  // A new descriptor of a plane in device memory, close-on-exec, the caller's to close. kInvalid: no such plane, or it
  // is in host memory.
  Result<int> plane_descriptor(std::uint32_t plane) const;
  // Asks the device to write into a page, later (shm/copy_queue.h). kInvalid: this device is not queued, or not inside a
  // page that this attachment may write. Any thread.
  Status queue_copy(const CopyTarget& target, std::span<const std::byte> bytes);
  // Sleeps until all that was asked for is written; kPoisoned: nobody will.
  Status wait_copies(std::uint32_t timeout_ms) const;

  // Finds or makes the namespace of canonical `fields`; a handle of `table`'s generations.
  Result<std::uint64_t> open_namespace(HandleTable& table, std::string_view fields,
                                       std::string_view label, std::string& message);
  // Empty: not a namespace of this attachment, or opened anew since.
  std::optional<NamespaceRef> find_namespace(std::uint64_t handle) const;

  // What this attachment added to its slot's counters.
  std::uint64_t counted(Counter counter) const;
  // False when the cache has a clock of its own.
  bool drive_clock(std::uint32_t tick) const;

  // The last use of the segment: the slot is the coordinator's to clear.
  void leave();

 private:
  struct OpenedNamespace {
    Atomic<std::uint64_t> handle{0};
    Atomic<std::uint64_t> fields_hash{0};
  };

  // Empty where the cache has no page checksums, or the planes are not in memory.
  PageSum page_sum() const;

  struct Parts;  // what make() collects
  AttachedCache(Parts parts, CoordinatorAddress address);

  // Constant after construction.
  const Segment segment_;
  const std::vector<Mapping> pools_;  // by plane; none: device memory
  const std::vector<FileDescriptor> device_planes_;
  const std::optional<CopyQueue> queue_;
  const SlotGrant grant_;
  const std::uint64_t writable_planes_;
  const bool plane_writer_;
  const CoordinatorAddress address_;
  std::array<std::uint64_t, kCounters> at_attach_{};

  Worker worker_;
  PrivateMutex copying_;                       // one submitter of queue_; half an entry is nobody's
  PrivateMutex opening_;                       // one writer of opened_; a handle of 0 is made anew
  std::unique_ptr<OpenedNamespace[]> opened_;  // by record
};

}  // namespace kvtrie
