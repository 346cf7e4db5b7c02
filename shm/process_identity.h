// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Who a process is, so that a recycled pid is never taken for it: pid + start time + boot id, and
// the PID namespace, since robust mutexes do not exclude between two of them (DESIGN.md, "Robust
// mutex").
//
// Order of use (a pid may be recycled at any time): open the pidfd first, then compare the start
// time. If they agree, the pidfd is that process, and stays it.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "shm/shared_object.h"
#include "shm/status.h"

namespace kvtrie {

using BootId = std::array<std::uint8_t, 16>;

// Start time in clock ticks since boot: field 22 of the text of /proc/PID/stat. The command's name,
// field 2, may hold spaces and parentheses, so fields are counted from the last ')'.
Result<std::uint64_t> parse_start_time(std::string_view stat_text);
// kNotFound: no such process. State Z says nothing: a process whose first thread ended is a zombie
// to look at and lives on in its other threads. Only the pidfd reports a death.
Result<std::uint64_t> start_time_of(std::uint32_t pid);
Result<std::uint64_t> own_start_time();
// Of the program image that this process runs: an execve keeps pid and start time, and this is another. (From the random
// bytes that the kernel gives each image, AT_RANDOM.) Never 0.
std::uint64_t own_image();

Result<BootId> parse_boot_id(std::string_view text);
Result<BootId> read_boot_id();

// Inode of /proc/self/ns/pid.
Result<std::uint64_t> own_pid_namespace();
// Whether `pid` (0: the kernel could not name it here) lives in this process's PID namespace. Also
// answers for a process that we may not trace, by NSpid of /proc/PID/status.
Result<bool> in_own_pid_namespace(std::uint32_t pid);
// Number of PID namespaces, from this one inwards, that the NSpid line of a status text names; 0:
// no such line.
unsigned count_nspid(std::string_view status_text);

// Close-on-exec. kNotFound: no such process.
Result<FileDescriptor> open_pidfd(std::uint32_t pid);
// Whether the pidfd's process is dead and its memory torn down.
bool pidfd_reports_death(int pidfd);
// pidfd of the living process with exactly this identity; kNotFound when it is dead or the pid is
// another's.
Result<FileDescriptor> open_pidfd_of(std::uint32_t pid, std::uint64_t start_time);

}  // namespace kvtrie
