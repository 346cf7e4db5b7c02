// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// From the ids that C callers hold to this process's objects, so that an id that is over, of the
// parent process or made up is told from a good one by a few loads, and nobody detaches under a
// call. Process-private.
//
//   attachment id  generation 56 | index 8    word of the index  generation 56 | AttachmentState 8
//   sequence id    generation 48 | slot 16    word of the slot   generation 48 | SlotState 16
//
// An id is good while its generation stands in the word. Words never go away (static storage) and
// generations never come again, so looking at any id is safe at any time. A call holds one slot as
// kBusy: its sequence's, or, when it has none, a spare one; so there is no counter of users.
//
// Invariants
//   H1  A slot's sequence pointer belongs to whoever popped the slot or made it kBusy.
//   H2  Generations of attachments, and of each slot, only grow; a free slot's word has the
//       generation of its next life.
//   H3  The page of attachment words is all zero in a forked child (MADV_WIPEONFORK), so all ids of
//       its parent are over, without a system call or a handler; the rest is inherited, so
//       generations go on growing there.
//   H4  A slot belongs to one attachment index for good: its free list is that index's.
//
//   H5  A slot's thread is who made it kBusy, from just after that to just before it is given back; else 0. So a
//       kBusy slot whose thread the kernel does not know any more is of a thread that ended inside its call: nobody goes
//       on there.
//
// Attachment: kNone -> kReserved -> kOpen -> kClosing -> kOpen (busy) or kClosed (nobody is inside) -> kNone
// Slot:       kFree -> kBusy <-> kIdle, kBusy -> kFree (next generation)
//             by detach: kIdle -> kClaimed -> kFree (next generation) or back to kIdle
//             by detach: kBusy of a thread that ended inside -> kLost -> kFree (next generation). Its sequence is half
//             changed and is left alone: what it holds is the coordinator's to take back when the worker has left
//
//   a call without a sequence           detach
//     slot := kBusy          (seq_cst)    attachment: kOpen -> kClosing       (seq_cst)
//     look at the attachment (seq_cst)    each slot of it: kIdle -> kClaimed  (seq_cst)
//
// So the call sees kClosing and steps back until detach has decided (some hundred loads), or detach
// sees kBusy and gives up. Once it has decided, ids are over, and it takes its time to release. A call with a sequence and detach exchange the same word, so one of them
// has it. A slot that is given back while a detach empties the free list is emptied by the one or
// the other, in the same way.
//
// Fork: what a thread of the parent was changing may be half done in the child. Lists and words are
// changed by single stores; slots in the hands of such threads are not used again, and their
// objects and the attachment's, whose mappings the child does not have, are left alone
// (discard_inherited).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "shm/format.h"
#include "shm/status.h"
#include "worker_plugin/sequence.h"

namespace kvtrie {

class AttachedCache;

// Where the pages of one attachment are: all that page_address needs.
struct PoolView {
  std::uint64_t pages = 0;
  std::uint64_t page_bytes = 0;
  std::uint32_t planes = 0;
  std::array<std::byte*, kPlanesMax> plane{};
};

// Result of entering a call. kOk: the caller is inside and must leave() or end().
struct Inside {
  Code code = Code::kOk;  // or kStale; kBusy: another thread is in a call on it; kFull: no slot
  std::uint32_t slot = 0;
  AttachedCache* cache = nullptr;
};

struct AddressResult {
  Code code = Code::kOk;  // or kStale, kInvalid
  std::byte* address = nullptr;
  std::uint64_t pages = 0;  // with kInvalid: what there is
  std::uint32_t planes = 0;
};

class HandleTable {
 public:
  static constexpr std::uint32_t kAttachmentsMax = 64;
  static constexpr std::uint32_t kSlotsMax = 1U << 16;  // slot 0 is not used

  constexpr HandleTable() = default;
  HandleTable(const HandleTable&) = delete;
  HandleTable& operator=(const HandleTable&) = delete;

  // --- attach
  // An index for a new attachment. kFull: kAttachmentsMax are there; kSystem: no MADV_WIPEONFORK.
  Result<std::uint32_t> reserve();
  void cancel(std::uint32_t index);
  // From here on the id is good. The table holds `cache` for its caller until close().
  std::uint64_t open(std::uint32_t index, AttachedCache* cache, const PoolView& pools);

  // --- calls
  // With a spare slot, as a call without a sequence or as one that starts one.
  Inside enter(std::uint64_t attachment_id);
  Inside enter_sequence(std::uint64_t sequence_id);
  // By who is inside `sequence_id`: another slot of the same attachment, for a second sequence.
  Inside enter_beside(std::uint64_t sequence_id);
  // The slot's sequence; made at the first use of the slot, and kept, emptied, for the next.
  Sequence& sequence(std::uint32_t slot);
  // Stays open; returns its id.
  std::uint64_t leave(std::uint32_t slot);
  // Is over, or was only a spare slot.
  void end(std::uint32_t slot);

  // Needs no slot: nothing of the mapping is touched.
  AddressResult page_address(std::uint64_t attachment_id, std::uint32_t page,
                             std::uint32_t plane) const;

