// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie tree`: what is cached, as an indented tree a namespace. A chain of pages without a branch
// is one line; the lines that are shown are those of the largest subtrees, and each place where
// something was left out says how much.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"
#include "tools/kvtrie/snapshot.h"
#include "tools/kvtrie/tree_filter.h"
#include "tools/kvtrie/trie_snapshot.h"

namespace kvtrie::inspect {

struct TreeOptions {
  std::uint32_t depth = 8;   // levels of branches below a root; 0: namespaces alone
  std::uint32_t limit = 50;  // lines of chains
  std::string name_space;    // id or label; empty: all
  TreeFilter filter;
};

struct ChainLease {
  std::uint16_t slot = 0;
  std::uint32_t page = 0;
};

// A run of pages each of which is the only child of the one before.
struct ChainLine {
  std::uint32_t level = 0;  // 1: below the root
  std::int64_t above = -1;  // line of the chain that it hangs on; -1: the root
  std::vector<std::pair<std::uint32_t, std::uint32_t>> runs;  // page numbers, first and last
  std::uint64_t pages = 0;
  std::uint64_t tokens = 0;
  std::uint64_t matching = 0;  // pages that the filter wants; the others are the way to them
  std::uint64_t live = 0;
  std::uint64_t pending = 0;
  std::uint64_t condemned = 0;
  std::vector<std::uint16_t> owners;      // of its Pending pages
  std::optional<double> touched_seconds;  // of the page touched last
  std::vector<ChainLease> leases;
  std::uint64_t subtree_pages = 0;  // with the chain itself
  std::uint64_t branches = 0;       // chains that hang on its end
  std::uint64_t branches_left_out = 0;
  std::uint64_t pages_left_out = 0;
};

struct NamespaceTree {
  NamespaceView name_space;
  std::uint64_t root_generation = 0;
  bool current = true;  // else flushed: nothing below is matched any more
  std::uint64_t pages = 0;
  std::uint64_t branches = 0;
  std::uint64_t branches_left_out = 0;
  std::uint64_t pages_left_out = 0;
  std::vector<ChainLine> lines;  // depth first
};

struct PrivatePages {  // Writing: their owner's alone, not in the trie
  std::uint16_t slot = 0;
  std::uint64_t pages = 0;
};

struct DetachedPages {
  Detached kind = Detached::kNoParent;
  std::uint64_t pages = 0;
  std::vector<std::uint32_t> examples;
};

struct TreeReport {
  std::vector<NamespaceTree> namespaces;
  std::uint64_t namespaces_left_out = 0;
  std::uint64_t namespaces_left_out_pages = 0;
  std::vector<PrivatePages> private_pages;
  std::uint64_t retiring = 0;  // on their way out
  std::vector<DetachedPages> detached;
  std::uint64_t changed_while_read = 0;
  std::uint64_t lines_shown = 0;
  bool filtered = false;
  std::uint64_t matching_pages = 0;   // that the filter wants; all of them when there is none
  std::optional<PrefixMatch> prefix;  // when one was asked for
  std::uint64_t pages_left_out = 0;  // of the namespaces above
};

Command add_tree_command(CLI::App& app);

// None: no namespace has that id or label.
std::optional<TreeReport> gather_tree(const Segment& segment, const TreeOptions& options);
std::string to_text(const TreeReport& report);
Json to_json(const TreeReport& report);

}  // namespace kvtrie::inspect
