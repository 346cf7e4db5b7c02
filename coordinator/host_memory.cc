// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/host_memory.h"

#include <fmt/format.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <fstream>
#include <iterator>
#include <sstream>

namespace kvtrie {
namespace {

#ifndef MADV_POPULATE_WRITE
constexpr int MADV_POPULATE_WRITE = 23;  // Linux 5.14
#endif

constexpr unsigned kNodesMax = 1024;  // of the kernel
constexpr std::size_t kWordBits = sizeof(unsigned long) * CHAR_BIT;

std::string text_of(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// From here on, whoever makes memory of this object gets it from that node.
Status bind_to_node(void* data, std::uint64_t bytes, unsigned node) {
  std::array<unsigned long, kNodesMax / kWordBits> mask{};
  if (node >= kNodesMax) return {Code::kInvalid, "no such NUMA node", EINVAL};
  mask[node / kWordBits] = 1UL << (node % kWordBits);
  // The kernel wants one more than the number of bits.
  if (::syscall(SYS_mbind, data, bytes, MPOL_BIND, mask.data(), kNodesMax + 1, 0) == 0) return {};
  return {Code::kSystem, "mbind to the NUMA node (/sys/devices/system/node/online lists them)", errno};
}

// What smaps says of the mapping at `data`.
std::uint64_t huge_bytes_at(const void* data) {
  std::istringstream smaps(text_of("/proc/self/smaps"));
  const std::string start = fmt::format("{:x}-", reinterpret_cast<std::uintptr_t>(data));
  constexpr std::string_view kKey = "ShmemPmdMapped:";
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    if (!inside) {
      inside = line.starts_with(start);
    } else if (line.starts_with(kKey)) {
      return std::strtoull(line.c_str() + kKey.size(), nullptr, 10) * 1024;
    }
  }
  return 0;
}

Status populate_huge(void* data, std::uint64_t bytes, std::uint64_t& huge_bytes) {
  if (::madvise(data, bytes, MADV_HUGEPAGE) != 0) return {Code::kSystem, "madvise(MADV_HUGEPAGE)", errno};
  if (::madvise(data, bytes, MADV_POPULATE_WRITE) != 0) {
    // A full /dev/shm would be a SIGBUS to a store; to this call it is a bad address.
    if (errno == EFAULT || errno == ENOMEM) {
      return {Code::kSystem, "/dev/shm has not enough free memory for this cache", ENOSPC};
    }
    return {Code::kSystem, "madvise(MADV_POPULATE_WRITE), which Linux has since 5.14", errno};
  }
  huge_bytes = huge_bytes_at(data);
  return {};
}

}  // namespace

std::string huge_option_of(std::string_view mountinfo, std::string_view directory) {
  // "36 35 0:32 / /dev/shm rw,... shared:1 - tmpfs tmpfs rw,huge=advise"; the last line of a directory is its top mount.
  std::istringstream lines{std::string(mountinfo)};
  std::string found = "never";
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string word;
    for (int i = 0; i < 5; ++i)
      words >> word;
    if (word != directory) continue;
    found = "never";
    const std::size_t key = line.find("huge=", line.find(" - "));
    if (key == std::string::npos) continue;
    const std::size_t value = key + std::string_view("huge=").size();
    found = line.substr(value, line.find_first_of(", ", value) - value);
  }
  return found;
}

std::string host_memory_problem(const HostMemory& wanted) {
  if (wanted.huge_pages) {
    const std::string huge = huge_option_of(text_of("/proc/self/mountinfo"), "/dev/shm");
    if (huge == "never" || huge == "deny") {
      return "--huge-pages: /dev/shm does not give huge pages; allow them with `mount -o remount,huge=advise "
             "/dev/shm` (in /etc/fstab to keep it), or start without --huge-pages";
    }
  }
  if (wanted.numa_node) {
    const std::string node = fmt::format("/sys/devices/system/node/node{}", *wanted.numa_node);
    if (::access(node.c_str(), F_OK) != 0) {
      return fmt::format("--numa-node {}: there is no such node; /sys/devices/system/node/online lists them",
                         *wanted.numa_node);
    }
  }
  return {};
}

Status place_memory(int fd, std::uint64_t bytes, const HostMemory& wanted, std::uint64_t& huge_bytes) {
  if (!wanted.huge_pages && !wanted.numa_node) return {};
  if (::ftruncate(fd, static_cast<off_t>(bytes)) != 0) return {Code::kSystem, "sizing an object in /dev/shm", errno};
  const Result<Mapping> mapping = Mapping::map(fd, bytes, Access::kReadWrite);
  if (!mapping) return mapping.error();
  if (wanted.numa_node) {
    if (Status status = bind_to_node(mapping->data(), bytes, *wanted.numa_node); !status) return status;
  }
  return wanted.huge_pages ? populate_huge(mapping->data(), bytes, huge_bytes) : Status{};
}

}  // namespace kvtrie
