// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "save/save_cache.h"

#include <sys/random.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <vector>

#include "save/save_file.h"
#include "save/save_format.h"
#include "save/save_plan.h"
#include "shm/crash_point.h"
#include "shm/page_table.h"

namespace kvtrie {
namespace {

constexpr std::uint32_t kNotSaved = ~std::uint32_t{0};
constexpr std::uint64_t kPieceBytes = std::uint64_t{1} << 20;

std::uint64_t realtime_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

class Saver {
 public:
  Saver(const Segment& segment, const PlaneBytes& planes, SaveFile& file)
      : segment_(segment), planes_(planes), file_(file) {}

  Status run() {
    if (::getrandom(&file_id_, sizeof file_id_, 0) != sizeof file_id_) {
      return {Code::kSystem, "getrandom", errno};
    }
    now_tick_ = segment_.now_tick();
    plan_ = plan_save(segment_);
    report_.namespaces = plan_.namespaces.size();
    report_.flushed = plan_.flushed;
    report_.unreachable = plan_.unreachable;
    if (Status status = write_head(); !status) return status;
    if (Status status = write_namespaces(); !status) return status;
    if (Status status = write_pages(); !status) return status;
    if (Status status = check_still_true(); !status) return status;
    SaveTail tail{kSaveTailMagic, report_.pages, 0};
    if (Status status = write_part(tail); !status) return status;
    report_.file_bytes = file_.size_bytes();
    return file_.commit();
  }

  const SaveReport& report() const { return report_; }

 private:
  Status append(const void* bytes, std::size_t count) {
    return file_.append({static_cast<const std::byte*>(bytes), count});
  }

  template <typename Part>
  Status write_part(Part& part) {
    part.checksum = part_checksum(part, file_id_);
    return append(&part, sizeof part);
  }

  Status write_head() {
    SavePrefix prefix{kSaveMagic, kSaveVersion, kSaveHeadBytes, 0};
    prefix.checksum = part_checksum(prefix, kSaveMagic);
    if (Status status = append(&prefix, sizeof prefix); !status) return status;
    const Superblock& block = segment_.superblock();
    SaveHead head{};
    head.file_id = file_id_;
    head.saved_realtime_ns = realtime_ns();
    head.tick_ns = block.tick_ns;
    head.page_bytes = segment_.geometry().page_bytes;
    head.now_tick = now_tick_;
    head.clock_kind = block.clock_kind;
    head.tokens_per_page = segment_.tokens_per_page();
    head.planes = segment_.geometry().planes;
    head.namespaces = static_cast<std::uint32_t>(plan_.namespaces.size());
    std::memcpy(head.cache_name, block.cache_name, sizeof head.cache_name);
    head.checksum = part_checksum(head, kSaveMagic);
    return append(&head, sizeof head);
  }

  Status write_namespaces() {
    namespace_number_.resize(segment_.namespace_count());
    for (std::uint32_t i = 0; i < plan_.namespaces.size(); ++i) {
      const PlannedNamespace& planned = plan_.namespaces[i];
      namespace_number_[planned.root.namespace_id().value] = i;
      SavedNamespace saved{};
      saved.fields_bytes = static_cast<std::uint32_t>(planned.fields.size());
      saved.number = i;
      std::ranges::copy(planned.label, saved.label);
      std::ranges::copy(planned.fields, saved.fields);
      if (Status status = write_part(saved); !status) return status;
    }
    return {};
  }

  Status write_pages() {
    record_of_.assign(segment_.page_count(), kNotSaved);
    for (const PlannedPage& page : plan_.pages) {
      std::uint32_t parent = kRootBit;
      if (page.parent.is_root()) {
        parent |= namespace_number_[page.parent.namespace_id().value];
      } else {
        parent = record_of_[page.parent.page_index().value];
      }
      if (parent == kNotSaved) {
        ++report_.below_changed;
        continue;
      }
      const std::uint64_t before = file_.size_bytes();
      bool whole = false;
      if (Status status = copy_page(page, parent, whole); !status) return status;
      KVTRIE_CRASH_POINT("save.after_page");
      if (whole) {
        record_of_[page.page.page_index().value] = static_cast<std::uint32_t>(report_.pages++);
      } else {
        file_.go_back_to(before);
        ++report_.changed;
      }
    }
    return {};
  }

  // Steps 1 and 3: still what was planned.
  bool readable(Handle page) const {
    const StateWord word = PageTable(segment_).state(page.page_index());
    return word.readable() && page.same_life(word);
  }

