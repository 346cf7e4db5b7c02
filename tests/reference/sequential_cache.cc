// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
#include "tests/reference/sequential_cache.h"

#include <algorithm>
#include <utility>

namespace kvtrie::reference {

struct SequentialCache::Node {
  Node* parent = nullptr;  // null: a root
  Tokens page;
  bool live = false;  // else Pending
  std::uint64_t stamp = 0;
  std::uint32_t stamp_tick = 0;
  std::uint32_t leases = 0;
  std::map<Tokens, std::unique_ptr<Node>> children;
};

// Positions of the prompt, in pages:
//   0 .. canonical.size()-1      in the trie: first Live ones, then this request's Pending ones
//   canonical.size() .. total-1  private
// All of this request's pages that are not Live are counted in `held`. It may be more than
// total - canonical.size(): copies that gave way to somebody else's page are kept until release.
struct SequentialCache::OpenRequest {
  Tokens tokens;
  Node* root = nullptr;
  std::vector<Node*> canonical;
  std::size_t live = 0;  // the first ones of `canonical`
  std::size_t total = 0;
  std::uint32_t held = 0;
  bool stands_before_other = false;  // the next page of the trie is somebody else's
  Node* leased = nullptr;
};

SequentialCache::SequentialCache(const CacheOptions& options)
    : options_(options),
      low_pages_(pages_of_percent(options.pages, options.low_percent)),
      high_pages_(pages_of_percent(options.pages, options.high_percent)),
      free_pages_(options.pages) {}

SequentialCache::~SequentialCache() = default;

Tokens SequentialCache::page_tokens(const OpenRequest& request, std::size_t position) const {
  const auto first =
      request.tokens.begin() + static_cast<std::ptrdiff_t>(position * options_.tokens_per_page);
  return {first, first + options_.tokens_per_page};
}

SequentialCache::Node* SequentialCache::find_child(const Node& parent, const Tokens& page) const {
  const auto found = parent.children.find(page);
  return found == parent.children.end() ? nullptr : found->second.get();
}

SequentialCache::Node* SequentialCache::root_of(std::uint32_t name_space) {
  std::unique_ptr<Node>& root = roots_[name_space];
  if (!root) root = std::make_unique<Node>();
  return root.get();
}

void SequentialCache::lease(OpenRequest& request, Node* node) {
  if (request.leased != nullptr) --request.leased->leases;
  request.leased = node;
  if (node != nullptr) ++node->leases;
}

BeginResult SequentialCache::begin(std::uint32_t name_space, std::span<const Token> tokens) {
  ++stamp_;
  auto request = std::make_unique<OpenRequest>();
  request->tokens.assign(tokens.begin(), tokens.end());
  request->root = root_of(name_space);

  BeginResult result;
  const std::size_t pages = tokens.size() / options_.tokens_per_page;
  Node* deepest = request->root;
  while (request->canonical.size() < pages) {
    Node* next = find_child(*deepest, page_tokens(*request, request->canonical.size()));
    if (next == nullptr) break;
    if (!next->live) {
      result.stopped_at_pending = true;
      break;
    }
    request->canonical.push_back(next);
    deepest = next;
  }
  request->live = request->total = request->canonical.size();
  if (!request->canonical.empty()) {
    lease(*request, deepest);
    if (!options_.touch_once_a_tick || deepest->stamp_tick != tick_) {
      deepest->stamp = stamp_;
      deepest->stamp_tick = tick_;
    }
  }
  result.matched_pages = static_cast<std::uint32_t>(request->canonical.size());
  result.request = RequestId{next_request_++};
  requests_.emplace(result.request, std::move(request));
  return result;
}

AllocateResult SequentialCache::allocate(RequestId id, std::uint32_t pages_total) {
  OpenRequest& request = *requests_.at(id);
  ++stamp_;
  if (pages_total > options_.pages) {
    ++counters_.never;
    return AllocateResult::kNever;
  }
  if (pages_total <= request.total) return AllocateResult::kOk;
  const auto wanted = static_cast<std::uint32_t>(pages_total - request.total);
  if (free_pages_ < wanted && options_.evict_in_allocate) evict(std::max(high_pages_, wanted));
  if (free_pages_ < wanted) {
    ++counters_.not_now;
    return AllocateResult::kNotNow;
  }
  free_pages_ -= wanted;
  request.held += wanted;
  request.total = pages_total;
  announce(request);
  if (free_pages_ < low_pages_ && options_.evict_in_allocate) evict(high_pages_);
  return AllocateResult::kOk;
}

void SequentialCache::append(RequestId id, std::span<const Token> tokens) {
  OpenRequest& request = *requests_.at(id);
  request.tokens.insert(request.tokens.end(), tokens.begin(), tokens.end());
}

// Enters the request's pages below its canonical ones, as far as their tokens are known.
void SequentialCache::announce(OpenRequest& request) {
  if (request.stands_before_other) return;
  const std::size_t known = request.tokens.size() / options_.tokens_per_page;
  while (request.canonical.size() < std::min(request.total, known)) {
    Node* parent = request.canonical.empty() ? request.root : request.canonical.back();
    Tokens page = page_tokens(request, request.canonical.size());
    if (find_child(*parent, page) != nullptr) {
      ++counters_.duplicates;
      request.stands_before_other = true;
      return;
    }
    auto node = std::make_unique<Node>();
    node->parent = parent;
    node->page = page;
    node->stamp = stamp_;
    node->stamp_tick = tick_;
    nodes_.insert(node.get());
    request.canonical.push_back(node.get());
    parent->children.emplace(std::move(page), std::move(node));
  }
}

// Looks again at the page of somebody else before which the request stands. All of its canonical
// pages are Live then, since nobody enters a page below another's Pending one.
void SequentialCache::join_canonical(OpenRequest& request) {
  if (!request.stands_before_other) return;
  const std::size_t known = request.tokens.size() / options_.tokens_per_page;
  Node* joined = nullptr;
  request.stands_before_other = false;
  while (request.canonical.size() < std::min(request.total, known)) {
    Node* parent = request.canonical.empty() ? request.root : request.canonical.back();
    Node* other = find_child(*parent, page_tokens(request, request.canonical.size()));
    if (other == nullptr) break;
    if (!other->live) {
      request.stands_before_other = true;
      break;
    }
    request.canonical.push_back(other);
    request.live = request.canonical.size();
    joined = other;
  }
  if (joined != nullptr) {
    lease(request, joined);
    joined->stamp = stamp_;
    joined->stamp_tick = tick_;
  }
}

PublishResult SequentialCache::publish(RequestId id, std::size_t tokens) {
  OpenRequest& request = *requests_.at(id);
  ++stamp_;
  const std::size_t full = std::min(tokens, request.tokens.size()) / options_.tokens_per_page;
  // Enter what can be entered, look at what stands before it, until nothing moves.
  std::size_t before = 0;
  do {
    announce(request);
    before = request.canonical.size();
    join_canonical(request);
    if (!request.stands_before_other) announce(request);
  } while (request.canonical.size() != before);
  PublishResult result;
  while (request.live < std::min(full, request.canonical.size())) {
    Node* node = request.canonical[request.live++];
    node->live = true;
    node->stamp = stamp_;
    node->stamp_tick = tick_;
    --request.held;
    ++result.published_pages;
    lease(request, node);
  }
  result.canonical_pages = static_cast<std::uint32_t>(request.live);
  return result;
}

void SequentialCache::release(RequestId id) {
  OpenRequest& request = *requests_.at(id);
  ++stamp_;
  while (request.canonical.size() > request.live) {
    Node* node = request.canonical.back();
    request.canonical.pop_back();
    nodes_.erase(node);
    const Tokens page = node->page;
    node->parent->children.erase(page);
  }
  free_pages_ += request.held;
  lease(request, nullptr);
  requests_.erase(id);
}

std::uint32_t SequentialCache::evict(std::uint32_t free_target) {
  std::uint32_t evicted = 0;
  while (free_pages_ < free_target && evict_one())
    ++evicted;
  return evicted;
}

SequentialCache::Node* SequentialCache::find_victim() const {
  Node* victim = nullptr;
  for (Node* node : nodes_) {
    if (!node->live || node->leases > 0 || !node->children.empty()) continue;
    if (victim == nullptr || node->stamp < victim->stamp) victim = node;
  }
  return victim;
}

bool SequentialCache::evict_one() {
  Node* victim = find_victim();
  if (victim == nullptr) return false;
  Node* parent = victim->parent;
  if (parent->stamp < victim->stamp) {
    parent->stamp = victim->stamp;
    parent->stamp_tick = victim->stamp_tick;
  }
  nodes_.erase(victim);
  const Tokens page = victim->page;
  parent->children.erase(page);
  ++free_pages_;
  ++counters_.evictions;
  return true;
}

std::uint32_t SequentialCache::held_pages() const {
  std::uint32_t held = 0;
  for (const auto& [id, request] : requests_)
    held += request->held;
  return held;
}

std::uint32_t SequentialCache::cached_pages() const {
  return static_cast<std::uint32_t>(
      std::count_if(nodes_.begin(), nodes_.end(), [](const Node* node) { return node->live; }));
}

std::set<CachedPath> SequentialCache::cached_paths() const {
  struct Visit {
    const Node* node;
    CachedPath path;
  };
  std::set<CachedPath> paths;
  std::vector<Visit> open;
  for (const auto& [name_space, root] : roots_)
    open.push_back({root.get(), {name_space, {}}});
  while (!open.empty()) {
    const Visit visit = std::move(open.back());
    open.pop_back();
    for (const auto& [page, child] : visit.node->children) {
      if (!child->live) continue;
      CachedPath path = visit.path;
      path.tokens.insert(path.tokens.end(), page.begin(), page.end());
      paths.insert(path);
      open.push_back({child.get(), std::move(path)});
    }
  }
  return paths;
}

std::string SequentialCache::find_violation() const {
  if (free_pages_ + held_pages() + cached_pages() != options_.pages) {
    return "free, held and cached pages do not add up to the pool";
  }
  std::map<const Node*, std::uint32_t> leases;
  std::map<const Node*, const OpenRequest*> announcers;
  std::uint32_t pending_held = 0;
  for (const auto& [id, request] : requests_) {
    if (request->leased != nullptr) ++leases[request->leased];
    const Node* deepest = request->live == 0 ? nullptr : request->canonical[request->live - 1];
    if (request->leased != deepest) return "a lease is not on the deepest Live page";
    for (std::size_t position = 0; position < request->canonical.size(); ++position) {
      const Node* node = request->canonical[position];
      if (!nodes_.contains(request->canonical[position])) return "a leased path was evicted";
      if (node->live != (position < request->live)) return "a path is not Live, then Pending";
      if (!node->live && !announcers.emplace(node, request.get()).second) {
        return "a Pending page has two owners";
      }
    }
    const auto pending = static_cast<std::uint32_t>(request->canonical.size() - request->live);
    if (pending > request->held) return "a request holds fewer pages than it announced";
    pending_held += pending;
  }
  std::set<std::uint64_t> leaf_stamps;
  std::uint32_t pending_nodes = 0;
  for (const Node* node : nodes_) {
    const auto counted = leases.find(node);
    if (node->leases != (counted == leases.end() ? 0 : counted->second)) return "a lease is lost";
    if (!node->live) ++pending_nodes;
    if (node->parent->parent != nullptr && node->live && !node->parent->live) {
      return "a Live page lies below a Pending one";
    }
    if (node->live && node->children.empty() && !leaf_stamps.insert(node->stamp).second) {
      return "two leaves have the same stamp";
    }
  }
  if (pending_nodes != pending_held) return "a Pending page has no owner";
  return {};
}

}  // namespace kvtrie::reference
