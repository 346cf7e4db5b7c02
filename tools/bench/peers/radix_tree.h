// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A path-compressed radix tree over pages of tokens, as SGLang's and FlexKV's: a node has a run of whole pages, and its
// children by their first page. Written for the comparison, in ordinary memory of one process, without locks.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "shm/prefix_hash.h"

namespace kvtrie::bench {

class RadixTree {
 public:
  static constexpr std::uint32_t kPageTokens = 16;

  // Page i of the path is pages[i]; where the path is there already, its pages stay what they are.
  void insert(std::span<const std::uint32_t> tokens, std::span<const std::uint32_t> pages) {
    Node* node = &root_;
    for (std::size_t at = 0; at < pages.size();) {
      const auto child = node->children.find(first_page(tokens, at));
      if (child == node->children.end()) {
        auto leaf = std::make_unique<Node>();
        leaf->tokens.assign(tokens.begin() + static_cast<std::ptrdiff_t>(at * kPageTokens),
                            tokens.begin() + static_cast<std::ptrdiff_t>(pages.size() * kPageTokens));
        leaf->pages.assign(pages.begin() + static_cast<std::ptrdiff_t>(at), pages.end());
        node->children.emplace(first_page(tokens, at), std::move(leaf));
        return;
      }
      const std::size_t same = same_pages(*child->second, tokens, at);
      at += same;
      if (same < child->second->pages.size() && at < pages.size()) split(child->second, same);
      node = child->second.get();
    }
  }

  // How many pages from the start are there; writes which to `pages`.
  std::uint32_t find(std::span<const std::uint32_t> tokens, std::uint32_t* pages) const {
    const std::size_t count = tokens.size() / kPageTokens;
    const Node* node = &root_;
    std::size_t at = 0;
    while (at < count) {
      const auto child = node->children.find(first_page(tokens, at));
      if (child == node->children.end()) break;
      node = child->second.get();
      const std::size_t same = same_pages(*node, tokens, at);
      std::memcpy(pages + at, node->pages.data(), same * sizeof *pages);
      at += same;
      if (same < node->pages.size()) break;
    }
    return static_cast<std::uint32_t>(at);
  }

 private:
  using Page = std::array<std::uint32_t, kPageTokens>;
  struct HashOfPage {
    std::size_t operator()(const Page& page) const { return hash_page(0, page); }
  };
  struct Node {
    std::vector<std::uint32_t> tokens;
    std::vector<std::uint32_t> pages;
    std::unordered_map<Page, std::unique_ptr<Node>, HashOfPage> children;
  };

  static Page first_page(std::span<const std::uint32_t> tokens, std::size_t at) {
    Page page;
    std::memcpy(page.data(), tokens.data() + at * kPageTokens, sizeof page);
    return page;
  }

  // Pages of the node that the tokens from page `at` on begin with.
  static std::size_t same_pages(const Node& node, std::span<const std::uint32_t> tokens, std::size_t at) {
    const std::size_t count = std::min(node.pages.size(), tokens.size() / kPageTokens - at);
    const std::uint32_t* asked = tokens.data() + at * kPageTokens;
    // At once, since most runs are equal to their end; the page where they differ is looked for afterwards.
    if (std::memcmp(node.tokens.data(), asked, count * sizeof(Page)) == 0) return count;
    return static_cast<std::size_t>(
               std::mismatch(asked, asked + count * kPageTokens, node.tokens.data()).first - asked) /
           kPageTokens;
  }

  // Leaves the first `kept` pages in the node and gives it one child with the rest.
  static void split(std::unique_ptr<Node>& node, std::size_t kept) {
    auto rest = std::make_unique<Node>();
    rest->tokens.assign(node->tokens.begin() + static_cast<std::ptrdiff_t>(kept * kPageTokens), node->tokens.end());
    rest->pages.assign(node->pages.begin() + static_cast<std::ptrdiff_t>(kept), node->pages.end());
    rest->children = std::move(node->children);
    node->children.clear();
    node->tokens.resize(kept * kPageTokens);
    node->pages.resize(kept);
    const Page key = first_page(rest->tokens, 0);
    node->children.emplace(key, std::move(rest));
  }

  Node root_;
};

}  // namespace kvtrie::bench
