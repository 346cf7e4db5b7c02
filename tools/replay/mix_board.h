// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What the processes of a mix (mix_worker.h) share beside the plan: how often each call was used and what it answered,
// what came of it, and which weights each namespace has. Lies in the plan's memory, behind its tallies.
//
//   NamespaceWeights x namespaces | MixTally x workers
//
// Invariants
//   1 A tally is written by one worker at a time, its successor goes on with it.
//   2 Weights of a namespace: number `done` is in force from before a begin that reads done == asked behind itself.
//     Between `asked` and `done` a flush is under way, and nobody can know.
//   3 One worker at a time flushes a namespace: its number + 1 stands in `flusher`.
//
// Crash: a worker that dies as a flusher leaves asked > done, or only its number; its successor asks for the flush
// again, since nobody knows whether the first one was heard. Then it may be carried out late: `uncertain`.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "tools/replay/shared_plan.h"
#include "worker_plugin/kvtrie.h"

namespace kvtrie::replay {

// The members of kvtrie_api, in its order.
// clang-format off
#define KVTRIE_MIX_TABLE_CALLS(X)                                                                    \
  X(version_string) X(last_error) X(code_name) X(attach) X(detach) X(get_geometry) X(open_namespace) \
  X(begin) X(append) X(allocate) X(get_pages) X(page_count) X(page_address) X(publish) X(release)    \
  X(get_counters) X(drive_clock) X(prepare_batch) X(fork_sequence) X(wait_pending) X(own_pages)      \
  X(give_back) X(copy_in) X(copy_out) X(publish_incomplete) X(probe) X(hash_tokens) X(probe_hashes)  \
  X(evict) X(flush)
// clang-format on
// Of kvtrie_device.h, without kvtrie_.
#define KVTRIE_MIX_DEVICE_CALLS(X) X(worker_id) X(writer_over) X(plane_descriptor) X(queue_copy) X(wait_copies)

enum class MixCall : std::uint8_t {
#define KVTRIE_MIX_NAME(name) name,
  KVTRIE_MIX_TABLE_CALLS(KVTRIE_MIX_NAME) KVTRIE_MIX_DEVICE_CALLS(KVTRIE_MIX_NAME)
#undef KVTRIE_MIX_NAME
};

inline constexpr const char* kMixCallNames[] = {
#define KVTRIE_MIX_NAME(name) #name,
    KVTRIE_MIX_TABLE_CALLS(KVTRIE_MIX_NAME) KVTRIE_MIX_DEVICE_CALLS(KVTRIE_MIX_NAME)
#undef KVTRIE_MIX_NAME
};
inline constexpr std::size_t kMixCalls = std::size(kMixCallNames);
inline constexpr std::size_t kMixTableCalls = kMixCalls - 5;
inline constexpr std::size_t kMixCodes = KVTRIE_E_FLUSHED + 1;

// After a size and a version there is one pointer a call: one that is missing above does not compile.
static_assert(sizeof(kvtrie_api) == 2 * sizeof(std::size_t) + kMixTableCalls * sizeof(void*),
              "each call of the table is used by a mix");

// X(constant, what is counted)
#define KVTRIE_MIX_EVENTS(X)                                        \
  X(kOperations, "operations")                                      \
  X(kChecks, "looks at all pages of a sequence")                    \
  X(kHits, "begins that matched pages")                             \
  X(kPartialFound, "matches inside a page")                         \
  X(kPartialCopied, "... copied by the plugin")                     \
  X(kCopiedByCaller, "pages copied by the caller (KVTRIE_NO_COPY)") \
  X(kIncompletePublished, "incomplete pages published")             \
  X(kIncompleteLeft, "... continued in a copy")                     \
  X(kBatches, "batches")                                            \
  X(kBatchShared, "pages shared inside a batch")                    \
  X(kBatchHandedOver, "... handed over when their sequence ended")  \
  X(kForkShared, "pages that forks shared")                         \
  X(kForkCopied, "pages that forks copied")                         \
  X(kWaitMatched, "pages that came by waiting")                     \
  X(kWaitTimedOut, "waits that ran out")                            \
  X(kGivenBack, "pages given back")                                 \
  X(kGaveWay, "own copies that gave way to another's page")         \
  X(kDuplicates, "own pages beside another's page")                 \
  X(kFlushes, "flushes")                                            \
  X(kFlushRefused, "publishes and waits refused after a flush")     \
  X(kBesideFlush, "begins beside a flush, dropped")                 \
  X(kEvicted, "pages evicted by request")                           \
  X(kPreempted, "requests preempted")                               \
  X(kProtectedFound, "prefixes under a lease that were looked for") \
  X(kTokensIn, "tokens copied in")                                  \
  X(kTokensOut, "tokens copied out")                                \
  X(kRefusals, "misuses that were refused")                         \
  X(kGivenUp, "requests given up after many preemptions")

enum class MixEvent : std::uint8_t {
#define KVTRIE_MIX_NAME(name, text) name,
  KVTRIE_MIX_EVENTS(KVTRIE_MIX_NAME)
#undef KVTRIE_MIX_NAME
};
inline constexpr const char* kMixEventNames[] = {
#define KVTRIE_MIX_NAME(name, text) text,
    KVTRIE_MIX_EVENTS(KVTRIE_MIX_NAME)
#undef KVTRIE_MIX_NAME
};
inline constexpr std::size_t kMixEvents = std::size(kMixEventNames);

struct alignas(64) MixTally {
  std::array<std::array<std::atomic<std::uint64_t>, kMixCodes>, kMixCalls> answers;
  std::array<std::atomic<std::uint64_t>, kMixEvents> events;

  void add(MixEvent event, std::uint64_t by = 1) { raise(events[static_cast<std::size_t>(event)], by); }
  void add(MixCall call, kvtrie_code code) {
    raise(answers[static_cast<std::size_t>(call)][static_cast<std::size_t>(code) % kMixCodes], 1);
  }
  [[nodiscard]] std::uint64_t get(MixEvent event) const {
    return events[static_cast<std::size_t>(event)].load(std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint64_t get(MixCall call, kvtrie_code code) const {
    return answers[static_cast<std::size_t>(call)][static_cast<std::size_t>(code)].load(std::memory_order_relaxed);
  }

 private:
  static void raise(std::atomic<std::uint64_t>& sum, std::uint64_t by) {
    sum.store(sum.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
  }
};

struct alignas(64) NamespaceWeights {
  std::atomic<std::uint32_t> asked;
  std::atomic<std::uint32_t> done;
  std::atomic<std::uint32_t> flusher;    // worker + 1; 0: nobody flushes
  std::atomic<std::uint32_t> uncertain;  // 1: a dead worker's flush may come late
};

class MixBoard {
 public:
  // What the plan has to set aside.
  [[nodiscard]] static std::uint64_t bytes(std::uint32_t namespaces, std::uint32_t workers) {
    return namespaces * sizeof(NamespaceWeights) + workers * sizeof(MixTally);
  }
  explicit MixBoard(const SharedPlan& plan)
      : weights_(reinterpret_cast<NamespaceWeights*>(plan.extra())),
        tallies_(reinterpret_cast<MixTally*>(plan.extra() + plan.settings().namespaces * sizeof(NamespaceWeights))) {}

  [[nodiscard]] NamespaceWeights& weights(std::uint32_t name_space) const { return weights_[name_space]; }
  [[nodiscard]] MixTally& tally(std::uint32_t worker) const { return tallies_[worker]; }

 private:
  NamespaceWeights* weights_;
  MixTally* tallies_;
};

}  // namespace kvtrie::replay
