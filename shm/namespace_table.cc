// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/namespace_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <vector>

#include "shm/crash_point.h"
#include "shm/mutant.h"
#include "shm/page_table.h"
#include "shm/prefix_hash.h"

namespace kvtrie {
namespace {

constexpr std::size_t kFieldWords = kNamespaceDescriptorMax / 8;
constexpr std::uint32_t kPagesBetween = 8192;
using FieldWords = std::array<std::uint64_t, kFieldWords>;

bool good_key(std::string_view key) {
  return !key.empty() && key.size() <= 64 && std::ranges::all_of(key, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
  });
}

bool good_value(std::string_view value) {
  return value.find('\n') == std::string_view::npos && value.find('\0') == std::string_view::npos;
}

// Padded with zeros, so that whole words can be stored and compared.
FieldWords words_of(std::string_view fields) {
  FieldWords words{};
  std::memcpy(words.data(), fields.data(), std::min(fields.size(), sizeof words));
  return words;
}

std::atomic_ref<std::uint64_t> field_word(NamespaceRecord& record, std::size_t i) {
  return std::atomic_ref<std::uint64_t>(reinterpret_cast<std::uint64_t*>(record.fields)[i]);
}

std::uint64_t hash_fields(const Segment& segment, std::string_view fields) {
  return hash_bytes(segment.superblock().hash_secret, fields.data(), fields.size());
}

std::uint64_t seed_of(const Segment& segment, std::uint64_t fields_hash, NamespaceId id) {
  if (KVTRIE_MUTANT(hash_without_namespace)) return segment.superblock().hash_secret;
  const std::uint64_t parts[] = {segment.superblock().hash_secret, fields_hash, id.value};
  return hash_bytes(segment.superblock().hash_secret, parts, sizeof parts);
}

bool is_open(const NamespaceRecord& record) {
  return record.state.load(std::memory_order_acquire) ==
         static_cast<std::uint32_t>(NamespaceState::kOpen);
}

// The namespace if this record holds exactly `fields`, all of one generation.
std::optional<OpenNamespace> match(const Segment& segment, NamespaceId id, std::uint64_t hash,
                                   std::size_t bytes, const FieldWords& words) {
  NamespaceRecord& record = segment.name_space(id);
  if (record.fields_hash.load(std::memory_order_relaxed) != hash) return std::nullopt;
  const std::uint64_t generation = record.root_generation.load(std::memory_order_acquire);
  if (!is_open(record)) return std::nullopt;  // looked at after the generation: a new one shows closed or all new
  bool equal = record.fields_bytes.load(std::memory_order_relaxed) == bytes;
  for (std::size_t i = 0; equal && i < kFieldWords; ++i) {
    // Acquire, so that the second look below stays below.
    equal = field_word(record, i).load(std::memory_order_acquire) == words[i];
  }
  const std::uint64_t seed = record.hash_seed.load(std::memory_order_acquire);
  if (!equal || record.root_generation.load(std::memory_order_acquire) != generation) {
    return std::nullopt;
  }
  return OpenNamespace{id, generation, seed, hash};
}

NamespaceId id_of(std::uint32_t i) { return {static_cast<std::uint16_t>(i)}; }

}  // namespace

Result<std::string> canonical_fields(std::span<const NamespaceField> fields) {
  std::vector<NamespaceField> sorted(fields.begin(), fields.end());
  std::ranges::sort(sorted);
  std::string text;
  for (const auto& [key, value] : sorted) {
    if (!good_key(key) || !good_value(value)) {
      return Status{
          Code::kInvalid,
          "namespace fields: keys are 1 to 64 of a-z 0-9 _ . -, values have no line feed"};
    }
    text.append(key).append("=").append(value).append("\n");
  }
  if (text.size() > kNamespaceDescriptorMax) {
    return Status{Code::kInvalid,
                  "namespace fields: more than 768 bytes; hash the long values first"};
  }
  if (!namespace_fields_problem(text).empty()) {
    return Status{Code::kInvalid, "namespace fields: give at least one, and each key once"};
  }
  return text;
}

std::string namespace_fields_problem(std::string_view text) {
  if (text.empty()) return "namespace fields: at least one line key=value is needed";
  if (text.size() > kNamespaceDescriptorMax) {
    return fmt::format("namespace fields: {} bytes, the limit is {}", text.size(),
                       kNamespaceDescriptorMax);
  }
  std::string_view last_key;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    if (end == std::string_view::npos) return "namespace fields: the last line has no line feed";
    const std::string_view line = text.substr(0, end);
    const std::size_t equals = line.find('=');
    if (equals == std::string_view::npos || !good_key(line.substr(0, equals)) ||
        !good_value(line.substr(equals + 1))) {
      return "namespace fields: a line is not key=value";
    }
    const std::string_view key = line.substr(0, equals);
    if (!last_key.empty() && key <= last_key) {
      return "namespace fields: keys must be sorted, each once";
    }
    last_key = key;
    text.remove_prefix(end + 1);
  }
  return {};
}

