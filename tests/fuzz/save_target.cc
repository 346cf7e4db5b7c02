// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Save files: damaged, cut short, spliced, and forged (with checksums that fit). What comes of one is a sound cache;
// and as long as nothing was forged, with the right bytes in each page.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "save/load_cache.h"
#include "save/save_cache.h"
#include "save/save_format.h"
#include "save/saved_file.h"
#include "shm/page_table.h"
#include "shm/verify.h"
#include "tests/fuzz/finding.h"
#include "tests/fuzz/fuzz_targets.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/world.h"

namespace kvtrie::fuzz {
namespace {

constexpr std::uint64_t kRecordsFrom = kSaveHeadBytes + 2 * sizeof(SavedNamespace);

std::string save_of_world() {
  World& world = World::get();
  world.reset();
  const std::string path = "/dev/shm/kvtrie-fuzz-save-" + std::to_string(::getpid());
  const Result<SaveReport> saved = save_cache(world.segment(), PlaneBytes({world.pool_fd()}, kPageBytes), path);
  require(saved.has_value() && saved->pages > 8 && saved->namespaces == 2, "save");
  std::ifstream file(path, std::ios::binary);
  std::string bytes(std::istreambuf_iterator<char>(file), {});
  std::filesystem::remove(path);
  return bytes;
}

template <typename Part>
void seal(std::string& bytes, std::uint64_t at, std::uint64_t seed) {
  Part part;
  if (at + sizeof part > bytes.size()) return;
  std::memcpy(&part, bytes.data() + at, sizeof part);
  part.checksum = part_checksum(part, seed);
  std::memcpy(bytes.data() + at, &part, sizeof part);
}

// All checksums fit again.
void seal_all(std::string& bytes, const Geometry& geometry) {
  seal<SavePrefix>(bytes, 0, kSaveMagic);
  seal<SaveHead>(bytes, sizeof(SavePrefix), kSaveMagic);
  std::uint64_t file_id = 0;
  if (bytes.size() >= kSaveHeadBytes) std::memcpy(&file_id, bytes.data() + sizeof(SavePrefix), sizeof file_id);
  for (std::uint64_t at = kSaveHeadBytes; at < kRecordsFrom; at += sizeof(SavedNamespace))
    seal<SavedNamespace>(bytes, at, file_id);
  const std::uint64_t record = saved_record_bytes(geometry);
  for (std::uint64_t at = kRecordsFrom; at + record <= bytes.size(); at += record) {
    RecordChecksum checksum;
    checksum.start(file_id);
    checksum.add(bytes.data() + at, record - 8);
    const std::uint64_t value = checksum.value();
    std::memcpy(bytes.data() + at + record - 8, &value, sizeof value);
  }
}

void change(Input& input, std::string& bytes) {
  if (bytes.empty()) return;
  const std::uint64_t record = saved_record_bytes(World::get().segment().geometry());
  // Most of the time in the head or in a record's, which is where sizes and links are.
  std::uint64_t at = input.take<std::uint16_t>() % bytes.size();
  if (input.byte() % 4 != 0)
    at = std::min<std::uint64_t>(kRecordsFrom + input.below(20) * record + input.below(32), bytes.size() - 1);
  else if (input.byte() % 2 == 0)
    at %= kSaveHeadBytes;
  at = std::min<std::uint64_t>(at, bytes.size() - 1);
  const std::size_t count = std::min<std::size_t>(1 + input.below(16), bytes.size() - at);
  switch (input.below(7)) {
    case 0:
      bytes.resize(at);
      break;
    case 1:
      bytes.erase(at, count);
      break;
    case 2:
      bytes.insert(at, count, static_cast<char>(input.byte()));
      break;
    case 3: {
      const std::size_t from = input.take<std::uint16_t>() % (bytes.size() - count + 1);
      bytes.replace(at, count, bytes.substr(from, count));
      break;
    }
    case 4:
      std::memset(bytes.data() + at, input.byte() % 2 == 0 ? 0 : 0xFF, count);
      break;
    case 5:
      bytes[at] = static_cast<char>(input.byte());
      break;
    default:
      for (const std::uint8_t byte : input.bytes(count))
        bytes[at++] = static_cast<char>(byte);
  }
}

// The cache that is loaded into: new for each input.
class Loaded {
 public:
  Loaded() {
    const Geometry& geometry = World::get().segment().geometry();
    const std::uint64_t bytes = layout_of(geometry).segment_bytes;
    segment_fd_ = FileDescriptor(::memfd_create("kvtrie-fuzz-loaded", MFD_CLOEXEC));
    pool_fd_ = FileDescriptor(::memfd_create("kvtrie-fuzz-loaded-pool", MFD_CLOEXEC));
    require(::ftruncate(segment_fd_.get(), static_cast<off_t>(bytes)) == 0 &&
                ::ftruncate(pool_fd_.get(), static_cast<off_t>(pool_bytes(geometry))) == 0,
            "memfd");
    SegmentIdentity identity;
    identity.cache_name = "loaded";
    identity.hash_secret = 5;
    identity.clock = ClockKind::kDriven;
    identity.tick_ns = 1'000'000;
    segment_.emplace(std::move(
        *Segment::build(std::move(*Mapping::map(segment_fd_.get(), bytes, Access::kReadWrite)), geometry, identity)));
  }

