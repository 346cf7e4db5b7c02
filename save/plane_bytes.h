// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The bytes of page p in plane q: the one place of this folder that knows how a plane is reached.
// Here by its object's descriptor: nothing is mapped, so a pool that was cut short is an error and
// not a SIGBUS. (A device whose planes have no such descriptor gets its branch here.)
//
// Thread-safe; the descriptors must outlive it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "shm/ids.h"
#include "shm/status.h"

namespace kvtrie {

class PlaneBytes {
 public:
  // One descriptor a plane, in order.
  PlaneBytes(std::vector<int> descriptors, std::uint64_t page_bytes)
      : descriptors_(std::move(descriptors)), page_bytes_(page_bytes) {}

  std::uint32_t planes() const { return static_cast<std::uint32_t>(descriptors_.size()); }
  std::uint64_t page_bytes() const { return page_bytes_; }

  // `offset` + size is at most page_bytes(). kCorrupt: the pool ends before.
  Status read(PageIndex page, std::uint32_t plane, std::uint64_t offset,
              std::span<std::byte> into) const;
  Status write(PageIndex page, std::uint32_t plane, std::uint64_t offset,
               std::span<const std::byte> from) const;

 private:
  std::vector<int> descriptors_;
  std::uint64_t page_bytes_;
};

}  // namespace kvtrie
