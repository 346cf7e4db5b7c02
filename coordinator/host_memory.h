// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Where and how the memory of segment and host planes lies: huge pages, NUMA node; planes locked. Asked for and not to be
// had is an error at the start that says what to configure; nothing falls back in silence. (How much of it the kernel
// backed by huge pages is in the log, event=device: it may have had too few.)
//
// Huge pages and the node are decided when the memory is made; of an adopted cache it stays where it is. Locks are the
// coordinator's own and taken at each start.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "coordinator/options.h"
#include "shm/shared_object.h"
#include "shm/status.h"

namespace kvtrie {

// Empty, or what is not to be had on this host, and what to do about it.
std::string host_memory_problem(const HostMemory& wanted);
// The huge= option of the mount at `directory`, from the text of /proc/self/mountinfo; "never" when it has none.
std::string huge_option_of(std::string_view mountinfo, std::string_view directory);

// Gives an empty object its size and places its memory, before it is reserved. `huge_bytes`: how much of it are huge
// pages now.
Status place_memory(int fd, std::uint64_t bytes, const HostMemory& wanted, std::uint64_t& huge_bytes);

}  // namespace kvtrie