  const Segment& segment() const { return *segment_; }
  int pool_fd() const { return pool_fd_.get(); }

  // Whether each page holds the bytes of the tokens on its path.
  void check_bytes() const {
    for (std::uint32_t i = 0; i < kPages; ++i) {
      if (!PageTable(*segment_).state({i}).readable()) continue;
      std::vector<std::uint32_t> tokens;
      std::uint32_t depth = 0;
      std::uint32_t count = 0;
      PageIndex page{i};
      std::uint16_t name_space = 0;
      for (;; ++depth) {
        const Descriptor& d = segment_->descriptor(page);
        std::vector<std::uint32_t> own(d.token_count.load());
        if (depth == 0) count = static_cast<std::uint32_t>(own.size());
        for (std::size_t t = 0; t < own.size(); ++t)
          own[t] = static_cast<std::uint32_t>(segment_->token_words(page)[t / 2].load() >> (t % 2 * 32));
        tokens.insert(tokens.begin(), own.begin(), own.end());
        const Handle parent{d.parent.load()};
        if (parent.is_root()) {
          const NamespaceRecord& record = segment_->name_space(parent.namespace_id());
          name_space = std::string_view(record.fields, 8) == "model=b\n" ? 1 : 0;
          break;
        }
        page = parent.page_index();
      }
      std::vector<std::byte> bytes(kPageBytes);
      require(::pread(pool_fd_.get(), bytes.data(), kPageBytes, std::int64_t{i} * kPageBytes) == kPageBytes, "pread");
      World& world = World::get();
      std::memcpy(world.page_bytes({0}).data(), bytes.data(), kPageBytes);
      require(world.has_bytes(name_space, tokens, depth, count, {0}), "a loaded page has wrong bytes");
    }
  }

 private:
  FileDescriptor segment_fd_;
  FileDescriptor pool_fd_;
  std::optional<Segment> segment_;
};

}  // namespace

void fuzz_save(const std::uint8_t* data, std::size_t size) {
  static const std::string whole = save_of_world();
  static const FileDescriptor fd(::memfd_create("kvtrie-fuzz-file", MFD_CLOEXEC));
  Input input(data, size);
  std::string bytes = whole;
  const std::uint8_t kind = input.byte();
  if (kind % 16 == 0) {
    const std::span<const std::uint8_t> any = input.bytes(size);
    bytes.assign(any.begin(), any.end());
  } else {
    for (std::uint32_t i = 1 + input.below(12); i > 0 && !input.ended(); --i)
      change(input, bytes);
  }
  const bool forged = kind % 2 != 0;
  if (forged) seal_all(bytes, World::get().segment().geometry());
  require(::ftruncate(fd.get(), 0) == 0 &&
              ::pwrite(fd.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()),
          "write");
  Result<SavedFile> file = SavedFile::open("/proc/self/fd/" + std::to_string(fd.get()));
  require(file.has_value(), "open");
  if (file->head_state() != SavedFile::HeadState::kIntact) return;
  const Loaded target;
  if (!file->difference(target.segment().geometry()).empty()) return;
  const Result<LoadReport> report = load_cache(*file, target.segment(), PlaneBytes({target.pool_fd()}, kPageBytes),
                                               [](const LoadReport&) { return false; });
  require(report.has_value() && report->pages <= kPages, "load");
  const VerifyReport found = verify(target.segment(), {.at_rest = true, .findings_max = 1, .settle_ms = 0});
  if (!found.clean()) std::fprintf(stderr, "%s\n", to_string(found.findings.front()).c_str());
  require(found.clean(), "what was loaded is not sound");
  if (!forged) target.check_bytes();
}

}  // namespace kvtrie::fuzz
