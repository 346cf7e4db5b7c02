// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How long the pages of a killed worker are gone (C5): from the moment that the kernel reports its death (its pidfd is
// readable here, as it is in the coordinator) until all of them are free again, seen from outside. The worker is a
// process of its own, and its pages lie as badly as they can: one in each chunk of 64, the last one, in a full cache. With
// busy workers (a replay that evicts all the time) they lie as they come.
#pragma once

namespace kvtrie::bench {

// The worker that is killed: this program, started again. Returns only when something failed.
//   kvtrie-bench --hold FD CACHE DIRECTORY PLUGIN PAGES pending|writing
inline constexpr char kHoldFlag[] = "--hold";
int hold_pages(int argc, char** argv);

}  // namespace kvtrie::bench
