// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/handle_table.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace kvtrie {
namespace {

// In a slot's word; and one change in a list's head.
constexpr std::uint64_t kOneGeneration = HandleTable::kSlotsMax;

// Of a wait for another thread that decides something within some hundred loads: it ended in there.
constexpr unsigned kYieldsMax = 1U << 20;

struct KnownThread {
  std::uint64_t process = 0;
  std::uint32_t id = 0;
};
constinit thread_local KnownThread known_thread;

constinit HandleTable process_table;

}  // namespace

HandleTable& handle_table() { return process_table; }

// --- attach

Result<std::uint32_t> HandleTable::reserve() {
  if (::madvise(&words_, sizeof words_, MADV_WIPEONFORK) != 0) {
    return Status{Code::kSystem, "madvise(MADV_WIPEONFORK): Linux 4.14 or later is needed", errno};
  }
  if (words_.process.load(std::memory_order_relaxed) == 0) {
    words_.process.store(next_generation() << 32 | static_cast<std::uint32_t>(::getpid()), std::memory_order_relaxed);
  }
  for (std::uint32_t index = 0; index < kAttachmentsMax; ++index) {
    std::uint64_t none = 0;
    if (words_.word[index].compare_exchange_strong(none, word_of(0, AttachmentState::kReserved),
                                                   std::memory_order_acq_rel)) {
      discard_inherited(index);
      return index;
    }
  }
  return Status{Code::kFull, "too many attachments in this process: detach some"};
}

void HandleTable::cancel(std::uint32_t index) {
  words_.word[index].store(0, std::memory_order_release);
}

std::uint64_t HandleTable::open(std::uint32_t index, AttachedCache* cache, const PoolView& pools) {
  Attachment& attachment = attachments_[index];
  const std::uint64_t id = next_generation() << 8 | index;
  attachment.cache = cache;
  attachment.id.store(id, std::memory_order_relaxed);
  attachment.pages.store(pools.pages, std::memory_order_release);
  attachment.page_bytes.store(pools.page_bytes, std::memory_order_release);
  attachment.planes.store(pools.planes, std::memory_order_release);
  for (std::uint32_t plane = 0; plane < kPlanesMax; ++plane) {
    attachment.plane[plane].store(pools.plane[plane], std::memory_order_release);
  }
  words_.word[index].store(word_of(id, AttachmentState::kOpen), std::memory_order_seq_cst);
  return id;
}

// In a forked child: the index is free here and its attachment is the parent's.
void HandleTable::discard_inherited(std::uint32_t index) {
  Attachment& attachment = attachments_[index];
  if (attachment.cache == nullptr) return;
  const std::uint64_t id = attachment.id.load(std::memory_order_relaxed);
  const std::uint32_t last = slots_used_.load(std::memory_order_acquire);
  for (std::uint32_t i = 1; i <= last; ++i) {
    Slot& slot = slots_[i];
    const std::uint64_t word = slot.word.load(std::memory_order_acquire);
    if (slot.owner.load(std::memory_order_acquire) != id || state_of(word) == SlotState::kFree)
      continue;
    if (state_of(word) != SlotState::kIdle) slot.sequence = nullptr;  // half changed, perhaps
    slot.thread.store(0, std::memory_order_relaxed);  // one of the parent
    slot.word.store(slot_word(word + kOneGeneration, SlotState::kFree), std::memory_order_release);
    push(index, i);
  }
  attachment.cache = nullptr;
}

// --- calls

Code HandleTable::look(std::uint64_t attachment_id) const {
  const std::uint64_t word = words_.word[index_of(attachment_id)].load(std::memory_order_seq_cst);
  if (word == word_of(attachment_id, AttachmentState::kOpen)) return Code::kOk;
  return word == word_of(attachment_id, AttachmentState::kClosing) ? Code::kBusy : Code::kStale;
}