Result<OpenNamespace> find_namespace(const Segment& segment, std::string_view fields) {
  if (fields.empty() || fields.size() > kNamespaceDescriptorMax) {
    return Status{Code::kInvalid, "namespace fields: 1 to 768 bytes"};
  }
  const std::uint64_t hash = hash_fields(segment, fields);
  const FieldWords words = words_of(fields);
  for (std::uint32_t i = 0; i < segment.namespace_count(); ++i) {
    if (const auto found = match(segment, id_of(i), hash, fields.size(), words)) return *found;
  }
  return Status{Code::kNotFound, "no such namespace yet"};
}

bool scope_is_current(const Segment& segment, std::uint32_t scope) {
  const NamespaceId id = namespace_in(scope);
  return id.value < segment.namespace_count() &&
         scope_of(id, segment.name_space(id).root_generation.load(std::memory_order_relaxed)) == scope;
}

Result<OpenNamespace> NamespaceTable::open(std::string_view fields, std::string_view label) {
  if (!namespace_fields_problem(fields).empty()) {
    return Status{Code::kInvalid, "namespace fields are not canonical"};
  }
  Result<OpenNamespace> found = find_namespace(segment_, fields);
  if (found) return found;
  const Result<NamespaceId> id = id_to_fill();
  if (!id) return id.error();
  segment_.count(kCoordinatorSlot, Counter::kNamespacesMade);
  return fill(*id, fields, label);
}

Result<NamespaceId> NamespaceTable::id_to_fill() {
  for (std::uint32_t i = 0; i < segment_.namespace_count(); ++i) {
    if (!is_open(segment_.name_space(id_of(i)))) return id_of(i);
  }
  std::vector<bool> used(segment_.namespace_count());
  for (std::uint32_t page = 0; page < segment_.page_count(); ++page) {
    if (page % kPagesBetween == 0) between_();
    const Descriptor& descriptor = segment_.descriptor({page});
    const StateWord word{descriptor.state.load(std::memory_order_acquire)};
    const std::uint32_t id = descriptor.scope.load(std::memory_order_relaxed) >> 16;
    if (word.state() != PageState::kFree && id < used.size()) used[id] = true;
  }
  for (std::uint32_t tried = 0; tried < segment_.namespace_count(); ++tried) {
    const std::uint32_t i = reuse_cursor_;
    reuse_cursor_ = (reuse_cursor_ + 1) % segment_.namespace_count();
    if (!used[i]) {
      segment_.name_space(id_of(i)).state.store(static_cast<std::uint32_t>(NamespaceState::kFree),
                                                std::memory_order_release);
      KVTRIE_CRASH_POINT("namespace.after_close");
      return id_of(i);
    }
  }
  return Status{Code::kFull, "every namespace is taken and has pages"};
}

OpenNamespace NamespaceTable::fill(NamespaceId id, std::string_view fields,
                                   std::string_view label) {
  NamespaceRecord& record = segment_.name_space(id);
  const std::uint64_t hash = hash_fields(segment_, fields);
  const std::uint64_t seed = seed_of(segment_, hash, id);
  // The generation first: a reader that sees any new field then sees that its generation is gone.
  const std::uint64_t generation = record.root_generation.load(std::memory_order_relaxed) + 1;
  record.root_generation.store(generation, std::memory_order_release);
  const FieldWords words = words_of(fields);
  for (std::size_t i = 0; i < kFieldWords; ++i) {
    field_word(record, i).store(words[i], std::memory_order_release);
  }
  record.fields_hash.store(hash, std::memory_order_release);
  record.hash_seed.store(seed, std::memory_order_release);
  record.fields_bytes.store(static_cast<std::uint32_t>(fields.size()), std::memory_order_release);
  std::memset(record.label, 0, sizeof record.label);
  std::copy_n(label.data(), std::min(label.size(), sizeof record.label - 1), record.label);
  KVTRIE_CRASH_POINT("namespace.before_open");
  record.state.store(static_cast<std::uint32_t>(NamespaceState::kOpen), std::memory_order_release);
  return {id, generation, seed, hash};
}

