// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_tree.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
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
    const std::vector<LeaseView> leases = read_leases(segment);
    for (const LeaseView& lease : leases) {
      if (lease.target != LeaseTarget::kPage) continue;
      leases_.emplace(lease.handle.page_index().value, lease.slot.value);
    }
    filtered_ = apply(options.filter, segment, trie_, leases);
    if (options.filter.any()) trie_.keep(filtered_.wanted);
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
  FilterResult filtered_;
  std::multimap<std::uint32_t, std::uint16_t> leases_;  // page to slots
  std::priority_queue<Candidate> queue_;
  std::vector<Chosen> chosen_;
  std::vector<std::vector<std::size_t>> at_root_;  // chains below each root
};

void TreeBuilder::add_page(std::uint32_t page, ChainLine& line) const {
  const StateWord word = trie_.state(page);
  ++line.pages;
  if (filtered_.wanted[page]) ++line.matching;
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
  report.filtered = options_.filter.any();
  report.matching_pages = filtered_.pages;
  if (!options_.filter.prefix.empty()) report.prefix = filtered_.prefix;
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
  for (std::uint32_t i = 0; !report.filtered && i < segment_.namespace_count(); ++i) {  // open ones without a page
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

constexpr std::uint64_t kPrefixFileMax = 64 << 20;  // bytes

// Words of the command line that are not a TreeOptions yet.
struct TreeWords {
  TreeOptions options;
  std::string state;
  std::string prefix;
  std::string prefix_file;
};

// The problem with a prefix, or nothing.
std::string take_prefix(const TreeWords& words, TreeFilter& filter) {
  std::string text = words.prefix;
  if (!words.prefix_file.empty()) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(words.prefix_file, error) ||
        std::filesystem::file_size(words.prefix_file, error) > kPrefixFileMax) {
      return fmt::format("--prefix-file '{}': not a file of at most 64 MiB", words.prefix_file);
    }
    std::ifstream file(words.prefix_file);
    text.assign(std::istreambuf_iterator<char>(file), {});
  }
  if (text.empty() && words.prefix_file.empty()) return {};
  auto tokens = parse_tokens(text);
  if (!tokens) return "a prefix is token numbers with commas, spaces or line ends between, such as 1,15043,3186";
  filter.prefix = std::move(*tokens);
  return {};
}

void add_filter_options(CLI::App& command, TreeWords& words) {
  TreeFilter& filter = words.options.filter;
  CLI::Option* prefix =
      command.add_option("--prefix", words.prefix, "Only what continues these tokens: 1,2,3")->type_name("TOKENS");
  command.add_option("--prefix-file", words.prefix_file, "... tokens of a file")->type_name("FILE")->excludes(prefix);
  command.add_option("--below", filter.below, "Only this page and what hangs on it")
      ->check(CLI::Range(0U, kPagesMax - 1))
      ->type_name("PAGE");
  command.add_option("--state", words.state, "Only pages in this state")
      ->check(CLI::IsMember({"live", "pending", "condemned"}).description(""))
      ->type_name("live|pending|condemned");
  command.add_option("--worker", filter.worker, "Only pages that this slot wrote or is writing")
      ->check(CLI::Range(0U, kWorkersMax))
      ->type_name("SLOT");
  command.add_option("--min-pages", filter.pages_min, "Only pages with at least so many in their subtree")
      ->type_name("N");
  command.add_flag("--leased", filter.leased, "Only pages that a lease stands on");
}

Outcome run_tree(const Context& context, const TreeWords& words) {
  TreeOptions options = words.options;
  TreeFilter& filter = options.filter;
  if (const std::string problem = take_prefix(words, filter); !problem.empty()) {
    return failure(Exit::kUsage, problem, context.json);
  }
  if (words.state == "live") filter.state = PageState::kLive;
  if (words.state == "pending") filter.state = PageState::kPending;
  if (words.state == "condemned") filter.state = PageState::kCondemned;
  return on_segment(context, [&](const Segment& segment, const std::string& cache) {
    if (filter.below && !segment.has({*filter.below})) {
      return failure(Exit::kNotFound, no_such_page(segment, cache, *filter.below), context.json);
    }
    const std::optional<TreeReport> report = gather_tree(segment, options);
    if (report) return render(*report, context.json);
    return failure(Exit::kNotFound,
                   fmt::format("cache '{}' has no open namespace '{}'; `kvtrie namespaces` lists them", cache,
                               options.name_space),
                   context.json);
  });
}

}  // namespace

Command add_tree_command(CLI::App& app) {
  const auto words = std::make_shared<TreeWords>();
  TreeOptions& options = words->options;
  CLI::App* command = app.add_subcommand("tree", "What is cached, as a tree a namespace; largest parts first");
  command->add_option("--depth", options.depth, "Levels of branches below a root")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--limit", options.limit, "Lines (chains of pages) at most")
      ->check(CLI::Range(1U, 1'000'000U))
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--namespace", options.name_space, "Only this one: its id or label")->type_name("NAME");
  add_filter_options(*command, *words);
  command->footer(
      "Pages for which all conditions hold are shown, with the way to them. Examples:\n"
      "  kvtrie tree --namespace my-model --depth 2\n"
      "  kvtrie tree --prefix 1,15043,3186      what is cached after these tokens\n"
      "  kvtrie tree --state pending --worker 3  what slot 3 is computing");
  return {command, [words](const Context& context) { return run_tree(context, *words); }};
}

std::optional<TreeReport> gather_tree(const Segment& segment, const TreeOptions& options) {
  if (options.name_space.empty()) return TreeBuilder(segment, options).build(nullptr);
  const std::set<std::uint16_t> ids = namespaces_named(segment, options.name_space);
  if (ids.empty()) return std::nullopt;
  TreeReport report = TreeBuilder(segment, options).build(&ids);
  if (report.namespaces.empty() && !report.filtered) return std::nullopt;
  return report;
}

}  // namespace kvtrie::inspect
