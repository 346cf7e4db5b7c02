// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/peers/all_peers.h"

#include <malloc.h>

namespace kvtrie::bench {

double heap_bytes() {
  const struct mallinfo2 info = ::mallinfo2();
  return static_cast<double>(info.uordblks + info.hblkhd);
}

Peers make_peers(const Settings& settings, replay::Signals& signals, Corpus& corpus,
                 [[maybe_unused]] const std::string& directory) {
  Peers peers;
  peers.built.push_back(make_kvtrie(settings, signals, corpus));
  peers.built.push_back(make_radix_tree(corpus));
#ifdef KVTRIE_WITH_ABSL
  for (const bool exact : {false, true}) peers.built.push_back(make_absl_map(corpus, exact));
#else
  peers.missing.emplace_back("absl::flat_hash_map: not built: libabsl-dev is missing");
#endif
  for (const bool exact : {false, true}) peers.built.push_back(make_std_map(corpus, exact));
#ifdef KVTRIE_WITH_LMDB
  peers.built.push_back(make_lmdb(corpus, directory));
#else
  peers.missing.emplace_back("LMDB: not built: liblmdb-dev is missing");
#endif
#ifdef KVTRIE_WITH_ZEROMQ
  peers.built.push_back(make_zeromq(corpus, directory));
#else
  peers.missing.emplace_back("ZeroMQ server: not built: cppzmq-dev, libzmq3-dev or libabsl-dev is missing");
#endif
#ifdef KVTRIE_WITH_HIREDIS
  peers.built.push_back(make_redis(corpus, directory));
#else
  peers.missing.emplace_back("Redis: not built: libhiredis-dev or redis-server is missing");
#endif
  return peers;
}

}  // namespace kvtrie::bench
