// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/support/cache_oracle.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "shm/prefix_hash.h"
#include "shm/verify.h"

namespace kvtrie::test {
namespace {

StateWord word_at(const Segment& segment, std::uint32_t page) {
  return {segment.descriptor({page}).state.load()};
}

bool canonical(StateWord word) {
  return word.state() == PageState::kLive || word.state() == PageState::kPending;
}

void check_free_bits(const Segment& segment) {
  for (std::uint32_t page = 0; page < kWorldPages; ++page) {
    const bool bit = (segment.free_bits(page / kChunkPages).load() >> page % kChunkPages & 1) != 0;
    const bool free = word_at(segment, page).state() == PageState::kFree;
    if (bit != free) {
      throw Violation(fmt::format("page {} is {} and its free bit is {}", page,
                                  name_of(word_at(segment, page).state()), bit ? 1 : 0));
    }
  }
}

void check_held_counts(const Segment& segment) {
  for (std::uint32_t slot = 0; slot < segment.slot_count(); ++slot) {
    for (std::uint32_t chunk = 0; chunk < segment.chunk_count(); ++chunk) {
      std::uint32_t owned = 0;
      const std::uint32_t end = std::min((chunk + 1) * kChunkPages, kWorldPages);
      for (std::uint32_t page = chunk * kChunkPages; page < end; ++page) {
        const StateWord word = word_at(segment, page);
        owned += word.owned() && word.owner().value == slot ? 1 : 0;
      }
      const std::uint32_t held =
          segment.held_count(WorkerId{static_cast<std::uint16_t>(slot)}, chunk).load();
      if (held != owned) {
        throw Violation(fmt::format("worker {} owns {} pages of chunk {} and its held count is {}",
                                    slot, owned, chunk, held));
      }
    }
  }
}

// Entries are read as words, whatever bucket they are in.
void check_index(const Segment& segment) {
  std::map<std::uint32_t, unsigned> entries;
  for (std::uint64_t b = 0; b < segment.layout().bucket_count; ++b) {
    for (const AtomicU64& slot : segment.bucket(b).entries) {
      const std::uint64_t entry = slot.load();
      if (entry != 0) ++entries[static_cast<std::uint32_t>(entry & kIndexMask)];
    }
  }
  for (std::uint32_t page = 0; page < kWorldPages; ++page) {
    const StateWord word = word_at(segment, page);
    const unsigned found = entries.count(page) == 0 ? 0 : entries[page];
    entries.erase(page);
    if (found != (canonical(word) ? 1U : 0U)) {
      throw Violation(fmt::format("page {} is {} and in the index {} times", page,
                                  name_of(word.state()), found));
    }
  }
  if (!entries.empty()) throw Violation("an index entry of a page that is not there");
}

void check_leases(const Segment& segment) {
  for (std::uint32_t slot = 0; slot < segment.slot_count(); ++slot) {
    for (const LeaseSlot& lease : segment.leases(WorkerId{static_cast<std::uint16_t>(slot)})) {
      const Handle handle{lease.handle.load()};
      if (handle.none()) continue;
      const bool good = handle.is_page() && segment.has(handle.page_index()) &&
                        handle.same_life(word_at(segment, handle.page_index().value)) &&
                        word_at(segment, handle.page_index().value).state() == PageState::kLive;
      if (!good) {
        throw Violation(fmt::format("worker {} has a lease on page {}, which is not what it leased",
                                    slot, handle.page_index().value));
      }
    }
  }
}

}  // namespace

PageCensus count_pages(const Segment& segment) {
  PageCensus census;
  for (std::uint32_t page = 0; page < kWorldPages; ++page) {
    const StateWord word = word_at(segment, page);
    if (!word.well_formed()) throw Violation(fmt::format("page {}: word {:#x}", page, word.raw));
    switch (word.state()) {
      case PageState::kFree:
        ++census.free;
        break;
      case PageState::kWriting:
      case PageState::kPending:
        ++census.held;
        break;
      case PageState::kLive:
        ++census.cached;
        break;
      case PageState::kCondemned:
      case PageState::kRetiring:
        throw Violation(fmt::format("page {} is left {}", page, name_of(word.state())));
    }
  }
  return census;
}

Paths cached_paths(const View& view) {
  const Segment& segment = view.segment();
  Paths paths;
  for (std::uint32_t page = 0; page < kWorldPages; ++page) {
    if (word_at(segment, page).state() != PageState::kLive) continue;
    Path path;
    for (std::uint32_t at = page;;) {
      const std::uint64_t first = segment.token_words({at})[0].load() & 0xFFFF'FFFF;
      const auto number = static_cast<std::uint32_t>(first / 1000);
      const bool whole = segment.descriptor({at}).token_count.load() == kWorldTokens;
      path.insert(path.begin(), whole ? number : half(number));
      const Handle parent{segment.descriptor({at}).parent.load()};
      if (parent.is_root()) break;
      const bool good = parent.is_page() && segment.has(parent.page_index()) &&
                        parent.same_life(word_at(segment, parent.page_index().value)) &&
                        word_at(segment, parent.page_index().value).state() == PageState::kLive;
      if (!good || path.size() > kWorldPages) {
        throw Violation(fmt::format("Live page {} has a parent that is not Live", at));
      }
      at = parent.page_index().value;
    }
    const std::vector<std::uint32_t> tokens = tokens_of({path.back()});
    for (std::size_t i = 0; i < tokens.size(); i += 2) {
      const std::uint64_t expected = tokens[i] | std::uint64_t{tokens[i + 1]} << 32;
      if (segment.token_words({page})[i / 2].load() != expected) {
        throw Violation(fmt::format("page {} of {}: wrong tokens", page, to_text(path)));
      }
    }
    const std::uint64_t hash = hash_bytes(0, path.data(), path.size() * sizeof path[0]);
    const std::span<std::uint64_t> words = view.page_words({page});
    for (std::size_t w = 0; w < words.size(); ++w) {
      if (words[w] != hash_bytes(hash, &w, sizeof w)) {
        throw Violation(fmt::format("page {} of {}: wrong bytes", page, to_text(path)));
      }
    }
    if (!paths.insert(path).second) {
      throw Violation(fmt::format("{} is cached twice", to_text(path)));
    }
  }
  return paths;
}

void check_at_rest(const View& view) {
  const Segment& segment = view.segment();
  const PageCensus census = count_pages(segment);
  if (census.free + census.held + census.cached != kWorldPages) throw Violation("pages are lost");
  check_free_bits(segment);
  check_held_counts(segment);
  check_index(segment);
  check_leases(segment);
  VerifyOptions options;
  options.at_rest = true;
  const VerifyReport report = verify(segment, options);
  if (!report.clean()) throw Violation("verify: " + to_string(report.findings.front()));
}

void check_cached(const View& view, const Paths& must, const Paths& may) {
  const Paths cached = cached_paths(view);
  for (const Path& path : must) {
    if (!cached.contains(path)) throw Violation(to_text(path) + " was published and is gone");
  }
  for (const Path& path : cached) {
    if (!may.contains(path)) throw Violation(to_text(path) + " is cached and nobody published it");
  }
}

}  // namespace kvtrie::test
