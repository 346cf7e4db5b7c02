// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "save/saved_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "save/whole_io.h"

namespace kvtrie {

Result<SavedFile> SavedFile::open(const std::string& path) {
  FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.open()) return Status{Code::kSystem, "opening the save file", errno};
  struct stat about {};
  if (::fstat(fd.get(), &about) != 0)
    return Status{Code::kSystem, "looking at the save file", errno};
  if (!S_ISREG(about.st_mode)) return Status{Code::kInvalid, "a save file is a regular file"};
  SavedFile file(std::move(fd));
  file.size_bytes_ = static_cast<std::uint64_t>(about.st_size);
  file.read_head();
  return file;
}

std::span<const std::byte> SavedFile::read(std::uint64_t offset, std::size_t count) {
  if (offset < buffered_from_ || offset + count > buffered_from_ + buffered_) {
    buffer_.resize(kPieceBytes);
    buffered_from_ = offset;
    const Result<std::size_t> got = read_at(file_.get(), offset, buffer_);
    buffered_ = got ? *got : 0;
  }
  const auto skipped = static_cast<std::size_t>(offset - buffered_from_);
  return {buffer_.data() + skipped, std::min(count, buffered_ - skipped)};
}

template <typename Part>
bool SavedFile::read_part(std::uint64_t offset, std::uint64_t seed, Part& part) {
  const std::span<const std::byte> bytes = read(offset, sizeof part);
  if (bytes.size() != sizeof part) return false;
  std::memcpy(&part, bytes.data(), sizeof part);
  return part.checksum == part_checksum(part, seed);
}

void SavedFile::read_head() {
  SavePrefix prefix{};
  if (!read_part(0, kSaveMagic, prefix) || prefix.magic != kSaveMagic) return;
  if (prefix.version != kSaveVersion || prefix.head_bytes != kSaveHeadBytes) {
    head_state_ = HeadState::kOtherVersion;
    return;
  }
  if (!read_part(sizeof prefix, kSaveMagic, head_)) return;
  if (head_.namespaces > kNamespacesMax) return;  // no save wrote it
  head_state_ = HeadState::kIntact;
}

std::string SavedFile::difference(const Geometry& geometry) const {
  const auto other = [](const char* what, std::uint64_t saved, std::uint64_t here) {
    return saved == here ? std::string{}
                         : fmt::format("it has {} {}, the cache {}", what, saved, here);
  };
  for (const std::string& text :
       {other("tokens-per-page", head_.tokens_per_page, geometry.tokens_per_page),
        other("page-bytes", head_.page_bytes, geometry.page_bytes),
        other("planes", head_.planes, geometry.planes)}) {
    if (!text.empty()) return text;
  }
  return {};
}

std::optional<SavedNamespace> SavedFile::name_space(std::uint32_t number) {
  SavedNamespace saved{};
  const std::uint64_t offset = kSaveHeadBytes + std::uint64_t{number} * sizeof saved;
  if (!read_part(offset, head_.file_id, saved) || saved.number != number) return std::nullopt;
  if (saved.fields_bytes > sizeof saved.fields) return std::nullopt;
  return saved;
}

std::uint64_t SavedFile::records_offset() const {
  return kSaveHeadBytes + std::uint64_t{head_.namespaces} * sizeof(SavedNamespace);
}

std::uint64_t SavedFile::records(const Geometry& geometry) const {
  if (size_bytes_ <= records_offset()) return 0;
  return std::min<std::uint64_t>((size_bytes_ - records_offset()) / saved_record_bytes(geometry),
                                 kPagesMax);
}

std::uint64_t SavedFile::record_offset(const Geometry& geometry, std::uint64_t number) const {
  return records_offset() + number * saved_record_bytes(geometry);
}

bool SavedFile::whole(const Geometry& geometry) {
  SaveTail tail{};
  const std::uint64_t count = records(geometry);
  return read_part(record_offset(geometry, count), head_.file_id, tail) &&
         tail.magic == kSaveTailMagic && tail.records == count &&
         size_bytes_ == record_offset(geometry, count) + sizeof tail;
}

}  // namespace kvtrie
