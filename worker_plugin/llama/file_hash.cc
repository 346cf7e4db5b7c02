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

class File {
 public:
  explicit File(const std::string& path) : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0 || ::fstat(descriptor_, &stat_) != 0) fail();
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { ::close(descriptor_); }

  std::string hash() const {
    const auto bytes = static_cast<std::size_t>(stat_.st_size);
    if (bytes == 0) return hex(XXH3_128bits("", 0));
    void* const at = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, descriptor_, 0);
    if (at == MAP_FAILED) fail();
    (void)::madvise(at, bytes, MADV_SEQUENTIAL);
    const XXH128_hash_t hash = XXH3_128bits(at, bytes);
    ::munmap(at, bytes);
    return hex(hash);
  }
  std::string name_in_memory() const {
    char text[64];
    std::snprintf(text, sizeof text, "%" PRIx64 "-%" PRIx64, static_cast<std::uint64_t>(stat_.st_dev),
                  static_cast<std::uint64_t>(stat_.st_ino));
    return text;
  }
  // What must be as it was for a remembered hash to hold.
  std::string version() const {
    char text[96];
    std::snprintf(text, sizeof text, "%lld %lld.%09ld %lld.%09ld", static_cast<long long>(stat_.st_size),
                  static_cast<long long>(stat_.st_mtim.tv_sec), stat_.st_mtim.tv_nsec,
                  static_cast<long long>(stat_.st_ctim.tv_sec), stat_.st_ctim.tv_nsec);
    return text;
  }
  bool settled() const { return std::time(nullptr) - stat_.st_ctim.tv_sec > kSettledAfter; }

 private:
  [[noreturn]] void fail() const { throw std::system_error(errno, std::generic_category(), path_); }

  std::string path_;
  int descriptor_;
  struct stat stat_ {};
};

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

std::string hash_of_file(const std::string& path, const std::string& memory) {
  const File file(path);
  if (memory.empty() || !file.settled()) return file.hash();
  std::error_code ignored;
  std::filesystem::create_directories(memory, ignored);
  const std::string entry = memory + "/" + file.name_in_memory();
  if (std::string hash = remembered(entry, file.version()); !hash.empty()) return hash;
  std::string hash = file.hash();
  remember(entry, file.version(), hash);
  return hash;
}

}  // namespace

std::string hash_of_files(const std::vector<std::string>& paths, const std::string& memory) {
  if (paths.size() == 1) return hash_of_file(paths[0], memory);
  std::string all;
  for (const std::string& path : paths)
    all += hash_of_file(path, memory);
  return hex(XXH3_128bits(all.data(), all.size()));
}

}  // namespace kvtrie::llama