Inside HandleTable::enter(std::uint64_t attachment_id) {
  if (!known(attachment_id)) return {Code::kStale};
  const std::uint32_t index = index_of(attachment_id);
  for (unsigned yields = 0;; ::sched_yield()) {
    Code code = look(attachment_id);
    if (code == Code::kStale) return {code};
    if (code == Code::kBusy) {
      if (++yields == kYieldsMax) return {code};
      continue;
    }
    std::uint32_t i = pop(index);
    if (i == 0) i = carve();
    if (i == 0) return {Code::kFull};
    Slot& slot = slots_[i];
    slot.owner.store(attachment_id, std::memory_order_release);
    slot.word.store(slot_word(slot.word.load(std::memory_order_relaxed), SlotState::kBusy),
                    std::memory_order_seq_cst);
    slot.thread.store(own_thread(), std::memory_order_release);
    code = look(attachment_id);
    if (code == Code::kOk) return {code, i, attachments_[index].cache};
    end(i);
    if (code == Code::kStale) return {code};
  }
}

Inside HandleTable::enter_sequence(std::uint64_t sequence_id) {
  const auto i = static_cast<std::uint32_t>(sequence_id & kSlotMask);
  Slot& slot = slots_[i];
  for (unsigned yields = 0;;) {
    const std::uint64_t word = slot.word.load(std::memory_order_acquire);
    if ((word ^ sequence_id) >= kSlotsMax || state_of(word) == SlotState::kFree)
      return {Code::kStale};
    const std::uint64_t owner = slot.owner.load(std::memory_order_acquire);
    // In a forked child the word must stay as it is (discard_inherited).
    if (look(owner) == Code::kStale) return {Code::kStale};
    if (state_of(word) == SlotState::kClaimed) {
      if (++yields == kYieldsMax) return {Code::kBusy};
      ::sched_yield();  // until detach has decided
      continue;
    }
    std::uint64_t expected = slot_word(sequence_id, SlotState::kIdle);
    if (word != expected) return {Code::kBusy};
    // Detach claims the slot by the same exchange: who comes first has it.
    if (slot.word.compare_exchange_strong(expected, slot_word(sequence_id, SlotState::kBusy),
                                          std::memory_order_seq_cst)) {
      slot.thread.store(own_thread(), std::memory_order_release);
      return {Code::kOk, i, attachments_[index_of(owner)].cache};
    }
  }
}

Inside HandleTable::enter_beside(std::uint64_t sequence_id) {
  return enter(slots_[sequence_id & kSlotMask].owner.load(std::memory_order_acquire));
}

Sequence& HandleTable::sequence(std::uint32_t slot) {
  Sequence*& sequence = slots_[slot].sequence;
  if (sequence == nullptr) sequence = new Sequence;
  return *sequence;
}

std::uint64_t HandleTable::leave(std::uint32_t slot) {
  const std::uint64_t word = slots_[slot].word.load(std::memory_order_relaxed);
  slots_[slot].thread.store(0, std::memory_order_relaxed);
  slots_[slot].word.store(slot_word(word, SlotState::kIdle), std::memory_order_release);
  return (word & ~kSlotMask) | slot;
}

void HandleTable::end(std::uint32_t slot) {
  Slot& ended = slots_[slot];
  const std::uint64_t owner = ended.owner.load(std::memory_order_relaxed);
  const std::uint64_t word = ended.word.load(std::memory_order_relaxed);
  ended.thread.store(0, std::memory_order_relaxed);
  ended.word.store(slot_word(word + kOneGeneration, SlotState::kFree), std::memory_order_release);
  push(index_of(owner), slot);
  if (look(owner) != Code::kOk) drain(index_of(owner));
}

AddressResult HandleTable::page_address(std::uint64_t attachment_id, std::uint32_t page,
                                        std::uint32_t plane) const {
  AddressResult result;
  if (!known(attachment_id)) return {Code::kStale};
  const Attachment& attachment = attachments_[index_of(attachment_id)];
  if (look(attachment_id) == Code::kStale) return {Code::kStale};
  result.pages = attachment.pages.load(std::memory_order_acquire);
  result.planes = attachment.planes.load(std::memory_order_acquire);
  const std::uint64_t page_bytes = attachment.page_bytes.load(std::memory_order_acquire);
  std::byte* const first =
      plane < kPlanesMax ? attachment.plane[plane].load(std::memory_order_acquire) : nullptr;
  // Still the same attachment, so what was read belongs together.
  if (look(attachment_id) == Code::kStale) return {Code::kStale};
  if (page >= result.pages || plane >= result.planes) {
    result.code = Code::kInvalid;
  } else {
    result.address = first + page * page_bytes;
  }
  return result;
}