  // --- detach
  // kBusy: somebody is inside; nothing was changed. kOk: nobody is or will be; `release` was called
  // with each open sequence, and the caller has `cache` to itself.
  template <typename Release>
  Code close(std::uint64_t attachment_id, AttachedCache*& cache, Release release) {
    const Code code = begin_close(attachment_id);
    if (code != Code::kOk) return code;
    cache = attachments_[index_of(attachment_id)].cache;
    for_each_claimed(attachment_id, [&](Slot& slot) { release(*cache, *slot.sequence); });
    finish_close(attachment_id);
    return Code::kOk;
  }

  // Grows; for ids of other tables.
  std::uint64_t next_generation() {
    return generation_.fetch_add(1, std::memory_order_relaxed) + 1;
  }
  // Whether the id is of this process's parent; for messages.
  bool inherited(std::uint64_t attachment_id) const;
  bool inherited_sequence(std::uint64_t sequence_id) const;
  // Whether the thread that was in a call on it ended there; for messages.
  bool lost_sequence(std::uint64_t sequence_id) const;

 private:
  enum class AttachmentState : std::uint8_t {
    kNone = 0,
    kReserved = 1,
    kOpen = 2,
    kClosing = 3,
    kClosed = 4
  };
  enum class SlotState : std::uint8_t { kFree = 0, kIdle = 1, kBusy = 2, kClaimed = 3, kLost = 4 };

  struct alignas(kLineBytes) Slot {
    Atomic<std::uint64_t> word{0};
    Atomic<std::uint64_t> owner{0};   // attachment id of the life that the word tells of
    Atomic<std::uint32_t> next{0};    // in the free list
    Sequence* sequence = nullptr;     // H1
    Atomic<std::uint32_t> thread{0};  // H5
  };

  struct alignas(kLineBytes) Attachment {
    // Changes 48 | slot 16: a stack, so few slots are ever used.
    Atomic<std::uint64_t> free_head{0};
    AttachedCache* cache = nullptr;  // set and taken by attach and detach; not zeroed by fork
    Atomic<std::uint64_t> id{0};     // 0 after detach; not zeroed by fork
    Atomic<std::uint64_t> pages{0};
    Atomic<std::uint64_t> page_bytes{0};
    Atomic<std::uint32_t> planes{0};
    std::array<Atomic<std::byte*>, kPlanesMax> plane{};
  };

  static constexpr std::uint64_t kSlotMask = kSlotsMax - 1;
  static constexpr std::uint64_t kIndexByte = 0xFF;
  static std::uint32_t index_of(std::uint64_t id) {
    return static_cast<std::uint32_t>(id & kIndexByte);
  }
  static std::uint64_t word_of(std::uint64_t attachment_id, AttachmentState state) {
    return (attachment_id & ~kIndexByte) | static_cast<std::uint64_t>(state);
  }
  static std::uint64_t slot_word(std::uint64_t id_or_word, SlotState state) {
    return (id_or_word & ~kSlotMask) | static_cast<std::uint64_t>(state);
  }
  static SlotState state_of(std::uint64_t slot_word) {
    return static_cast<SlotState>(slot_word & 0xFF);
  }
  static bool known(std::uint64_t attachment_id) {
    return attachment_id > kIndexByte && index_of(attachment_id) < kAttachmentsMax;
  }

  // kOk: open. kBusy: a detach decides at this moment. kStale.
  Code look(std::uint64_t attachment_id) const;
  std::uint32_t pop(std::uint32_t index);  // 0: none
  void push(std::uint32_t index, std::uint32_t slot);
  std::uint32_t carve();  // a slot never used before; 0: none
  void drain(std::uint32_t index);
  void discard_inherited(std::uint32_t index);
  Code begin_close(std::uint64_t attachment_id);
  void finish_close(std::uint64_t attachment_id);
  template <typename Visit>
  void for_each_claimed(std::uint64_t attachment_id, Visit visit) {
    const std::uint32_t last = slots_used_.load(std::memory_order_acquire);
    for (std::uint32_t i = 1; i <= last; ++i) {
      Slot& slot = slots_[i];
      const std::uint64_t word = slot.word.load(std::memory_order_acquire);
      if (state_of(word) == SlotState::kClaimed &&
          slot.owner.load(std::memory_order_acquire) == attachment_id) {
        visit(slot);
      }
    }
  }

  // Of the calling thread, known without a system call but the first time, also after a fork.
  std::uint32_t own_thread() const;
  // Of a kBusy slot, by H5.
  static bool ended_inside(const Slot& slot);
  void set_free(Slot& slot);

  // Alone on its page, which is zeroed by fork (H3).
  struct alignas(4096) Words {
    Atomic<std::uint64_t> process{0};  // another number in each process; 0: nothing was attached here
    std::array<Atomic<std::uint64_t>, kAttachmentsMax> word{};
  };
  static_assert(sizeof(Words) == 4096, "nothing else may be zeroed by fork");

  Words words_;
  Atomic<std::uint64_t> generation_{0};
  Atomic<std::uint32_t> slots_used_{0};  // slots 1 to this
  std::array<Attachment, kAttachmentsMax> attachments_{};
  std::array<Slot, kSlotsMax> slots_{};
};

// The process's one. Zero bytes in static storage: no constructor, no destructor.
HandleTable& handle_table();

}  // namespace kvtrie
