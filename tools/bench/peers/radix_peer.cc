// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/peers/all_peers.h"
#include "tools/bench/peers/radix_tree.h"

namespace kvtrie::bench {
namespace {

static_assert(RadixTree::kPageTokens == kTokensPerPage);

class RadixLookup : public Lookup {
 public:
  explicit RadixLookup(const Corpus& corpus) {
    for (const CachedPrompt& prompt : corpus) tree_.insert(prompt.tokens, prompt.pages);
  }
  std::uint32_t find(std::span<const std::uint32_t> tokens, std::uint32_t* pages) override {
    return tree_.find(tokens, pages);
  }

 private:
  RadixTree tree_;
};

class RadixPeer : public Peer {
 public:
  explicit RadixPeer(const Corpus& corpus) : corpus_(corpus) {}
  std::string name() const override { return "radix tree"; }
  std::string configuration() const override {
    return "path-compressed, in C++; a prompt without branches is one node with its tokens and pages in arrays, "
           "children by their first page; tokens are compared; a copy in each process; looked up only: what was found "
           "is not protected";
  }
  std::unique_ptr<Lookup> open() const override { return std::make_unique<RadixLookup>(corpus_); }

 private:
  const Corpus& corpus_;
};

}  // namespace

std::unique_ptr<Peer> make_radix_tree(const Corpus& corpus) { return std::make_unique<RadixPeer>(corpus); }

}  // namespace kvtrie::bench
