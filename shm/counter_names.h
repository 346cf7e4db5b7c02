// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Names of the counters, as statistics and metrics spell them.
#pragma once

#include "shm/format.h"

namespace kvtrie {

// Null for a number that no counter has yet.
constexpr const char* name_of(Counter counter) {
  using enum Counter;
  switch (counter) {
    case kLookups:
      return "lookups";
    case kTokensAsked:
      return "tokens_asked";
    case kTokensFound:
      return "tokens_found";
    case kPagesAsked:
      return "pages_asked";
    case kPagesHit:
      return "pages_hit";
    case kLeaseFallbacks:
      return "lease_fallbacks";
    case kRescues:
      return "rescues";
    case kAllocations:
      return "allocations";
    case kPagesAllocated:
      return "pages_allocated";
    case kFailedNotNow:
      return "failed_not_now";
    case kFailedNever:
      return "failed_never";
    case kWaits:
      return "waits";
    case kPagesAnnounced:
      return "pages_announced";
    case kPagesPublished:
      return "pages_published";
    case kDuplicates:
      return "duplicates";
    case kBucketsFull:
      return "buckets_full";
    case kStripesPassedBy:
      return "stripes_passed_by";
    case kLockRecoveries:
      return "lock_recoveries";
    case kReleases:
      return "releases";
    case kPagesGivenBack:
      return "pages_given_back";
    case kCorruptSeen:
      return "corrupt_seen";
    case kStaleEntriesCleaned:
      return "stale_entries_cleaned";
    case kAttaches:
      return "attaches";
    case kPartialMatches:
      return "partial_matches";
    case kPartialTokens:
      return "partial_tokens";
    case kPendingWaits:
      return "pending_waits";
    case kForks:
      return "forks";
    case kBatches:
      return "batches";
    case kIncompletePublished:
      return "incomplete_published";
    case kFlushedRefused:
      return "flushed_refused";
    case kPagesCopied:
      return "pages_copied";
    case kPagesSummed:
      return "pages_summed";
    case kEvictions:
      return "evictions";
    case kEvictionPasses:
      return "eviction_passes";
    case kEvictionRescued:
      return "eviction_rescued";
    case kReapedWorkers:
      return "reaped_workers";
    case kReapedPages:
      return "reaped_pages";
    case kReapedLeases:
      return "reaped_leases";
    case kAdoptions:
      return "adoptions";
    case kAttachRefused:
      return "attach_refused";
    case kNamespacesMade:
      return "namespaces_made";
    case kFlushes:
      return "flushes";
    case kWrongChecksums:
      return "wrong_checksums";
  }
  return nullptr;
}

}  // namespace kvtrie
