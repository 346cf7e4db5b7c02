// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
#include "tests/reference/simulate_trace.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <queue>
#include <utility>
#include <vector>

#include "tests/reference/sequential_cache.h"
#include "tools/replay/content.h"
#include "tools/replay/random.h"

namespace kvtrie::reference {
namespace {

using NodeIndex = std::uint32_t;
constexpr NodeIndex kNoNode = 0xFFFFFFFF;

// Nodes 0..pages-1 are pages, those after them the roots of the namespaces.
class FastTrie {
 public:
  FastTrie(std::uint32_t pages, std::uint32_t namespaces)
      : pages_(pages),
        nodes_(std::size_t{pages} + namespaces),
        heads_(std::bit_ceil(std::size_t{pages} + 1), kNoNode) {
    unused_.reserve(pages);
    for (NodeIndex node = pages; node > 0; --node)
      unused_.push_back(node - 1);
  }

  [[nodiscard]] NodeIndex root(std::uint32_t name_space) const { return pages_ + name_space; }
  [[nodiscard]] bool is_root(NodeIndex node) const { return node >= pages_; }

  [[nodiscard]] NodeIndex find(NodeIndex parent, std::uint64_t key) const {
    NodeIndex node = heads_[slot_of(parent, key)];
    while (node != kNoNode && (nodes_[node].parent != parent || nodes_[node].key != key)) {
      node = nodes_[node].next;
    }
    return node;
  }

  NodeIndex insert(NodeIndex parent, std::uint64_t key) {
    const NodeIndex node = unused_.back();
    unused_.pop_back();
    NodeIndex& head = heads_[slot_of(parent, key)];
    nodes_[node] = {.key = key, .stamp = 0, .stamp_ms = 0, .parent = parent, .next = head};
    head = node;
    ++nodes_[parent].children;
    return node;
  }

  void stamp(NodeIndex node, std::uint64_t stamp, std::uint64_t now_ms) {
    nodes_[node].stamp = stamp;
    nodes_[node].stamp_ms = now_ms;
  }
  [[nodiscard]] std::uint64_t stamp_ms(NodeIndex node) const { return nodes_[node].stamp_ms; }

  // To be called when a page may have become a leaf without a lease.
  void offer(NodeIndex node) {
    if (!is_root(node) && nodes_[node].children == 0) leaves_.push({nodes_[node].stamp, node});
  }

  // Evicts up to `wanted` leaves, oldest stamp first, but not `leased`. Returns how many.
  std::uint64_t evict(std::uint64_t wanted, NodeIndex leased) {
    std::uint64_t evicted = 0;
    while (evicted < wanted && !leaves_.empty()) {
      const Leaf oldest = leaves_.top();
      leaves_.pop();
      NodeIndex victim = oldest.node;
      // An entry is stale when the page has been stamped or has got children since. What is leased
      // is offered again at its release.
      const bool is_stale = nodes_[victim].stamp != oldest.stamp || nodes_[victim].children != 0;
      if (is_stale || victim == leased) continue;
      // A parent that inherits the oldest stamp of all is the next victim: no need to queue it.
      while (true) {
        const std::uint64_t stamp = nodes_[victim].stamp;
        const std::uint64_t stamp_ms = nodes_[victim].stamp_ms;
        const NodeIndex parent = remove(victim);
        ++evicted;
        // As the rule says. It shows only where leases keep older leaves: the victim was the oldest
        // of all, so with one request at a time its parent comes next with its own stamp too.
        if (nodes_[parent].stamp < stamp) this->stamp(parent, stamp, stamp_ms);
        if (parent == leased || is_root(parent) || nodes_[parent].children != 0) break;
        if (nodes_[parent].stamp != stamp || evicted == wanted) {
          offer(parent);
          break;
        }
        victim = parent;
      }
    }
    return evicted;
  }

 private:
  struct Node {
    std::uint64_t key = 0;
    std::uint64_t stamp = 0;  // 0: not in use
    std::uint64_t stamp_ms = 0;
    NodeIndex parent = kNoNode;
    NodeIndex next = kNoNode;
    std::uint32_t children = 0;
  };
  struct Leaf {
    std::uint64_t stamp;
    NodeIndex node;
    bool operator<(const Leaf& other) const { return stamp > other.stamp; }  // oldest on top
  };

  [[nodiscard]] std::size_t slot_of(NodeIndex parent, std::uint64_t key) const {
    return replay::mix64(key + parent * replay::kGoldenGamma) & (heads_.size() - 1);
  }