// The first later one whose low 16 bits no page of the namespace has (N4). Until they come round, that is the next.
Result<std::uint64_t> NamespaceTable::generation_after(NamespaceId id, std::uint64_t generation) const {
  constexpr std::uint64_t kScopes = std::uint64_t{1} << 16;
  if (generation + 1 < kScopes || KVTRIE_MUTANT(flush_reuses_scope)) return generation + 1;
  std::vector<bool> used(kScopes);
  used[generation % kScopes] = true;
  for (std::uint32_t page = 0; page < segment_.page_count(); ++page) {
    if (page % kPagesBetween == 0) between_();
    const Descriptor& descriptor = segment_.descriptor({page});
    const StateWord word{descriptor.state.load(std::memory_order_acquire)};
    const std::uint32_t scope = descriptor.scope.load(std::memory_order_relaxed);
    if (word.state() != PageState::kFree && namespace_in(scope) == id) used[scope % kScopes] = true;
  }
  for (std::uint64_t next = generation + 1; next < generation + kScopes; ++next) {
    if (!used[next % kScopes]) return next;
  }
  return Status{Code::kFull, "pages of every earlier flush are still there"};
}

bool NamespaceTable::holds(std::uint32_t id, std::uint64_t fields_hash) const {
  return id < segment_.namespace_count() && is_open(segment_.name_space(id_of(id))) &&
         segment_.name_space(id_of(id)).fields_hash.load(std::memory_order_relaxed) == fields_hash;
}

Result<std::uint64_t> NamespaceTable::flush(NamespaceId id, std::uint64_t fields_hash) const {
  if (!holds(id.value, fields_hash)) return Status{Code::kNotFound, "no such namespace"};
  NamespaceRecord& record = segment_.name_space(id);
  const Result<std::uint64_t> next =
      generation_after(id, record.root_generation.load(std::memory_order_relaxed));
  if (!next) return next;
  KVTRIE_CRASH_POINT("flush.before_generation");
  record.root_generation.store(*next, std::memory_order_seq_cst);
  KVTRIE_CRASH_POINT("flush.after_generation");
  segment_.count(kCoordinatorSlot, Counter::kFlushes);
  return next;
}

void NamespaceTable::recover() const {
  for (std::uint32_t i = 0; i < segment_.namespace_count(); ++i) {
    NamespaceRecord& record = segment_.name_space(id_of(i));
    if (is_open(record)) continue;
    for (std::size_t word = 0; word < kFieldWords; ++word) {
      if (field_word(record, word).load(std::memory_order_relaxed) != 0) {
        field_word(record, word).store(0, std::memory_order_relaxed);
      }
    }
    record.fields_hash.store(0, std::memory_order_release);
    record.hash_seed.store(0, std::memory_order_release);
    record.fields_bytes.store(0, std::memory_order_relaxed);
    std::memset(record.label, 0, sizeof record.label);
  }
}

std::string NamespaceTable::validate(NamespaceId id) const {
  const NamespaceRecord& record = segment_.name_space(id);
  const std::uint32_t state = record.state.load(std::memory_order_acquire);
  const std::uint64_t generation = record.root_generation.load(std::memory_order_acquire);
  const auto byte_at = [](const char* text) { return __atomic_load_n(text, __ATOMIC_RELAXED); };
  if (byte_at(record.label + sizeof record.label - 1) != '\0') return "label without an end";
  if (generation >> kGenerationBits != 0) {
    return fmt::format("impossible root generation {}", generation);
  }
  if (state == static_cast<std::uint32_t>(NamespaceState::kFree)) return {};
  if (state != static_cast<std::uint32_t>(NamespaceState::kOpen)) {
    return fmt::format("impossible state {}", state);
  }
  if (generation == 0) return "open in root generation 0";
  const std::uint32_t bytes = record.fields_bytes.load(std::memory_order_relaxed);
  if (bytes > kNamespaceDescriptorMax) return fmt::format("{} field bytes", bytes);
  std::array<char, kNamespaceDescriptorMax> copy{};  // what is checked does not change meanwhile
  for (std::size_t i = 0; i < copy.size(); ++i)
    copy[i] = byte_at(record.fields + i);
  const std::string_view fields(copy.data(), bytes);
  if (std::string text = namespace_fields_problem(fields); !text.empty()) return text;
  const std::uint64_t hash = hash_fields(segment_, fields);
  if (record.fields_hash.load(std::memory_order_relaxed) != hash ||
      record.hash_seed.load(std::memory_order_relaxed) != seed_of(segment_, hash, id)) {
    return "hash does not match its fields";
  }
  if (std::any_of(copy.begin() + bytes, copy.end(), [](char c) { return c != '\0'; })) {
    return "bytes after its fields are not zero";
  }
  return {};
}

std::string NamespaceTable::validate() const {
  for (std::uint32_t i = 0; i < segment_.namespace_count(); ++i) {
    const std::string problem = validate(id_of(i));
    if (!problem.empty()) return fmt::format("namespace {}: {}", i, problem);
  }
  return {};
}

NamespaceStats NamespaceTable::stats() const {
  NamespaceStats stats;
  for (std::uint32_t i = 0; i < segment_.namespace_count(); ++i) {
    if (is_open(segment_.name_space(id_of(i)))) ++stats.open;
  }
  return stats;
}

}  // namespace kvtrie
