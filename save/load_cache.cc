// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "save/load_cache.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "save/saved_time.h"
#include "shm/announce.h"
#include "shm/crash_point.h"
#include "shm/free_pages.h"
#include "shm/namespace_table.h"
#include "shm/page_table.h"

namespace kvtrie {
namespace {

constexpr std::uint32_t kLeftOut = ~std::uint32_t{0};

class Loader {
 public:
  Loader(SavedFile& file, const Segment& segment, const PlaneBytes& planes)
      : file_(file),
        segment_(segment),
        planes_(planes),
        time_(file.head(), segment),
        tokens_(saved_tokens_bytes(segment.tokens_per_page()) / 4) {}

  Status run(const std::function<bool(const LoadReport&)>& stopped) {
    const Geometry& geometry = segment_.geometry();
    report_.records = file_.records(geometry);
    report_.whole = file_.whole(geometry);
    open_namespaces();
    KVTRIE_CRASH_POINT("load.after_namespaces");
    const std::uint64_t between =
        std::max<std::uint64_t>(1, SavedFile::kPieceBytes / saved_record_bytes(geometry));
    for (std::uint64_t number = 0; number < report_.records; ++number) {
      if (report_.pages == segment_.page_count()) {
        report_.no_room = report_.records - number;
        break;
      }
      if (number % between == 0 && stopped(report_))
        return {Code::kRefused, "the load was stopped"};
      if (Status status = load_record(static_cast<std::uint32_t>(number)); !status) return status;
      KVTRIE_CRASH_POINT("load.after_page");
    }
    clear_free_bits();
    return {};
  }

  const LoadReport& report() const { return report_; }

 private:
  // Where a page goes: below a root or a page that was loaded.
  struct Place {
    Handle parent;
    std::uint64_t hash;
    NamespaceId name_space;
    std::uint64_t root_generation;
    std::uint32_t depth;
  };

  // Never one more than the table has records for: it would take
  // an empty one from a namespace that was just opened.
  void open_namespaces() {
    NamespaceTable table(segment_);
    namespaces_.resize(file_.head().namespaces);
    for (std::uint32_t i = 0; i < namespaces_.size(); ++i) {
      const std::optional<SavedNamespace> saved = file_.name_space(i);
      const bool room = table.stats().open < segment_.namespace_count();
      if (saved && room) {
        const std::string_view fields(saved->fields, saved->fields_bytes);
        const std::string_view label(saved->label, ::strnlen(saved->label, sizeof saved->label));
        if (const Result<OpenNamespace> open = table.open(fields, label)) namespaces_[i] = *open;
      }
      ++(namespaces_[i] ? report_.namespaces : report_.namespaces_left_out);
    }
  }

  Status load_record(std::uint32_t number) {
    page_of_.push_back(kLeftOut);
    const PageIndex page{static_cast<std::uint32_t>(report_.pages)};
    SavedPage record{};
    bool intact = false;
    if (Status status = copy_in(number, page, record, intact); !status) return status;
    std::uint64_t LoadReport::*reason = nullptr;
    if (!intact || record.number != number) {
      reason = &LoadReport::damaged;
    } else {
      reason = enter(page, record);
    }
    if (reason != nullptr) {
      ++(report_.*reason);
    } else {
      page_of_.back() = page.value;
      ++report_.pages;
    }
    return {};
  }

  // Of what was loaded: pages 0 and up.
  void clear_free_bits() {
    for (std::uint32_t i = 0; i < report_.pages; ++i) {
      segment_.free_bits(i / kChunkPages)
          .fetch_and(~(std::uint64_t{1} << i % kChunkPages), std::memory_order_relaxed);
    }
    segment_.superblock().free_hint.store(static_cast<std::int64_t>(FreePages(segment_).count()),
                                          std::memory_order_relaxed);
  }