  // Steps 1 to 3. `whole`: the record is a page; else it is to be taken back.
  Status copy_page(const PlannedPage& page, std::uint32_t parent, bool& whole) {
    whole = false;
    if (!readable(page.page)) return {};
    checksum_.start(file_id_);
    const SavedPage record = describe(page, parent);
    if (Status status = add(&record, sizeof record); !status) return status;
    copy_tokens(page.page.page_index(), record.token_count);
    if (Status status = add(tokens_.data(), tokens_.size() * 8); !status) return status;
    for (std::uint32_t plane = 0; plane < planes_.planes(); ++plane) {
      if (Status status = copy_bytes(page.page.page_index(), plane); !status) return status;
    }
#ifndef KVTRIE_TSAN  // it does not know fences; no test of it saves
    std::atomic_thread_fence(std::memory_order_acquire);
#endif
    KVTRIE_CRASH_POINT("save.before_second_look");
    whole = readable(page.page) && record.token_count != 0 &&
            record.token_count <= segment_.tokens_per_page();
    const std::uint64_t value = checksum_.value();
    return append(&value, sizeof value);
  }

  Status add(const void* bytes, std::size_t count) {
    checksum_.add(bytes, count);
    return append(bytes, count);
  }

  SavedPage describe(const PlannedPage& page, std::uint32_t parent) const {
    const Descriptor& d = segment_.descriptor(page.page.page_index());
    const std::uint32_t retain = d.retain_until.load(std::memory_order_acquire);
    SavedPage record{};
    record.number = static_cast<std::uint32_t>(report_.pages);
    record.parent = parent;
    record.recency = page.recency;
    record.retain_ticks = retain > now_tick_ ? retain - now_tick_ : 0;
    record.token_count = d.token_count.load(std::memory_order_acquire);
    record.priority =
        static_cast<std::uint8_t>(d.depth_class.load(std::memory_order_acquire) >> 24 & 0xF);
    return record;
  }

  // What stands behind the page's tokens may be of an earlier life, and another namespace's.
  void copy_tokens(PageIndex page, std::uint32_t count) {
    tokens_.assign(saved_tokens_bytes(segment_.tokens_per_page()) / 8, 0);
    const AtomicU64* words = segment_.token_words(page);
    count = std::min(count, segment_.tokens_per_page());
    for (std::uint32_t i = 0; i < (count + 1) / 2; ++i) {
      tokens_[i] = words[i].load(std::memory_order_acquire);
    }
    if (count % 2 != 0) tokens_[count / 2] &= 0xFFFF'FFFF;
  }

  Status copy_bytes(PageIndex page, std::uint32_t plane) {
    piece_.resize(static_cast<std::size_t>(std::min(kPieceBytes, planes_.page_bytes())));
    for (std::uint64_t at = 0; at < planes_.page_bytes(); at += piece_.size()) {
      const auto count = static_cast<std::size_t>(
          std::min<std::uint64_t>(piece_.size(), planes_.page_bytes() - at));
      const std::span<std::byte> piece(piece_.data(), count);
      if (Status status = planes_.read(page, plane, at, piece); !status) return status;
      if (Status status = add(piece.data(), count); !status) return status;
    }
    return {};
  }

  // Of the roots and of the segment itself: else the file would bring back what was given up
  // meanwhile, or holds bytes of a successor's pools.
  Status check_still_true() const {
    if (segment_.poisoned())
      return {Code::kPoisoned, "the segment was given up while it was saved"};
    for (const PlannedNamespace& planned : plan_.namespaces) {
      const NamespaceRecord& record = segment_.name_space(planned.root.namespace_id());
      if (record.root_generation.load(std::memory_order_acquire) != planned.root.generation()) {
        return {Code::kRefused, "a namespace was flushed while it was saved; run it again"};
      }
    }
    return {};
  }

  const Segment& segment_;
  const PlaneBytes& planes_;
  SaveFile& file_;
  std::uint64_t file_id_ = 0;
  std::uint32_t now_tick_ = 0;
  SavePlan plan_;
  SaveReport report_;
  std::vector<std::uint32_t> namespace_number_;  // by id: in the file
  std::vector<std::uint32_t> record_of_;         // by page: in the file
  RecordChecksum checksum_;
  std::vector<std::uint64_t> tokens_;
  std::vector<std::byte> piece_;
};

}  // namespace

Result<SaveReport> save_cache(const Segment& segment, const PlaneBytes& planes,
                              const std::string& path) {
  if (segment.poisoned()) return Status{Code::kPoisoned, "the segment was given up"};
  Result<SaveFile> file = SaveFile::create(path);
  if (!file) return file.error();
  Saver saver(segment, planes, *file);
  if (Status status = saver.run(); !status) return status;
  return saver.report();
}

}  // namespace kvtrie
