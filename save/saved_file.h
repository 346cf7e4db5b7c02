// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A save file as its reader sees it: bytes that anybody may have damaged. Nothing here trusts a
// size in it: parts have fixed sizes, records the one that the reader's own geometry gives them.
//
// Not thread-safe. The file is read, not mapped: one that is cut short meanwhile is short, not a
// SIGBUS. A read error counts as the end of the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "save/save_format.h"
#include "shm/geometry.h"
#include "shm/shared_object.h"
#include "shm/status.h"

namespace kvtrie {

class SavedFile {
 public:
  enum class HeadState : std::uint8_t {
    kIntact,
    kDamaged,       // or no save file: nothing in it is believed
    kOtherVersion,  // made by another build, intact as far as that can be told
  };
  static constexpr std::size_t kPieceBytes = std::size_t{1} << 20;

  // kSystem: it cannot be opened. kInvalid: not a regular file.
  static Result<SavedFile> open(const std::string& path);

  HeadState head_state() const { return head_state_; }
  // Requires kIntact, as all below.
  const SaveHead& head() const { return head_; }
  // First value that is not `geometry`'s, in words: its pages
  // would be other pages. Empty: they fit.
  std::string difference(const Geometry& geometry) const;

  // Empty: damaged.
  std::optional<SavedNamespace> name_space(std::uint32_t number);
  // Whole records of this geometry that the file has room for, at
  // most kPagesMax; and their first byte.
  std::uint64_t records(const Geometry& geometry) const;
  std::uint64_t record_offset(const Geometry& geometry, std::uint64_t number) const;
  // It was finished: the tail stands where it belongs.
  bool whole(const Geometry& geometry);

  // `count` <= kPieceBytes bytes, or fewer at the end; valid until the next call.
  std::span<const std::byte> read(std::uint64_t offset, std::size_t count);

 private:
  explicit SavedFile(FileDescriptor file) : file_(std::move(file)) {}
  void read_head();
  template <typename Part>
  bool read_part(std::uint64_t offset, std::uint64_t seed, Part& part);
  std::uint64_t records_offset() const;

  FileDescriptor file_;
  std::uint64_t size_bytes_ = 0;
  HeadState head_state_ = HeadState::kDamaged;
  SaveHead head_{};
  std::vector<std::byte> buffer_;
  std::uint64_t buffered_from_ = 0;
  std::size_t buffered_ = 0;
};

}  // namespace kvtrie