  NodeIndex remove(NodeIndex node) {
    const NodeIndex parent = nodes_[node].parent;
    NodeIndex* link = &heads_[slot_of(parent, nodes_[node].key)];
    while (*link != node)
      link = &nodes_[*link].next;
    *link = nodes_[node].next;
    nodes_[node] = Node{};
    unused_.push_back(node);
    --nodes_[parent].children;
    return parent;
  }

  const std::uint32_t pages_;
  std::vector<Node> nodes_;
  std::vector<NodeIndex> heads_;
  std::vector<NodeIndex> unused_;
  std::priority_queue<Leaf> leaves_;
};

class Simulation {
 public:
  explicit Simulation(const SimulationOptions& options)
      : options_(options),
        low_pages_(pages_of_percent(options.pages, options.low_percent)),
        high_pages_(pages_of_percent(options.pages, options.high_percent)),
        free_pages_(options.pages),
        trie_(options.pages, std::max(options.namespaces, 1U)) {}

  void serve(const replay::Request& request, std::size_t index) {
    compute_keys(request);
    NodeIndex deepest = trie_.root(replay::namespace_of_request(index, options_.namespaces));
    std::size_t matched = 0;
    while (matched < keys_.size()) {
      const NodeIndex next = trie_.find(deepest, keys_[matched]);
      if (next == kNoNode) break;
      deepest = next;
      ++matched;
    }
    ++stamp_;
    const bool is_touched =
        options_.touch_once_a_tick && trie_.stamp_ms(deepest) == request.timestamp_ms;
    if (matched > 0 && !is_touched) trie_.stamp(deepest, stamp_, request.timestamp_ms);
    result_.pages_hit += matched;
    result_.pages_total += keys_.size();
    result_.blocks_hit += replay::blocks_in_pages(matched, options_.tokens_per_page);
    result_.blocks_total += request.hash_ids.size();

    const std::uint64_t total = replay::pages_needed(request, options_.tokens_per_page);
    if (allocate(total, total - matched, deepest)) {
      ++stamp_;
      for (std::size_t page = matched; page < keys_.size(); ++page) {
        deepest = trie_.insert(deepest, keys_[page]);
        trie_.stamp(deepest, stamp_, request.timestamp_ms);
      }
      free_pages_ += total - keys_.size();
    } else {
      ++result_.failed_allocations;
    }
    trie_.offer(deepest);
  }

  [[nodiscard]] const SimulationResult& result() const { return result_; }

 private:
  // One key for each full page of the prompt.
  void compute_keys(const replay::Request& request) {
    replay::tokens_of_prompt(request, tokens_);
    keys_.resize(tokens_.size() / options_.tokens_per_page);
    const std::size_t page_bytes = options_.tokens_per_page * sizeof(std::uint32_t);
    for (std::size_t page = 0; page < keys_.size(); ++page) {
      keys_[page] = XXH3_64bits(&tokens_[page * options_.tokens_per_page], page_bytes);
    }
  }

  bool allocate(std::uint64_t total, std::uint64_t wanted, NodeIndex leased) {
    if (total > options_.pages) return false;
    if (free_pages_ < wanted) evict_until(std::max(high_pages_, wanted), leased);
    if (free_pages_ < wanted) return false;
    free_pages_ -= wanted;
    result_.pages_allocated += wanted;
    if (free_pages_ < low_pages_) evict_until(high_pages_, leased);
    return true;
  }

  void evict_until(std::uint64_t free_target, NodeIndex leased) {
    if (free_pages_ >= free_target) return;
    const std::uint64_t evicted = trie_.evict(free_target - free_pages_, leased);
    free_pages_ += evicted;
    result_.evictions += evicted;
  }

  const SimulationOptions options_;
  const std::uint64_t low_pages_;
  const std::uint64_t high_pages_;
  std::uint64_t free_pages_;
  std::uint64_t stamp_ = 0;
  FastTrie trie_;
  std::vector<std::uint32_t> tokens_;
  std::vector<std::uint64_t> keys_;
  SimulationResult result_;
};

}  // namespace

SimulationResult simulate_trace(std::span<const replay::Request> requests,
                                const SimulationOptions& options) {
  Simulation simulation(options);
  for (std::size_t index = 0; index < requests.size(); ++index) {
    simulation.serve(requests[index], index);
  }
  return simulation.result();
}

}  // namespace kvtrie::reference