bool HandleTable::inherited(std::uint64_t attachment_id) const {
  if (!known(attachment_id)) return false;
  // Zeroed by the fork.
  if (words_.word[index_of(attachment_id)].load(std::memory_order_seq_cst) != 0) return false;
  return attachments_[index_of(attachment_id)].id.load(std::memory_order_acquire) == attachment_id;
}

bool HandleTable::inherited_sequence(std::uint64_t sequence_id) const {
  const Slot& slot = slots_[sequence_id & kSlotMask];
  const std::uint64_t word = slot.word.load(std::memory_order_acquire);
  return (word ^ sequence_id) < kSlotsMax && state_of(word) != SlotState::kFree &&
         inherited(slot.owner.load(std::memory_order_acquire));
}

bool HandleTable::lost_sequence(std::uint64_t sequence_id) const {
  const Slot& slot = slots_[sequence_id & kSlotMask];
  const std::uint64_t word = slot.word.load(std::memory_order_acquire);
  if ((word ^ sequence_id) >= kSlotsMax) return false;
  return state_of(word) == SlotState::kLost || (state_of(word) == SlotState::kBusy && ended_inside(slot));
}

// --- threads

std::uint32_t HandleTable::own_thread() const {
  KnownThread& known_one = known_thread;
  const std::uint64_t process = words_.process.load(std::memory_order_relaxed);
  if (known_one.process != process) known_one = {process, static_cast<std::uint32_t>(::gettid())};
  return known_one.id;
}

// The second look: it may have left, and ended after that.
bool HandleTable::ended_inside(const Slot& slot) {
  const std::uint32_t thread = slot.thread.load(std::memory_order_acquire);
  if (thread == 0) return false;
  const bool gone = ::syscall(SYS_tgkill, ::getpid(), thread, 0) != 0 && errno == ESRCH;
  return gone && slot.thread.load(std::memory_order_acquire) == thread;
}

// --- free slots

std::uint32_t HandleTable::pop(std::uint32_t index) {
  Atomic<std::uint64_t>& list = attachments_[index].free_head;
  std::uint64_t head = list.load(std::memory_order_acquire);
  for (;;) {
    const auto slot = static_cast<std::uint32_t>(head & kSlotMask);
    if (slot == 0) return 0;
    const std::uint64_t rest = slots_[slot].next.load(std::memory_order_relaxed);
    const std::uint64_t next = ((head & ~kSlotMask) + kOneGeneration) | rest;
    if (list.compare_exchange_weak(head, next, std::memory_order_seq_cst,
                                   std::memory_order_acquire)) {
      return slot;
    }
  }
}

void HandleTable::push(std::uint32_t index, std::uint32_t slot) {
  Atomic<std::uint64_t>& list = attachments_[index].free_head;
  std::uint64_t head = list.load(std::memory_order_relaxed);
  std::uint64_t next = 0;
  do {
    slots_[slot].next.store(static_cast<std::uint32_t>(head & kSlotMask),
                            std::memory_order_relaxed);
    next = ((head & ~kSlotMask) + kOneGeneration) | slot;
  } while (!list.compare_exchange_weak(head, next, std::memory_order_seq_cst,
                                       std::memory_order_relaxed));
}

std::uint32_t HandleTable::carve() {
  std::uint32_t used = slots_used_.load(std::memory_order_relaxed);
  do {
    if (used + 1 == kSlotsMax) return 0;
  } while (!slots_used_.compare_exchange_weak(used, used + 1, std::memory_order_seq_cst));
  const std::uint32_t slot = used + 1;
  // Generation 0 is nobody's, so small numbers are no ids.
  slots_[slot].word.store(slot_word(kOneGeneration, SlotState::kFree), std::memory_order_release);
  return slot;
}

