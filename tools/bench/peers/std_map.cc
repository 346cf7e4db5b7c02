// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <unordered_map>

#include "tools/bench/peers/all_peers.h"
#include "tools/bench/peers/hash_map.h"

namespace kvtrie::bench {

std::unique_ptr<Peer> make_std_map(const Corpus& corpus, bool exact) {
  return make_map<std::unordered_map<std::uint64_t, HashedEntry>, std::unordered_map<std::uint64_t, ExactEntry>>(
      corpus, "std::unordered_map", exact);
}

}  // namespace kvtrie::bench
