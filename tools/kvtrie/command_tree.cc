// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_tree.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <map>
#include <memory>
#include <queue>
#include <set>

namespace kvtrie::inspect {
namespace {

// A chain that may be shown: its first page and where it hangs.
struct Candidate {
  std::uint32_t subtree_pages;
  std::uint32_t first;
  std::uint32_t level;
  std::int64_t above;  // index into the chains chosen so far
  std::size_t tree;    // index into the report's namespaces

  bool operator<(const Candidate& other) const {  // for a queue that gives the largest first
    return subtree_pages != other.subtree_pages ? subtree_pages < other.subtree_pages
                                                : first > other.first;
  }
};

struct Chosen {
  ChainLine line;
  std::size_t tree;
  std::vector<std::size_t> below;
};

class TreeBuilder {
 public:
  TreeBuilder(const Segment& segment, const TreeOptions& options)
      : segment_(segment), options_(options), host_(segment), trie_(segment) {
    for (const LeaseView& lease : read_leases(segment)) {
      if (lease.target != LeaseTarget::kPage) continue;
      leases_.emplace(lease.handle.page_index().value, lease.slot.value);
    }
  }

  TreeReport build(const std::set<std::uint16_t>* only);

 private:
  void add_namespace(TreeReport& report, const Root& root);
  std::uint32_t walk_chain(std::uint32_t first, ChainLine& line) const;
  void add_page(std::uint32_t page, ChainLine& line) const;
  void choose(TreeReport& report);
  void hand_out(TreeReport& report);
  void add_pages_outside(TreeReport& report) const;

