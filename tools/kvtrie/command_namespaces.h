// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie namespaces`: what each namespace is and how much of the pool it has; pages of flushed roots that still stand.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"
#include "tools/kvtrie/snapshot.h"

namespace kvtrie::inspect {

struct NamespacePages {
  std::array<std::uint64_t, kPageStates> by_state{};  // Pending, Live, Condemned
  std::uint64_t flushed = 0;                          // of those: of a root generation that is over
  std::uint64_t tokens = 0;
  std::uint64_t leases = 0;
  std::uint64_t flushed_leases = 0;  // of those: what keeps flushed pages standing

  std::uint64_t of(PageState state) const { return by_state[static_cast<std::size_t>(state)]; }
  std::uint64_t total() const {
    return of(PageState::kPending) + of(PageState::kLive) + of(PageState::kCondemned);
  }
};

struct NamespaceRow {
  NamespaceView name_space;
  NamespacePages pages;
};

struct NamespacesReport {
  std::uint32_t records = 0;  // that there may be
  std::uint64_t pool_pages = 0;
  std::uint64_t bytes_per_page = 0;  // in all planes
  std::vector<NamespaceRow> rows;    // open ones, and closed ones that still have pages; most pages first
  NamespacePages unknown;            // pages of namespaces that this segment does not have: damage
};

Command add_namespaces_command(CLI::App& app);

NamespacesReport gather_namespaces(const Segment& segment);
std::string to_text(const NamespacesReport& report);
Json to_json(const NamespacesReport& report);

}  // namespace kvtrie::inspect
