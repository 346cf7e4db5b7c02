// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Shared-memory objects and their mappings, on Boost.Interprocess, without its exceptions.
//
// An object is made under a temporary name, filled, and renamed when it is whole; its memory is reserved
// when it is made, so a full /dev/shm is an error then and never a SIGBUS later. Mappings are not inherited
// by fork (MADV_DONTFORK): a child does not own its parent's locks and must not touch the segment.
#pragma once

#include <atomic>
#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "shm/status.h"

namespace kvtrie {

enum class Access : std::uint8_t { kReadOnly, kReadWrite };

// Owns a file descriptor.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor();

  int get() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_ = -1;
};

// Names as the C library and Boost want them, without a slash: "kvtrie.NAME.v1.seg", "kvtrie.NAME.v1.pool0".
std::string segment_object_name(const std::string& cache);
std::string pool_object_name(const std::string& cache, std::uint32_t plane);
std::string queue_object_name(const std::string& cache);  // of the copy queue, where there is one
// Empty when `cache` may name a cache: 1 to 63 of [A-Za-z0-9._-], not starting with a dot.
std::string cache_name_problem(const std::string& cache);

// Layout versions, but this build's, of which there is a segment of that name: other releases' of the same cache.
std::vector<std::uint32_t> other_layouts_of(const std::string& cache);

// Makes `name`.tmp, empty and locked (flock), for whoever builds this object: there is one at a time, whatever directory
// it was given. One that nobody has locked was left by a death and is thrown away. kBusy: somebody builds it. The lock
// lasts as long as this descriptor, through publish_object too.
Result<FileDescriptor> claim_object(const std::string& name);
// Makes `name`.tmp of `bytes` zero bytes, all reserved. An old temporary object is thrown away: by who has claimed the
// object that this one belongs to. `place`, if given, gets the empty object first: it may size it and say where its
// memory is to lie.
Result<FileDescriptor> create_object(const std::string& name, std::uint64_t bytes, unsigned mode,
                                     const std::function<Status(int fd)>& place = {});
// Gives an empty object its size, all reserved, and its mode.
Status reserve_object(int fd, std::uint64_t bytes, unsigned mode);
Status publish_object(const std::string& name);  // renames `name`.tmp to `name`
Result<FileDescriptor> open_object(const std::string& name, Access access);
Result<FileDescriptor> open_temporary(const std::string& name, Access access);
bool discard_object(const std::string& name);  // its temporary form
bool remove_object(const std::string& name);   // both
Result<std::uint64_t> object_bytes(int fd);

// A mapping of a whole object. Movable; unmapped at the end of its life: only when no thread is inside.
class Mapping {
 public:
  static Result<Mapping> map(int fd, std::uint64_t bytes, Access access);
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  // It stays mapped to the end of the process: a lock in it is still on a thread's list of robust mutexes, and the C
  // library follows that list at the thread's next lock. Any thread may say so.
  void keep() const { kept_.store(true, std::memory_order_relaxed); }

  std::byte* data() const { return static_cast<std::byte*>(region_.get_address()); }
  std::uint64_t size_bytes() const { return region_.get_size(); }

 private:
  Mapping() = default;
  void leave_if_kept();

  boost::interprocess::mapped_region region_;
  mutable std::atomic<bool> kept_{false};
};

}  // namespace kvtrie
