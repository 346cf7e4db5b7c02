// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The memory of the pages' bytes, one plane a device of the engine: the coordinator makes it, hands it out by descriptor,
// and takes a page back only when nobody can touch it any more. The coordinator never looks at the bytes.
//
// The fence. A process that dies takes its own stores with it, but not what it asked a device to do: a copy engine may
// write into its pages long after. So its pages, and its slot, go back only after fence(slot) has said true once (Reaper
// asks; it goes on with everything else meanwhile). The contract of every device:
//   D1  fence(slot) is asked only of a slot whose worker runs no more (dead, or detached), before the slot is kFree.
//   D2  It does not block. False: ask again, 5 ms later.
//   D3  True: nothing that this worker asked for writes into any plane from now on. It stays true.
//   D4  It is the same for the next coordinator: what is under way when the coordinator dies is not forgotten by its
//       successor's fence().
// What a *live* worker has under way in a page that it gives back is its own duty: it synchronizes first.
//
//   device     D3, why                                               D4, why
//   host       its stores were over when the kernel reported it      the same
//   queued     its ring of the copy queue is empty                   the queue is an object in shared memory
//   cuda       the driver has destroyed its contexts, with all that  planes do not outlive the coordinator: the next
//              they had under way, before the kernel reports it      one makes a successor, nothing is adopted
//              (an assumption, see docs/devices.md)
//
// Life: make, publish, start (a new cache); or adopt, start (one that is there). start() comes once the objects have
// their names. A failure of make or adopt leaves nothing behind but temporary names, which discard_planes takes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "coordinator/failure.h"
#include "coordinator/options.h"
#include "shm/geometry.h"
#include "shm/ids.h"
#include "shm/shared_object.h"

namespace kvtrie {

struct PlanesWanted {
  std::string cache;
  Geometry geometry;
  std::uint64_t cache_id[2] = {0, 0};
  unsigned mode = 0600;
};

class Device {
 public:
  Device() = default;
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // All planes under temporary names, their memory reserved.
  virtual MaybeFailure make(const PlanesWanted& wanted) = 0;
  virtual MaybeFailure publish() = 0;
  // Those of an existing cache; each must have exactly the size that the segment states.
  virtual MaybeFailure adopt(const PlanesWanted& wanted) = 0;
  virtual MaybeFailure start() = 0;

  virtual std::uint32_t plane_count() const = 0;
  virtual std::uint64_t plane_bytes() const = 0;
  // To hand out; it stays the device's. kReadWrite: what a worker that fills this plane needs for that.
  virtual int descriptor(std::uint32_t plane, Access access) const = 0;
  // Of the copy queue; -1: workers write into the planes themselves.
  virtual int queue_descriptor() const { return -1; }

  virtual bool fence(WorkerId gone) = 0;

  // For the log: "key=value ...".
  virtual std::string describe() const = 0;
};

// `kind`: what was asked for, or what the cache that is there has.
std::unique_ptr<Device> make_device(const Options& options, DeviceKind kind);
// Whether the planes of such a cache are there when its coordinator is not.
constexpr bool planes_outlive_coordinator(DeviceKind kind) { return kind != DeviceKind::kCuda; }

// Of this cache, whatever its number of planes was: the temporary ones; all from this plane on. The copy queue goes
// when a cache without one takes the name (first_plane 0, or keep_queue false).
void discard_planes(const std::string& cache);
void remove_planes(const std::string& cache, std::uint32_t first_plane = 0, bool keep_queue = false);

}  // namespace kvtrie
