// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The peers, one small file each. What a function here needs beside the C++ library is optional: CMakeLists.txt.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tools/bench/peers/peer.h"
#include "tools/bench/sections.h"
#include "tools/replay/child_process.h"

namespace kvtrie::bench {

// kvtrie itself, by its plugin. Caches the prompts and notes their pages, so it is made first.
std::unique_ptr<Peer> make_kvtrie(const Settings& settings, replay::Signals& signals, Corpus& corpus);
// In each process's own memory, keyed by the chained hash. `exact`: entries have their tokens, which are compared.
std::unique_ptr<Peer> make_absl_map(const Corpus& corpus, bool exact);
std::unique_ptr<Peer> make_std_map(const Corpus& corpus, bool exact);
std::unique_ptr<Peer> make_radix_tree(const Corpus& corpus);
// Files and sockets of these are in `directory`.
std::unique_ptr<Peer> make_lmdb(const Corpus& corpus, const std::string& directory);
std::unique_ptr<Peer> make_redis(const Corpus& corpus, const std::string& directory);
std::unique_ptr<Peer> make_zeromq(const Corpus& corpus, const std::string& directory);

struct Peers {
  std::vector<std::unique_ptr<Peer>> built;  // kvtrie first
  std::vector<std::string> missing;          // "Redis: not built: ..."
};
Peers make_peers(const Settings& settings, replay::Signals& signals, Corpus& corpus, const std::string& directory);

}  // namespace kvtrie::bench
