// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The objects of a cache: makes them, or takes over what is there after checking everything.
//
// Build: the segment's temporary name is claimed (one builder at a time, whatever --dir it has); pools and segment are
// made under temporary names with their memory reserved; an old segment is poisoned; pools renamed, the segment last. So
// a segment at its name is whole. When memory does not suffice for the old cache and the new one, the old one's pools
// are removed before; its segment, which says its shape, stays until the new one takes its name, so a build that fails
// can be tried again.
//
// What is found                            what is done
//   no segment                             build; every build starts with the pages of --load (warm_start.h)
//   --fresh                                old one poisoned and pointed at its successor, build
//   held by a coordinator in another dir   refused (exit code 3)
//   options given that differ              refused: --fresh, or leave them out
//   another boot id                        nothing in it is true any more: build with its shape
//   another PID namespace                  refused: robust mutexes do not work between the two
//   poisoned                               successor of its shape; old workers serve misses
//   planes that ended with their           successor of its shape (device.h, D4)
//   coordinator (CUDA)
//   a pool missing or of another size      refused: kvtrie destroy, or --fresh
//   anything that `verify` finds, but for  refused: kvtrie verify --repair keeps what is sound; or the same
//   what the dead may leave
//   else                                   adopted
//
// Crash: died after / left behind / repaired by / test (CacheStoreTest.DiesInBuild)
//   store.after_old_removed / a poisoned segment without pools / the next build
//   store.after_pools_made, load.after_page / temporary objects / the next build throws them away
//   store.after_pools_published / pools without a segment, or of a poisoned one / the next build
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/device.h"
#include "coordinator/failure.h"
#include "coordinator/log.h"
#include "coordinator/options.h"
#include "shm/process_identity.h"
#include "shm/segment.h"
#include "shm/shared_object.h"

namespace kvtrie {

struct HostIdentity {
  BootId boot_id{};
  std::uint64_t pid_namespace = 0;
};
MaybeFailure read_host_identity(HostIdentity& host);

struct CacheObjects {
  std::optional<Segment> segment;
  FileDescriptor segment_writable;
  FileDescriptor segment_read_only;
  FileDescriptor guard;  // flock on the segment: its own descriptor, never handed out
  std::unique_ptr<Device> device;  // the planes, started
  bool adopted = false;
};

// Holding the cache's directory. On success `objects` is complete; an adopted segment is not
// recovered yet. `stopped` is asked while a save file is loaded; true ends it, and nothing is made.
MaybeFailure open_or_make_cache(
    const Options& options, const HostIdentity& host, const LogSink& log, CacheObjects& objects,
    const std::function<bool()>& stopped = [] { return false; });

CacheShape shape_there(const Superblock& superblock);

}  // namespace kvtrie
