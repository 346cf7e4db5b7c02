// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Every byte that kvtrie's processes share. Nothing else in the project defines shared layout.
// docs/segment-format.md draws it; a change here raises kLayoutVersion, which is part of the object's name.
//
//   offset 0         Superblock (4096)         constant part with a checksum, then words that change
//   areas[i].offset  one array for each AreaKind, 4096-aligned, found through the superblock's table
//
// Words that several processes write are std::atomic. Fields that one process writes before it publishes
// them by a release store of a state word are atomics too where a reader may look early (a page that is
// being recycled), and plain where none can. Unused fields and areas are zero; `verify` checks it.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef KVTRIE_UNSYNCHRONIZED
#include "shm/plain_atomic.h"
#endif

namespace kvtrie {

inline constexpr std::uint64_t kSegmentMagic = 0x0031'4549'5254'564bULL;  // "KVTRIE1" in memory order
#ifdef KVTRIE_TEST_LAYOUT_VERSION  // of a release that is not this one: tests/e2e/upgrade_test.cc
inline constexpr std::uint32_t kLayoutVersion = KVTRIE_TEST_LAYOUT_VERSION;
#else
inline constexpr std::uint32_t kLayoutVersion = 1;
#endif
inline constexpr std::size_t kAreaAlignment = 4096;
inline constexpr std::size_t kLineBytes = 64;

inline constexpr std::uint32_t kPagesMin = 64;
inline constexpr std::uint32_t kPagesMax = 1U << 24;
inline constexpr std::uint32_t kTokensPerPageMax = 1024;
inline constexpr std::uint32_t kPlanesMax = 64;
inline constexpr std::uint32_t kWorkersMax = 1024;
inline constexpr std::uint32_t kLeasesMax = 1U << 16;
inline constexpr std::uint32_t kNamespacesMax = 1U << 16;
inline constexpr std::uint32_t kStripesMax = 1U << 16;
inline constexpr std::uint32_t kAreasMax = 40;
inline constexpr std::uint32_t kBucketEntries = 8;
inline constexpr std::uint32_t kChunkPages = 64;  // pages of one free-bitmap word and one held count

#ifdef KVTRIE_UNSYNCHRONIZED
template <typename T>
using Atomic = PlainAtomic<T>;
#else
template <typename T>
using Atomic = std::atomic<T>;
#endif
using AtomicU8 = Atomic<std::uint8_t>;
using AtomicU16 = Atomic<std::uint16_t>;
using AtomicU32 = Atomic<std::uint32_t>;
using AtomicU64 = Atomic<std::uint64_t>;
using AtomicI64 = Atomic<std::int64_t>;

static_assert(AtomicU8::is_always_lock_free && AtomicU16::is_always_lock_free &&
                  AtomicU32::is_always_lock_free && AtomicU64::is_always_lock_free,
              "a lock inside an atomic would be private to one process");
static_assert(sizeof(AtomicU8) == 1 && sizeof(AtomicU16) == 2 && sizeof(AtomicU32) == 4 &&
                  sizeof(AtomicU64) == 8,
              "atomics must have the size of their value, the layout counts on it");

// Append-only; the numbers are in the segment.
enum class AreaKind : std::uint32_t {
  kNone = 0,
  kNamespaces = 1,   // NamespaceRecord
  kWorkers = 2,      // WorkerRecord; slot 0 is the coordinator's
  kLeases = 3,       // a row a worker: LeaseSlot x leases_per_worker, then zero to the next line
  kPins = 4,         // PinRecord, one for each lease slot of slot 0
  kHeldCounts = 5,   // u16, workers x chunks: pages that a worker may own in a chunk
  kAnnounce = 6,     // u32 a page: children announced below it, ever
  kFreeBitmap = 7,   // ChunkRecord
  kStripes = 8,      // StripeRecord
  kBuckets = 9,      // IndexBucket
  kDescriptors = 10, // Descriptor + tokens
  kGhost = 16,       // touch counts of evicted keys (not in use yet)
  kRecorder = 17,    // flight recorder rings (not in use yet)
  kEvents = 18,      // coordinator's event log (not in use yet)
  kPlaneChecksums = 19,
  kTiers = 20,
};

struct AreaEntry {
  std::uint32_t kind;
  std::uint32_t flags;
  std::uint64_t offset;  // from the segment's first byte
  std::uint64_t stride;  // bytes from one element to the next
  std::uint64_t count;
};
static_assert(sizeof(AreaEntry) == 32, "the table of areas is part of the layout");

enum class ClockKind : std::uint32_t { kSystem = 0, kDriven = 1 };

// What the planes' memory is, and so how it is written. Append-only. Stands in Superblock::incompatible_features: who
// does not know a kind must not take its planes for host memory.
enum class DeviceKind : std::uint64_t {
  kHost = 0,    // shared memory that workers map and write
  kQueued = 1,  // shared memory that workers map to read; a copy engine writes (copy_queue.h)
  kCuda = 2,    // device memory; workers import its descriptors
};
inline constexpr std::uint64_t kDeviceKinds = 3;

constexpr const char* name_of(DeviceKind kind) {
  constexpr const char* kNames[kDeviceKinds] = {"host", "queued", "cuda"};
  return kNames[static_cast<std::uint64_t>(kind)];
}

// Why a segment was given up. Append-only.
enum class PoisonReason : std::uint32_t {
  kNone = 0,
  kLockNotRecoverable = 1,
  kCorruptStructure = 2,
  kOperator = 3,
  kPoolGone = 4,
};

// A futex word and the number of those who sleep on it; the count is a hint that saves a system call.
struct WakeWord {
  AtomicU32 word;
  AtomicU32 waiters;
};

// In Superblock::compatible_features: who does not know it works all the same. Each page's bytes have a checksum since they
// were published (page_checksum.h); a worker that looks compares it.
inline constexpr std::uint64_t kFeaturePageChecksums = 1;

struct Superblock {
  // --- constant after the segment was built; covered by constant_checksum -----------------------------
  std::uint64_t magic;
  std::uint32_t layout_version;
  std::uint32_t constant_bytes;  // offsetof(constant_checksum)
  std::uint64_t compatible_features;
  std::uint64_t incompatible_features;  // DeviceKind
  std::uint64_t struct_fingerprint;  // sizes and alignments of every struct here, see fingerprint.h
  std::uint64_t segment_bytes;
  std::uint64_t page_count;
  std::uint64_t page_bytes;  // of one page in one plane
  std::uint32_t tokens_per_page;
  std::uint32_t plane_count;
  std::uint32_t worker_count;  // slots with slot 0
  std::uint32_t leases_per_worker;
  std::uint32_t namespace_count;
  std::uint32_t stripe_count;
  std::uint64_t bucket_count;
  std::uint64_t hash_secret;
  std::uint64_t cache_id[2];
  std::uint64_t pid_namespace;  // inode of /proc/self/ns/pid of the coordinator that built it
  std::uint64_t created_realtime_ns;
  std::uint8_t boot_id[16];
  std::uint32_t clock_kind;
  std::uint32_t area_count;
  std::uint64_t tick_ns;
  char cache_name[64];
  AreaEntry areas[kAreasMax];
  std::uint64_t constant_checksum;

