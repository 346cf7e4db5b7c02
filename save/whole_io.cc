// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "save/whole_io.h"

#include <unistd.h>

#include <cerrno>

namespace kvtrie {

Result<std::size_t> read_at(int fd, std::uint64_t offset, std::span<std::byte> into) {
  std::size_t done = 0;
  while (done < into.size()) {
    const ssize_t got =
        ::pread(fd, into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
    if (got == 0) break;
    if (got > 0) {
      done += static_cast<std::size_t>(got);
    } else if (errno != EINTR) {
      return Status{Code::kSystem, "reading", errno};
    }
  }
  return done;
}

Status write_at(int fd, std::uint64_t offset, std::span<const std::byte> from) {
  std::size_t done = 0;
  while (done < from.size()) {
    const ssize_t put =
        ::pwrite(fd, from.data() + done, from.size() - done, static_cast<off_t>(offset + done));
    if (put > 0) {
      done += static_cast<std::size_t>(put);
    } else if (put == 0 || errno != EINTR) {
      return {Code::kSystem, "writing", put == 0 ? ENOSPC : errno};
    }
  }
  return {};
}

}  // namespace kvtrie
