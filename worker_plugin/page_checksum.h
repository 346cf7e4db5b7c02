// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The checksum of a page's bytes in all planes, for caches that were made with kvtried --page-checksums: computed by the
// publisher before the page is Live, stored in its descriptor, compared by everybody who is about to hand the page out. It
// finds bytes that changed after they were published: of a worker that writes where it must not, or of bad memory. What it
// does not find: bytes that were wrong when they were published.
//
// 0 stands for "not computed", so a sum is never 0. A page of a save file has none.
#pragma once

#include <cstdint>

#include "worker_plugin/handle_table.h"

namespace kvtrie {

// `page` is in range and the view has all planes of the pool.
std::uint64_t page_checksum(const PoolView& pool, std::uint32_t page);

}  // namespace kvtrie