  // --- written seldom, read by every call ---------------------------------------------------------------
  alignas(kLineBytes) AtomicU32 poison_state;  // 0, or 1: given up
  AtomicU32 poison_reason;
  AtomicU32 driven_tick;     // ClockKind::kDriven: now
  AtomicU32 pages_waiters;   // workers that sleep for pages, as of the coordinator's last pass
  AtomicU64 low_pages;       // a taker that leaves fewer rings the doorbell
  AtomicU64 high_pages;
  AtomicU64 successor_id[2]; // cache id to attach to after poisoning; zero: none yet
  AtomicU64 reserved_until;  // CLOCK_MONOTONIC ns until which free pages are first for those who wait (waiting.h)

  // --- the coordinator; written by the one that holds the directory's lock -----------------------------
  alignas(kLineBytes) AtomicU64 coordinator_epoch;  // grows at every start
  AtomicU64 coordinator_start_time;                 // clock ticks since boot, /proc/PID/stat field 22
  AtomicU32 coordinator_pid;
  AtomicU32 coordinator_state;  // CoordinatorState
  AtomicU32 evictor_busy;       // 1 while a pass of the evictor runs
  AtomicU32 coordinator_reserved;
  AtomicU64 eviction_passes;    // passes ended since the segment was built
  AtomicU64 reaps;              // reaps ended; a pass that one fell into does not say that it fell short (ADR 0009)
  AtomicU64 eviction_shortfall; // pages that the last pass could not find
  // --- hints and wake words, each on a line of its own ------------------------------------------------
  alignas(kLineBytes) AtomicI64 free_hint;        // about how many pages are Free
  alignas(kLineBytes) WakeWord doorbell;          // workers ring, the coordinator sleeps on it
  alignas(kLineBytes) AtomicU8 reserved[2304];
};
static_assert(std::is_standard_layout_v<Superblock>);
static_assert(sizeof(Superblock) == 4096, "areas start at the second 4 KiB page");
static_assert(offsetof(Superblock, poison_state) % kLineBytes == 0);
static_assert(offsetof(Superblock, reserved_until) / kLineBytes == offsetof(Superblock, poison_state) / kLineBytes,
              "an allocation reads that line anyhow");

// Append-only. Draining: serves those who are attached, takes nobody new; ends with --undo or with the process.
enum class CoordinatorState : std::uint32_t {
  kNone = 0,
  kAdopting = 1,
  kServing = 2,
  kStopped = 3,
  kDraining = 4,
};

// One page: its state, its place in the trie, its recency. `tokens_per_page` token ids follow at once,
// read as 64-bit words, padded with zero to a multiple of 64 bytes. Protocol: page_table.h.
struct alignas(kLineBytes) Descriptor {
  AtomicU64 state;         // StateWord
  AtomicU64 parent;        // Handle of a page or a root
  AtomicU64 prefix_hash;   // chained over the path, see prefix_hash.h
  AtomicU64 touch;         // TouchWord
  AtomicU32 scope;         // namespace id 16 | low 16 bits of the root's generation
  AtomicU32 depth_class;   // depth 24 (1 = below the root) | priority 4 | tier 4
  AtomicU32 since_tick;    // when it became Writing, Pending or Live
  AtomicU32 retain_until;  // tick before which the evictor passes it by; 0: none
  AtomicU32 child_hint;    // page index + 1 of the child published last; 0: none
  AtomicU16 token_count;   // tokens_per_page, or fewer: an incomplete page without children
  AtomicU16 publisher;     // worker slot that wrote it; 0: the coordinator, from a save file
  AtomicU64 checksum;      // of the page's bytes; 0: not computed
};
static_assert(sizeof(Descriptor) == 64, "a header is one line, tokens of a 16-token page the next");
static_assert(std::is_standard_layout_v<Descriptor>);

// A claim on one page, written by its worker only (slot 0: by the coordinator for the operator's pins).
struct LeaseSlot {
  AtomicU64 handle;  // Handle of a page; 0: none
  AtomicU32 since_tick;
  AtomicU32 request_tag;
};
static_assert(sizeof(LeaseSlot) == 16, "four slots a line; the evictor reads them all each round");

// Where pages of one chunk are probably Free, and probably somebody's. Hints: the state words are the truth.
struct ChunkRecord {
  AtomicU64 free_bits;   // takers look here
  AtomicU64 owned_bits;  // Writing or Pending: the reaper looks here first
};
static_assert(sizeof(ChunkRecord) == 16, "both words of a chunk in one line");

struct PinRecord {
  AtomicU32 expiry_tick;  // 0: never
  AtomicU32 flags;
  char reason[56];
};
static_assert(sizeof(PinRecord) == 64);

// Counters of one worker (slot 0: the coordinator). They only grow, over all that had the slot, so the
// sum over all slots is monotone whoever dies. Append-only.
enum class Counter : std::uint8_t {
  kLookups = 0,
  kTokensAsked = 1,
  kTokensFound = 2,
  kPagesAsked = 3,   // full pages of the tokens asked for
  kPagesHit = 4,
  kLeaseFallbacks = 5,  // a matched page was lost between match and lease
  kRescues = 6,         // a lease brought a Condemned page back
  kAllocations = 7,
  kPagesAllocated = 8,
  kFailedNotNow = 9,
  kFailedNever = 10,
  kWaits = 11,
  kPagesAnnounced = 12,
  kPagesPublished = 13,
  kDuplicates = 14,       // a page of the same key was there first
  kBucketsFull = 15,      // page stayed private: both buckets full
  kStripesPassedBy = 16,  // page stayed private: lock not had in time
  kLockRecoveries = 17,
  kReleases = 18,
  kPagesGivenBack = 19,   // own pages that were freed unpublished
  kCorruptSeen = 20,
  kStaleEntriesCleaned = 21,
  kAttaches = 22,
  kPartialMatches = 23,   // a begin found the start of its next page in a page of another continuation
  kPartialTokens = 24,    // tokens of these
  kPendingWaits = 25,     // waits for pages that another worker computes
  kForks = 26,
  kBatches = 27,
  kIncompletePublished = 28,
  kFlushedRefused = 29,   // calls on sequences whose namespace was flushed since they began
  kPagesCopied = 30,      // into own pages: continued incomplete pages, partial matches, forks
  kPagesSummed = 31,      // hits whose bytes were compared with their checksum
  // the coordinator's
  kEvictions = 32,
  kEvictionPasses = 33,
  kEvictionRescued = 34,  // condemned and not evicted: leased, touched by a child, or retained
  kReapedWorkers = 35,
  kReapedPages = 36,
  kReapedLeases = 37,
  kAdoptions = 38,
  kAttachRefused = 39,
  kNamespacesMade = 40,
  kFlushes = 41,  // of namespaces
  // a worker's again
  kWrongChecksums = 42,   // pages whose bytes are not those that were published: no hit
};
inline constexpr std::size_t kCounters = 48;

// Who may be in a worker slot. The word is {state 8 | incarnation 56}; worker_table.h has the protocol.
enum class SlotState : std::uint8_t {
  kFree = 0,
  kAttaching = 1,  // given by the coordinator; the process has not said that it got it
  kActive = 2,     // set by the worker itself
  kLeaving = 3,    // detached by the worker; the coordinator clears the slot
  kReaping = 4,    // its process is dead; the coordinator takes everything back
};

enum class WorkerRole : std::uint32_t { kWorker = 0, kObserver = 1, kPlaneWriter = 2, kAdmin = 3 };

struct WorkerRecord {
  AtomicU64 slot_state;  // SlotState | incarnation << 8
  AtomicU64 start_time;  // identity: clock ticks since boot
  AtomicU32 pid;
  AtomicU32 uid;
  AtomicU32 role;
  AtomicU32 attach_tick;
  AtomicU32 leases_high_water;  // slots at or above it were never used; stored before the first lease in them
  AtomicU32 scheduler;     // of a plane writer: slot of the worker into whose pages it writes (worker_table.h)
  AtomicU64 plane_mask;    // planes that a plane writer fills
  AtomicU64 recorder_head;
  AtomicU64 image;         // of the program that runs in the process, process_identity.h; new with each execve
  alignas(kLineBytes) char name[64];
  alignas(kLineBytes) AtomicU32 wait_word;  // futex: the coordinator bumps it when pages are there
  AtomicU32 pages_wanted;                   // 0: does not wait
  AtomicU64 wait_ticket;                    // CLOCK_MONOTONIC ns at the start of the wait: oldest first
  AtomicU32 pages_asked;                    // wanted without waiting; the coordinator clears it once looked after
  AtomicU32 pending_word;                   // futex: who waits for a Pending page of this worker, pending_wait.h
  AtomicU64 wait_seen;                      // CLOCK_MONOTONIC ns when the waiter last came round to look
  AtomicU64 reserved_wait[4];
  alignas(kLineBytes) AtomicU64 counters[kCounters];
  AtomicU8 reserved[1024 - 3 * 64 - kCounters * 8];
};
static_assert(sizeof(WorkerRecord) == 1024);
static_assert(std::is_standard_layout_v<WorkerRecord>);

inline constexpr std::size_t kNamespaceDescriptorMax = 768;

enum class NamespaceState : std::uint32_t { kFree = 0, kOpen = 1 };

// What must match before KV may be shared. Made by the coordinator; namespace_table.h has the protocol.
struct NamespaceRecord {
  AtomicU64 root_generation;  // grows at every flush and reuse; older pages are never matched again
  AtomicU64 hash_seed;        // prefix hash of the root
  AtomicU64 fields_hash;      // of the canonical field text
  AtomicU32 state;            // NamespaceState
  AtomicU32 fields_bytes;
  AtomicU64 reserve_pages;
  AtomicU64 max_pages;
  AtomicU32 weight;
  AtomicU32 flags;
  AtomicU32 default_priority;
  AtomicU32 default_retention_ticks;
  alignas(kLineBytes) char label[64];
  alignas(kLineBytes) char fields[kNamespaceDescriptorMax];  // canonical text, compared in full
  alignas(kLineBytes) AtomicU32 child_hint;  // of the root, as Descriptor::child_hint
  AtomicU8 reserved[1024 - 128 - kNamespaceDescriptorMax - 4];
};
static_assert(sizeof(NamespaceRecord) == 1024);

// One lock of the index, with the figures that judge it. Level: docs/lock-order.md.
struct alignas(kLineBytes) StripeRecord {
  pthread_mutex_t mutex;  // robust, process-shared
  AtomicU32 recoveries;
  AtomicU32 passed_by;
  AtomicU64 reserved[2];
};
static_assert(sizeof(StripeRecord) == 64, "one stripe a line, so two never share one");

// Eight entries {valid 1 | tag 39 | page 24}; 0 is empty. One store enters, one compare-and-swap removes.
struct alignas(kLineBytes) IndexBucket {
  AtomicU64 entries[kBucketEntries];
};
static_assert(sizeof(IndexBucket) == 64, "a probe reads one line");

// --- the copy queue: an object of its own, of caches whose device is kQueued; protocol: copy_queue.h -----------

inline constexpr std::uint64_t kCopyQueueMagic = 0x0031'5951'5254'564bULL;  // "KVTRQY1" in memory order
inline constexpr std::uint32_t kCopyRingEntries = 8;

struct CopyQueueHeader {
  std::uint64_t magic;
  std::uint32_t layout_version;
  std::uint32_t ring_count;  // one a worker slot, slot 0's is not used
  std::uint64_t page_bytes;
  std::uint64_t ring_stride;  // bytes from one ring to the next
  std::uint64_t cache_id[2];
  alignas(kLineBytes) WakeWord doorbell;  // submitters ring, the copy engine sleeps on it
  AtomicU64 reserved[7];
};
static_assert(sizeof(CopyQueueHeader) == 128);

// What is to be written. Its bytes are in the ring's staging buffer of the same number.
struct CopyEntry {
  AtomicU32 page;
  AtomicU32 plane;
  AtomicU64 offset;        // in the page
  AtomicU64 bytes;
  AtomicU64 submitted_ns;  // CLOCK_MONOTONIC
};
static_assert(sizeof(CopyEntry) == 32);

// One worker slot's copies in order. kCopyRingEntries staging buffers of a page each follow, 64-byte aligned.
struct alignas(kLineBytes) CopyRing {
  AtomicU32 submitted;  // copies ever, modulo 2^32; by the worker
  AtomicU32 reserved_submitted[15];
  AtomicU32 done;  // copies written, or dropped; by the copy engine, which wakes who sleeps on it
  AtomicU32 reserved_done[15];
  CopyEntry entries[kCopyRingEntries];
};
static_assert(sizeof(CopyRing) == 2 * kLineBytes + kCopyRingEntries * sizeof(CopyEntry),
              "worker and copy engine write lines of their own");

}  // namespace kvtrie
