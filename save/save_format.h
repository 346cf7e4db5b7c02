// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Every byte of a save file. docs/save-format.md draws it and says what a reader does with each
// part; a change here raises kSaveVersion.
//
//   prefix | head | SavedNamespace x namespaces | records | tail
//   record := SavedPage | tokens, filled up to 8 bytes | bytes of each plane | checksum 8
//
// The file's own words, in the host's byte order, which is little-endian. Every part ends with the
// XXH3-64 of its other bytes.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "shm/format.h"
#include "shm/geometry.h"
#include "shm/prefix_hash.h"

namespace kvtrie {

inline constexpr std::uint64_t kSaveMagic = 0x4556'4153'5254'564bULL;  // "KVTRSAVE" in file order
inline constexpr std::uint64_t kSaveTailMagic = 0x3144'4e45'5254'564bULL;  // "KVTREND1"
inline constexpr std::uint32_t kSaveVersion = 1;
// In SavedPage::parent: the rest is a namespace's number.
inline constexpr std::uint32_t kRootBit = 1U << 31;

static_assert(std::endian::native == std::endian::little, "save files are little-endian");

// The same in every format version.
struct SavePrefix {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t head_bytes;  // of prefix and head
  std::uint64_t checksum;
};
static_assert(sizeof(SavePrefix) == 24, "what every version reads first");

struct SaveHead {
  std::uint64_t file_id;  // random; seed of the checksums of all that follows
  std::uint64_t saved_realtime_ns;
  std::uint64_t tick_ns;
  std::uint64_t page_bytes;
  std::uint32_t now_tick;
  std::uint32_t clock_kind;
  std::uint32_t tokens_per_page;
  std::uint32_t planes;
  std::uint32_t namespaces;
  std::uint32_t reserved;
  char cache_name[64];
  std::uint64_t reserved_word;
  std::uint64_t checksum;
};
static_assert(sizeof(SaveHead) == 136, "part of the format");

struct SavedNamespace {
  std::uint32_t fields_bytes;
  std::uint32_t number;
  char label[64];
  char fields[kNamespaceDescriptorMax];
  std::uint64_t checksum;
};
static_assert(sizeof(SavedNamespace) == 848, "part of the format");

struct SavedPage {
  std::uint32_t number;
  std::uint32_t parent;        // number of an earlier record, or kRootBit | number of a namespace
  std::uint64_t recency;       // TouchWord: the latest of this page and of all below it
  std::uint32_t retain_ticks;  // left when it was saved; 0: none
  std::uint16_t token_count;
  std::uint8_t priority;
  std::uint8_t reserved;
  std::uint64_t reserved_word;
};
static_assert(sizeof(SavedPage) == 32, "part of the format");

struct SaveTail {
  std::uint64_t magic;
  std::uint64_t records;
  std::uint64_t checksum;
};
static_assert(sizeof(SaveTail) == 24, "part of the format");

inline constexpr std::uint64_t kSaveHeadBytes = sizeof(SavePrefix) + sizeof(SaveHead);

constexpr std::uint64_t saved_tokens_bytes(std::uint32_t tokens_per_page) {
  return (std::uint64_t{tokens_per_page} * 4 + 7) / 8 * 8;
}

// Of every record of a file of this geometry.
constexpr std::uint64_t saved_record_bytes(const Geometry& geometry) {
  return sizeof(SavedPage) + saved_tokens_bytes(geometry.tokens_per_page) +
         geometry.planes * geometry.page_bytes + sizeof(std::uint64_t);
}

// Of a part whose last member is its checksum.
template <typename Part>
std::uint64_t part_checksum(const Part& part, std::uint64_t seed) {
  static_assert(
      std::is_trivially_copyable_v<Part> && std::has_unique_object_representations_v<Part>,
      "every byte of it is in the file");
  return hash_bytes(seed, &part, offsetof(Part, checksum));
}

// Of one record after the other, fed in pieces.
class RecordChecksum {
 public:
  RecordChecksum() { XXH3_INITSTATE(&state_); }
  void start(std::uint64_t file_id) { XXH3_64bits_reset_withSeed(&state_, file_id); }
  void add(const void* bytes, std::size_t count) { XXH3_64bits_update(&state_, bytes, count); }
  std::uint64_t value() const { return XXH3_64bits_digest(&state_); }

 private:
  XXH3_state_t state_;
};

}  // namespace kvtrie