// Frees what the index's unused slots keep.
void HandleTable::drain(std::uint32_t index) {
  std::uint32_t chain = 0;
  while (const std::uint32_t slot = pop(index)) {
    delete slots_[slot].sequence;
    slots_[slot].sequence = nullptr;
    slots_[slot].next.store(chain, std::memory_order_relaxed);
    chain = slot;
  }
  while (chain != 0) {
    const std::uint32_t slot = chain;
    chain = slots_[slot].next.load(std::memory_order_relaxed);
    push(index, slot);
  }
}

// --- detach

Code HandleTable::begin_close(std::uint64_t attachment_id) {
  if (!known(attachment_id)) return Code::kStale;
  Atomic<std::uint64_t>& state = words_.word[index_of(attachment_id)];
  std::uint64_t expected = word_of(attachment_id, AttachmentState::kOpen);
  if (!state.compare_exchange_strong(expected, word_of(attachment_id, AttachmentState::kClosing),
                                     std::memory_order_seq_cst)) {
    return look(attachment_id) == Code::kStale ? Code::kStale : Code::kBusy;
  }
  const std::uint32_t last = slots_used_.load(std::memory_order_seq_cst);
  for (std::uint32_t i = 1; i <= last; ++i) {
    Slot& slot = slots_[i];
    std::uint64_t word = slot.word.load(std::memory_order_seq_cst);
    if (state_of(word) == SlotState::kFree ||
        slot.owner.load(std::memory_order_acquire) != attachment_id) {
      continue;
    }
    if (state_of(word) == SlotState::kIdle &&
        slot.word.compare_exchange_strong(word, slot_word(word, SlotState::kClaimed),
                                          std::memory_order_seq_cst)) {
      continue;
    }
    if (state_of(word) == SlotState::kLost) continue;
    if (state_of(word) == SlotState::kBusy && ended_inside(slot) &&
        slot.word.compare_exchange_strong(word, slot_word(word, SlotState::kLost), std::memory_order_seq_cst)) {
      continue;
    }
    for_each_claimed(attachment_id, [](Slot& claimed) {
      const std::uint64_t mine = claimed.word.load(std::memory_order_relaxed);
      claimed.word.store(slot_word(mine, SlotState::kIdle), std::memory_order_release);
    });
    state.store(word_of(attachment_id, AttachmentState::kOpen), std::memory_order_seq_cst);
    return Code::kBusy;
  }
  state.store(word_of(attachment_id, AttachmentState::kClosed), std::memory_order_seq_cst);
  return Code::kOk;
}

void HandleTable::set_free(Slot& slot) {
  const std::uint64_t word = slot.word.load(std::memory_order_relaxed);
  slot.word.store(slot_word(word + kOneGeneration, SlotState::kFree), std::memory_order_release);
  push(index_of(slot.owner.load(std::memory_order_relaxed)), static_cast<std::uint32_t>(&slot - slots_.data()));
}

void HandleTable::finish_close(std::uint64_t attachment_id) {
  const std::uint32_t index = index_of(attachment_id);
  for_each_claimed(attachment_id, [&](Slot& slot) { set_free(slot); });
  const std::uint32_t last = slots_used_.load(std::memory_order_acquire);
  for (std::uint32_t i = 1; i <= last; ++i) {
    Slot& slot = slots_[i];
    if (state_of(slot.word.load(std::memory_order_acquire)) != SlotState::kLost ||
        slot.owner.load(std::memory_order_acquire) != attachment_id) {
      continue;
    }
    slot.sequence = nullptr;  // half changed, and perhaps a batch's others know it: never touched again
    slot.thread.store(0, std::memory_order_relaxed);
    set_free(slot);
  }
  drain(index);
  attachments_[index].cache = nullptr;
  attachments_[index].id.store(0, std::memory_order_release);
  words_.word[index].store(0, std::memory_order_seq_cst);
}

}  // namespace kvtrie
