// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// pread and pwrite that go on until all is done.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "shm/status.h"

namespace kvtrie {

// Bytes read: fewer than asked for only at the end of the file.
Result<std::size_t> read_at(int fd, std::uint64_t offset, std::span<std::byte> into);
Status write_at(int fd, std::uint64_t offset, std::span<const std::byte> from);

}  // namespace kvtrie