  const Segment& segment_;
  const TreeOptions& options_;
  HostView host_;
  TrieSnapshot trie_;
  std::multimap<std::uint32_t, std::uint16_t> leases_;  // page to slots
  std::priority_queue<Candidate> queue_;
  std::vector<Chosen> chosen_;
  std::vector<std::vector<std::size_t>> at_root_;  // chains below each root
};

void TreeBuilder::add_page(std::uint32_t page, ChainLine& line) const {
  const StateWord word = trie_.state(page);
  ++line.pages;
  line.tokens += std::min<std::uint32_t>(
      segment_.descriptor({page}).token_count.load(std::memory_order_relaxed),
      segment_.tokens_per_page());
  if (word.state() == PageState::kLive) ++line.live;
  if (word.state() == PageState::kCondemned) ++line.condemned;
  if (word.state() == PageState::kPending) {
    ++line.pending;
    if (std::ranges::find(line.owners, word.owner().value) == line.owners.end()) {
      line.owners.push_back(word.owner().value);
    }
  }
  if (!line.runs.empty() && line.runs.back().second + 1 == page) {
    line.runs.back().second = page;
  } else {
    line.runs.emplace_back(page, page);
  }
  const std::optional<double> age = host_.age_seconds(trie_.touch_tick(page));
  if (age && (!line.touched_seconds || *age < *line.touched_seconds)) line.touched_seconds = age;
  for (auto [at, end] = leases_.equal_range(page); at != end; ++at) {
    line.leases.push_back({at->second, page});
  }
}

// Returns the chain's last page. Ends, since it goes down from a root.
std::uint32_t TreeBuilder::walk_chain(std::uint32_t first, ChainLine& line) const {
  std::uint32_t page = first;
  add_page(page, line);
  while (trie_.children(page).size() == 1) {
    page = trie_.children(page).front();
    add_page(page, line);
  }
  return page;
}

void TreeBuilder::choose(TreeReport& report) {
  while (!queue_.empty() && chosen_.size() < options_.limit) {
    const Candidate candidate = queue_.top();
    queue_.pop();
    const std::size_t index = chosen_.size();
    Chosen chain{{}, candidate.tree, {}};
    chain.line.level = candidate.level;
    chain.line.subtree_pages = candidate.subtree_pages;
    const std::uint32_t last = walk_chain(candidate.first, chain.line);
    const auto branches = trie_.children(last);
    chain.line.branches = branches.size();
    chain.line.branches_left_out = branches.size();
    chain.line.pages_left_out = chain.line.subtree_pages - chain.line.pages;
    chosen_.push_back(std::move(chain));
    NamespaceTree& tree = report.namespaces[candidate.tree];
    if (candidate.above < 0) {
      at_root_[candidate.tree].push_back(index);
      --tree.branches_left_out;
      tree.pages_left_out -= candidate.subtree_pages;
    } else {
      Chosen& above = chosen_[static_cast<std::size_t>(candidate.above)];
      above.below.push_back(index);
      --above.line.branches_left_out;
      above.line.pages_left_out -= candidate.subtree_pages;
    }
    if (candidate.level >= options_.depth) continue;
    for (const std::uint32_t page : branches) {
      queue_.push({trie_.subtree_pages(page), page, candidate.level + 1,
                   static_cast<std::int64_t>(index), candidate.tree});
    }
  }
}

// Depth first, largest first: `below` is in the queue's order already.
void TreeBuilder::hand_out(TreeReport& report) {
  for (std::size_t t = 0; t < report.namespaces.size(); ++t) {
    NamespaceTree& tree = report.namespaces[t];
    std::vector<std::pair<std::size_t, std::int64_t>> stack;
    for (auto i = at_root_[t].rbegin(); i != at_root_[t].rend(); ++i)
      stack.emplace_back(*i, -1);
    report.pages_left_out += tree.pages_left_out;
    while (!stack.empty()) {
      const auto [index, above] = stack.back();
      stack.pop_back();
      Chosen& chain = chosen_[index];
      chain.line.above = above;
      report.pages_left_out += chain.line.pages_left_out;
      const auto here = static_cast<std::int64_t>(tree.lines.size());
      tree.lines.push_back(std::move(chain.line));
      for (auto i = chain.below.rbegin(); i != chain.below.rend(); ++i)
        stack.emplace_back(*i, here);
    }
  }
  report.lines_shown = chosen_.size();
}

void TreeBuilder::add_pages_outside(TreeReport& report) const {
  std::map<std::uint16_t, std::uint64_t> writing;
  for (std::uint32_t page = 0; page < trie_.page_count(); ++page) {
    const StateWord word = trie_.state(page);
    if (word.state() == PageState::kWriting) ++writing[word.owner().value];
    if (word.state() == PageState::kRetiring) ++report.retiring;
  }
  for (const auto& [slot, pages] : writing)
    report.private_pages.push_back({slot, pages});
  for (std::size_t k = 0; k < kDetachedKinds; ++k) {
    const auto kind = static_cast<Detached>(k);
    if (trie_.detached(kind) != 0) {
      report.detached.push_back({kind, trie_.detached(kind), trie_.examples(kind)});
    }
  }
  report.changed_while_read = trie_.changed_while_read();
}

void TreeBuilder::add_namespace(TreeReport& report, const Root& root) {
  NamespaceTree tree;
  tree.name_space = read_namespace(segment_, root.handle.namespace_id());
  tree.root_generation = root.handle.generation();
  tree.current = root.current;
  tree.pages = root.pages;
  tree.branches = root.children.size();
  tree.branches_left_out = tree.branches;
  tree.pages_left_out = tree.pages;
  if (options_.depth > 0) {
    for (const std::uint32_t page : root.children) {
      queue_.push({trie_.subtree_pages(page), page, 1, -1, report.namespaces.size()});
    }
  }
  at_root_.emplace_back();
  report.namespaces.push_back(std::move(tree));
}

TreeReport TreeBuilder::build(const std::set<std::uint16_t>* only) {
  TreeReport report;
  std::set<std::uint16_t> listed;
  for (const Root& root : trie_.roots()) {
    const std::uint16_t id = root.handle.namespace_id().value;
    if (only != nullptr && !only->contains(id)) continue;
    listed.insert(id);
    if (report.namespaces.size() >= std::max<std::size_t>(options_.limit, 1)) {
      ++report.namespaces_left_out;
      report.namespaces_left_out_pages += root.pages;
      continue;
    }
    add_namespace(report, root);
  }
  for (std::uint32_t i = 0; i < segment_.namespace_count(); ++i) {  // open ones without a page
    const NamespaceId id{static_cast<std::uint16_t>(i)};
    if (listed.contains(id.value) || (only != nullptr && !only->contains(id.value))) continue;
    const NamespaceView view = read_namespace(segment_, id);
    if (!view.open) continue;
    if (report.namespaces.size() >= std::max<std::size_t>(options_.limit, 1)) {
      ++report.namespaces_left_out;
      continue;
    }
    add_namespace(report, {Handle::root(id, view.root_generation), true, {}, 0});
  }
  choose(report);
  hand_out(report);
  add_pages_outside(report);
  return report;
}

// Ids that `text` names: a number, or a label (several namespaces may have the same).
std::set<std::uint16_t> namespaces_named(const Segment& segment, const std::string& text) {
  std::set<std::uint16_t> ids;
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc{} && end == text.data() + text.size()) {
    if (number < segment.namespace_count()) ids.insert(static_cast<std::uint16_t>(number));
    return ids;
  }
  for (std::uint32_t i = 0; i < segment.namespace_count(); ++i) {
    const NamespaceView view = read_namespace(segment, {static_cast<std::uint16_t>(i)});
    if (view.open && view.label == text) ids.insert(view.id.value);
  }
  return ids;
}

}  // namespace

Command add_tree_command(CLI::App& app) {
  const auto options = std::make_shared<TreeOptions>();
  CLI::App* command = app.add_subcommand("tree", "What is cached, as a tree a namespace; largest parts first");
  command->add_option("--depth", options->depth, "Levels of branches below a root")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--limit", options->limit, "Lines (chains of pages) at most")
      ->check(CLI::Range(1U, 1'000'000U))
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--namespace", options->name_space, "Only this one: its id or label")->type_name("NAME");
  return {command, [options](const Context& context) {
            return on_segment(context, [&](const Segment& segment, const std::string& cache) {
              const std::optional<TreeReport> report = gather_tree(segment, *options);
              if (report) return render(*report, context.json);
              return failure(Exit::kNotFound,
                             fmt::format("cache '{}' has no open namespace '{}'; `kvtrie namespaces` lists them", cache,
                                         options->name_space),
                             context.json);
            });
          }};
}

std::optional<TreeReport> gather_tree(const Segment& segment, const TreeOptions& options) {
  if (options.name_space.empty()) return TreeBuilder(segment, options).build(nullptr);
  const std::set<std::uint16_t> ids = namespaces_named(segment, options.name_space);
  if (ids.empty()) return std::nullopt;
  TreeReport report = TreeBuilder(segment, options).build(&ids);
  if (report.namespaces.empty()) return std::nullopt;
  return report;
}

}  // namespace kvtrie::inspect
