// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/process_identity.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <optional>
#include <string>

#include "shm/prefix_hash.h"

namespace kvtrie {
namespace {

constexpr int kStartTimeField = 22;
constexpr int kFirstFieldAfterName = 3;

// Files of /proc that fit one read.
Result<std::string> read_small_file(const std::string& path) {
  const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
  if (!fd.open()) {
    return Status{errno == ENOENT ? Code::kNotFound : Code::kSystem, "opening a file of /proc",
                  errno};
  }
  std::string text(8192, '\0');
  std::size_t filled = 0;
  while (filled < text.size()) {
    const ssize_t got = ::read(fd.get(), text.data() + filled, text.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return Status{errno == ESRCH ? Code::kNotFound : Code::kSystem, "reading a file of /proc",
                    errno};
    }
    if (got == 0) break;
    filled += static_cast<std::size_t>(got);
  }
  text.resize(filled);
  return text;
}

// The n-th field, counted from 0, of fields that single spaces part.
std::optional<std::string_view> field(std::string_view text, int n) {
  for (; n > 0; --n) {
    const std::size_t space = text.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    text.remove_prefix(space + 1);
  }
  return text.substr(0, text.find_first_of(" \n"));
}

std::optional<std::string_view> fields_after_name(std::string_view stat_text) {
  const std::size_t name_end = stat_text.rfind(')');
  if (name_end == std::string_view::npos || name_end + 2 > stat_text.size()) return std::nullopt;
  return stat_text.substr(name_end + 2);
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

Result<std::uint64_t> parse_start_time(std::string_view stat_text) {
  const auto rest = fields_after_name(stat_text);
  const auto text = rest ? field(*rest, kStartTimeField - kFirstFieldAfterName) : std::nullopt;
  std::uint64_t value = 0;
  if (text) {
    const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
    if (error == std::errc{} && end == text->data() + text->size() && !text->empty()) return value;
  }
  return Status{Code::kInvalid, "not the text of /proc/PID/stat"};
}

Result<std::uint64_t> start_time_of(std::uint32_t pid) {
  const Result<std::string> text = read_small_file(fmt::format("/proc/{}/stat", pid));
  if (!text) return text.error();
  return parse_start_time(*text);
}

Result<std::uint64_t> own_start_time() {
  const Result<std::string> text = read_small_file("/proc/self/stat");
  if (!text) return text.error();
  return parse_start_time(*text);
}

std::uint64_t own_image() {
  const auto* random = reinterpret_cast<const void*>(::getauxval(AT_RANDOM));
  return random == nullptr ? 1 : hash_bytes(0, random, 16) | 1;
}

Result<BootId> parse_boot_id(std::string_view text) {
  BootId id{};
  std::size_t digits = 0;
  for (const char c : text) {
    if (c == '-' || c == '\n') continue;
    const int value = hex_digit(c);
    if (value < 0 || digits == 2 * id.size()) return Status{Code::kInvalid, "not a boot id"};
    id[digits / 2] = static_cast<std::uint8_t>(id[digits / 2] << 4 | value);
    ++digits;
  }
  if (digits != 2 * id.size()) return Status{Code::kInvalid, "not a boot id"};
  return id;
}

Result<BootId> read_boot_id() {
  const Result<std::string> text = read_small_file("/proc/sys/kernel/random/boot_id");
  if (!text) return text.error();
  return parse_boot_id(*text);
}

Result<std::uint64_t> own_pid_namespace() {
  struct stat info {};
  if (::stat("/proc/self/ns/pid", &info) != 0) {
    return Status{Code::kSystem, "stat of /proc/self/ns/pid (is /proc mounted?)", errno};
  }
  return static_cast<std::uint64_t>(info.st_ino);
}

unsigned count_nspid(std::string_view status_text) {
  std::size_t at = status_text.find("\nNSpid:");
  if (at == std::string_view::npos) return 0;
  std::string_view line = status_text.substr(at + 7);
  line = line.substr(0, line.find('\n'));
  unsigned count = 0;
  bool inside = false;
  for (const char c : line) {
    const bool digit = c >= '0' && c <= '9';
    if (digit && !inside) ++count;
    inside = digit;
  }
  return count;
}

Result<bool> in_own_pid_namespace(std::uint32_t pid) {
  if (pid == 0) return false;  // the kernel has no number for it in our namespace
  const Result<std::uint64_t> own = own_pid_namespace();
  if (!own) return own.error();
  struct stat info {};
  if (::stat(fmt::format("/proc/{}/ns/pid", pid).c_str(), &info) == 0) {
    return static_cast<std::uint64_t>(info.st_ino) == *own;
  }
  if (errno != EACCES && errno != EPERM) {
    return Status{errno == ENOENT ? Code::kNotFound : Code::kSystem, "stat of /proc/PID/ns/pid",
                  errno};
  }
  const Result<std::string> text = read_small_file(fmt::format("/proc/{}/status", pid));
  if (!text) return text.error();
  const unsigned namespaces = count_nspid(*text);
  if (namespaces == 0) return Status{Code::kSystem, "no NSpid in /proc/PID/status", ENODATA};
  return namespaces == 1;
}

Result<FileDescriptor> open_pidfd(std::uint32_t pid) {
  const long fd = ::syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0);
  if (fd < 0) {
    return Status{errno == ESRCH ? Code::kNotFound : Code::kSystem, "pidfd_open", errno};
  }
  return FileDescriptor(static_cast<int>(fd));
}

bool pidfd_reports_death(int pidfd) {
  pollfd poll_set{pidfd, POLLIN, 0};
  return ::poll(&poll_set, 1, 0) == 1 && (poll_set.revents & POLLIN) != 0;
}

Result<FileDescriptor> open_pidfd_of(std::uint32_t pid, std::uint64_t start_time) {
  if (pid == 0) return Status{Code::kNotFound, "no process has pid 0"};
  Result<FileDescriptor> pidfd = open_pidfd(pid);
  if (!pidfd) return pidfd;
  const Result<std::uint64_t> found = start_time_of(pid);
  if (!found) return found.error();
  // Read through the pid, so it counts only if the pidfd's process was still there to own the pid.
  if (*found != start_time || pidfd_reports_death(pidfd->get())) {
    return Status{Code::kNotFound, "the process is dead and its pid another's"};
  }
  return pidfd;
}

}  // namespace kvtrie