  // Steps 1 and 2. What it writes, record and tokens_ too, is nobody's until `intact`.
  Status copy_in(std::uint32_t number, PageIndex page, SavedPage& record, bool& intact) {
    checksum_.start(file_.head().file_id);
    std::uint64_t offset = file_.record_offset(segment_.geometry(), number);
    if (!copy(offset, &record, sizeof record)) return {};
    checksum_.add(&record, sizeof record);
    if (!copy(offset, tokens_.data(), tokens_.size() * sizeof tokens_[0])) return {};
    checksum_.add(tokens_.data(), tokens_.size() * sizeof tokens_[0]);
    for (std::uint32_t plane = 0; plane < planes_.planes(); ++plane) {
      for (std::uint64_t at = 0; at < planes_.page_bytes();) {
        const auto count = static_cast<std::size_t>(
            std::min<std::uint64_t>(SavedFile::kPieceBytes, planes_.page_bytes() - at));
        const std::span<const std::byte> piece = file_.read(offset, count);
        if (piece.size() != count) return {};
        checksum_.add(piece.data(), count);
        if (Status status = planes_.write(page, plane, at, piece); !status) return status;
        at += count;
        offset += count;
      }
    }
    std::uint64_t saved = 0;
    intact = copy(offset, &saved, sizeof saved) && saved == checksum_.value();
    return {};
  }

  bool copy(std::uint64_t& offset, void* into, std::size_t count) {
    const std::span<const std::byte> bytes = file_.read(offset, count);
    if (bytes.size() != count) return false;
    std::memcpy(into, bytes.data(), count);
    offset += count;
    return true;
  }

  // Steps 3 to 5. Null, or why it was left out.
  std::uint64_t LoadReport::*enter(PageIndex page, const SavedPage& record) {
    if (record.token_count == 0 || record.token_count > segment_.tokens_per_page() ||
        record.priority > 0xF) {
      return &LoadReport::impossible;
    }
    Place place{};
    if (std::uint64_t LoadReport::*reason = find_place(record, place)) return reason;
    const std::span<const std::uint32_t> tokens(tokens_.data(), record.token_count);
    PageNode node;
    node.parent = place.parent;
    node.prefix_hash = hash_page(place.hash, tokens);
    node.name_space = place.name_space;
    node.root_generation = place.root_generation;
    node.depth = place.depth;
    node.priority = record.priority;
    node.touch = time_.recency(
        record.recency, static_cast<double>(record.number) / static_cast<double>(report_.records));
    node.tick = time_.now();
    node.retain_until = time_.retain_until(record.retain_ticks);
    node.publisher = kCoordinatorSlot;
    const AnnounceOutcome outcome =
        announce_page(segment_, StripeIndex(segment_), kCoordinatorSlot, page, node, tokens).outcome;
    if (outcome == AnnounceOutcome::kDuplicate) return &LoadReport::impossible;
    if (outcome != AnnounceOutcome::kAnnounced) return &LoadReport::no_entry;
    AtomicU64& state = segment_.descriptor(page).state;
    state.store(StateWord{state.load()}.with(PageState::kLive).raw, std::memory_order_release);
    return nullptr;
  }

  std::uint64_t LoadReport::*find_place(const SavedPage& record, Place& place) const {
    if ((record.parent & kRootBit) != 0) {
      const std::uint32_t number = record.parent & ~kRootBit;
      if (number >= namespaces_.size()) return &LoadReport::impossible;
      if (!namespaces_[number]) return &LoadReport::below_left_out;
      const OpenNamespace& open = *namespaces_[number];
      place = {open.root(), open.hash_seed, open.id, open.root_generation, 1};
      return nullptr;
    }
    if (record.parent >= record.number) return &LoadReport::impossible;
    if (page_of_[record.parent] == kLeftOut) return &LoadReport::below_left_out;
    const PageIndex up{page_of_[record.parent]};
    const Descriptor& d = segment_.descriptor(up);
    if (d.token_count.load() != segment_.tokens_per_page()) return &LoadReport::impossible;
    const NamespaceId id = namespace_in(d.scope.load());
    place = {Handle::page(up, PageTable(segment_).state(up)), d.prefix_hash.load(), id,
             segment_.name_space(id).root_generation.load(), depth_in(d.depth_class.load()) + 1};
    return nullptr;
  }

  SavedFile& file_;
  const Segment& segment_;
  const PlaneBytes& planes_;
  const SavedTime time_;
  LoadReport report_;
  std::vector<std::optional<OpenNamespace>> namespaces_;  // by number in the file
  std::vector<std::uint32_t> page_of_;                    // by record
  RecordChecksum checksum_;
  std::vector<std::uint32_t> tokens_;  // of the record at hand
};

}  // namespace

Result<LoadReport> load_cache(SavedFile& file, const Segment& segment, const PlaneBytes& planes,
                              const std::function<bool(const LoadReport&)>& stopped) {
  Loader loader(file, segment, planes);
  if (Status status = loader.run(stopped); !status) return status;
  return loader.report();
}

}  // namespace kvtrie
