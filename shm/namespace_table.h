// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Namespaces: what must match before KV may be shared (C8), made by the coordinator on request,
// found by workers without a lock.
//
// Layout: area kNamespaces, one NamespaceRecord (1024 bytes) each. A namespace is its canonical
// field text: lines "key=value\n", sorted by key, each key once. It is compared in full;
// fields_hash only finds candidates. Root handle: Handle::root(id, root_generation).
//
// Invariants
//   N1 At most one kOpen record has a given field text.
//   N2 fields, fields_hash, hash_seed and label are constant while (kOpen, root_generation) is.
//   N3 root_generation only grows: at each open, reuse and flush.
//   N4 No page that is not Free has the low 16 bits of a generation that a flush gives (Descriptor::scope has no more),
//      unless a sequence that began 65,536 flushes ago announces it later: it is never matched all the same, since its
//      parent handle has the whole generation; the evictor takes it as late as a page of the present one.
//
// States, moved by the coordinator alone:
//   kFree -> kOpen            release store, after all else
//   kOpen -> kFree -> kOpen   reuse, with the next root generation: only when the table is full,
//                             and only of a namespace without a page. A handle of its old
//                             root is of a dead generation then (rule 18).
//   kOpen -> kOpen            flush: one seq_cst store of the next generation, and nothing else. Workers read it again at
//                             each begin, announce and publish; what they read before it is of a dead generation.
// Reuse stores kFree, the generation, the fields, kOpen. A reader loads the generation, then the
// state, then the fields, then the generation again: a new generation shows kFree or all new fields,
// a new field shows the new generation at the second look; so open and equal belong together.
//
// Crash: died after / left behind / repaired by / test (NamespaceTableTest)
//   open, namespace.before_open / kFree with fields / recover clears them / CoordinatorDiesInOpen
//   reuse, namespace.after_close / kFree, old generation / recover; the next open takes it /
//       CoordinatorDiesInReuse
//   flush, before or after its store / not flushed, or flushed / nothing to repair / step_kill admin.flush
//
// Cost: finding and opening read one line a record, at most 65,536; reuse also one line a page.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "shm/format.h"
#include "shm/ids.h"
#include "shm/segment.h"
#include "shm/status.h"

namespace kvtrie {

struct OpenNamespace {
  NamespaceId id;
  std::uint64_t root_generation = 0;
  std::uint64_t hash_seed = 0;
  std::uint64_t fields_hash = 0;
  Handle root() const { return Handle::root(id, root_generation); }
};

using NamespaceField = std::pair<std::string_view, std::string_view>;

// Sorted text of the fields, in any order. kInvalid: no field, a key twice, or a character that
// cannot be (keys: 1 to 64 of [a-z0-9_.-]; values: no line feed, no NUL), or longer than
// kNamespaceDescriptorMax.
Result<std::string> canonical_fields(std::span<const NamespaceField> fields);
// Empty when `text` is canonical; the coordinator checks what it is sent.
std::string namespace_fields_problem(std::string_view text);

// Lock-free; for workers and read-only mappings. kNotFound: ask the coordinator.
Result<OpenNamespace> find_namespace(const Segment& segment, std::string_view fields);

// Whether pages of this scope (Descriptor::scope) can still be matched: not those of a flushed or reused root, and not
// one that names no namespace of this segment.
bool scope_is_current(const Segment& segment, std::uint32_t scope);

struct NamespaceStats {
  std::uint32_t open = 0;
};

// The coordinator's side; one of it a segment.
class NamespaceTable {
 public:
  // `between` is called every 8,192 pages of a walk over all of them, which can take 10 ms a million.
  explicit NamespaceTable(const Segment& segment, std::function<void()> between = [] {})
      : segment_(segment), between_(std::move(between)) {}

  // Zero bytes are a table without namespaces.
  void init() const {}
  // Empty, or the first thing in a record that cannot be, and which record; of one that is being filled just now it
  // may be wrong. For N1 ask `verify`.
  std::string validate() const;
  std::string validate(NamespaceId id) const;
  // After a coordinator's death. Idempotent.
  void recover() const;
  NamespaceStats stats() const;

  // Finds or makes. kInvalid: not canonical. kFull: no free record, and none without pages.
  Result<OpenNamespace> open(std::string_view fields, std::string_view label);
  // Whether this id is of a namespace of this segment that is open with these fields.
  bool holds(std::uint32_t id, std::uint64_t fields_hash) const;
  // Nothing published before is matched from now on (rule 18). Returns the new root generation. kNotFound: not open
  // with these fields. kFull: pages of 65,535 flushed generations are still there (N4): wait until they went.
  // Usually one store; after 65,535 flushes of the same namespace also one line a page.
  Result<std::uint64_t> flush(NamespaceId id, std::uint64_t fields_hash) const;

 private:
  OpenNamespace fill(NamespaceId id, std::string_view fields, std::string_view label);
  Result<NamespaceId> id_to_fill();
  Result<std::uint64_t> generation_after(NamespaceId id, std::uint64_t generation) const;

  const Segment& segment_;
  std::function<void()> between_;
  std::uint32_t reuse_cursor_ = 0;  // so that one just opened, still empty, is the last to be taken
};

}  // namespace kvtrie
