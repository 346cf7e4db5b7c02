// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <absl/container/flat_hash_map.h>

#include "tools/bench/peers/all_peers.h"
#include "tools/bench/peers/hash_map.h"

namespace kvtrie::bench {

std::unique_ptr<Peer> make_absl_map(const Corpus& corpus, bool exact) {
  return make_map<absl::flat_hash_map<std::uint64_t, HashedEntry>, absl::flat_hash_map<std::uint64_t, ExactEntry>>(
      corpus, "absl::flat_hash_map", exact);
}

}  // namespace kvtrie::bench
