// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/file_hash.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <system_error>

namespace kvtrie::llama {
namespace {

constexpr std::time_t kSettledAfter =
    2;  // s: a file changed since then may change again without another time of change

std::string hex(XXH128_hash_t hash) {
  char text[33];
  std::snprintf(text, sizeof text, "%016" PRIx64 "%016" PRIx64, hash.high64, hash.low64);
  return text;
}

[[noreturn]] void fail(const std::string& path) { throw std::system_error(errno, std::generic_category(), path); }

std::int64_t ns_of(const timespec& time) { return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; }

class File {
 public:
  explicit File(const std::string& path) : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) fail(path_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { ::close(descriptor_); }

  FileVersion version() const {
    struct stat found {};
    if (::fstat(descriptor_, &found) != 0) fail(path_);
    return {path_, found.st_dev, found.st_ino, static_cast<std::uint64_t>(found.st_size), ns_of(found.st_mtim),
            ns_of(found.st_ctim)};
  }
  std::string hash() const {
    const std::size_t bytes = version().size;
    if (bytes == 0) return hex(XXH3_128bits("", 0));
    void* const at = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, descriptor_, 0);
    if (at == MAP_FAILED) fail(path_);
    (void)::madvise(at, bytes, MADV_SEQUENTIAL);
    const XXH128_hash_t hash = XXH3_128bits(at, bytes);
    ::munmap(at, bytes);
    return hex(hash);
  }

 private:
  const std::string path_;
  const int descriptor_;
};

std::string name_in_memory(const FileVersion& file) {
  char text[64];
  std::snprintf(text, sizeof text, "%" PRIx64 "-%" PRIx64, file.device, file.inode);
  return text;
}

// What must be as it was for a remembered hash to hold.
std::string line_in_memory(const FileVersion& file) {
  char text[96];
  std::snprintf(text, sizeof text, "%" PRIu64 " %" PRId64 " %" PRId64, file.size, file.modified_ns, file.changed_ns);
  return text;
}

bool settled(const FileVersion& file) { return std::time(nullptr) - file.changed_ns / 1'000'000'000 > kSettledAfter; }

std::string remembered(const std::string& path, const std::string& version) {
  std::ifstream file(path);
  std::string line;
  std::string hash;
  return std::getline(file, line) && line == version && std::getline(file, hash) && hash.size() == 32 ? hash : "";
}

// Best effort: who cannot remember hashes again.
void remember(const std::string& path, const std::string& version, const std::string& hash) {
  const std::string temporary = path + "." + std::to_string(::getpid());
  std::error_code ignored;
  {
    std::ofstream file(temporary);
    file << version << '\n' << hash << '\n';
    if (!file.flush()) {
      std::filesystem::remove(temporary, ignored);
      return;
    }
  }
  std::filesystem::rename(temporary, path, ignored);
}

std::string hash_of_file(const FileVersion& wanted, const std::string& memory) {
  const File file(wanted.path);
  const auto check = [&] {
    if (file.version() == wanted) return;
    throw std::runtime_error(wanted.path + " was changed or replaced since it was loaded");
  };
  check();
  if (memory.empty() || !settled(wanted)) {
    std::string hash = file.hash();
    check();
    return hash;
  }
  std::error_code ignored;
  std::filesystem::create_directories(memory, ignored);
  const std::string entry = memory + "/" + name_in_memory(wanted);
  const std::string line = line_in_memory(wanted);
  if (std::string hash = remembered(entry, line); !hash.empty()) return hash;
  std::string hash = file.hash();
  check();
  remember(entry, line, hash);
  return hash;
}

}  // namespace

FileVersion file_version(const std::string& path) {
  std::error_code error;
  const std::filesystem::path whole = std::filesystem::canonical(path, error);
  if (error) throw std::system_error(error, path);
  return File(whole).version();
}

std::string hash_of_files(const std::vector<FileVersion>& files, const std::string& memory) {
  if (files.size() == 1) return hash_of_file(files[0], memory);
  std::string all;
  for (const FileVersion& file : files)
    all += hash_of_file(file, memory);
  return hex(XXH3_128bits(all.data(), all.size()));
}

std::string hash_of_files(const std::vector<std::string>& paths, const std::string& memory) {
  std::vector<FileVersion> files;
  for (const std::string& path : paths)
    files.push_back(file_version(path));
  return hash_of_files(files, memory);
}

}  // namespace kvtrie::llama
