// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/page_table.h"

namespace kvtrie {

void PageTable::write_node(PageIndex page, const PageNode& node,
                           std::span<const std::uint32_t> tokens) const {
  Descriptor& d = segment_.descriptor(page);
  constexpr auto kRelaxed = std::memory_order_relaxed;
  d.prefix_hash.store(node.prefix_hash, kRelaxed);
  d.touch.store(node.touch.raw, kRelaxed);
  d.scope.store(scope_of(node.name_space, node.root_generation), kRelaxed);
  d.depth_class.store((node.depth & 0xFFFFFF) | std::uint32_t{node.priority & 0xFU} << 24, kRelaxed);
  d.since_tick.store(node.tick, kRelaxed);
  d.retain_until.store(node.retain_until, kRelaxed);
  d.child_hint.store(0, kRelaxed);
  d.publisher.store(node.publisher.value, kRelaxed);
  d.checksum.store(0, kRelaxed);
  // Release: a reader that sees one of these also sees that the page was taken, so its second look at
  // the state word (lease.h) cannot read the old life.
  d.token_count.store(static_cast<std::uint16_t>(tokens.size()), std::memory_order_release);
  AtomicU64* words = segment_.token_words(page);
  std::size_t i = 0;
  for (; i + 1 < tokens.size(); i += 2) {
    words[i / 2].store(tokens[i] | std::uint64_t{tokens[i + 1]} << 32, std::memory_order_release);
  }
  if (i < tokens.size()) words[i / 2].store(tokens[i], std::memory_order_release);
  d.parent.store(node.parent.raw, std::memory_order_release);
}

}  // namespace kvtrie
