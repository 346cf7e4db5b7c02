// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/page_eviction.h"

#include <fmt/format.h>

#include "tools/kvtrie/command_page.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

// What the state alone says; empty for Live pages.
std::string state_reason(PageState state) {
  switch (state) {
    case PageState::kFree:
      return "it is free already";
    case PageState::kWriting:
    case PageState::kPending:
      return "it is its owner's until it is published or given back, or its owner dies";
    case PageState::kLive:
      return {};
    case PageState::kCondemned:
      return "an eviction has chosen it: a lease, or a child, still rescues it";
    case PageState::kRetiring:
      return "its eviction is past return";
  }
  return "its state word cannot be: run kvtrie verify";
}

}  // namespace

EvictionVerdict judge_eviction(const PageReport& report) {
  EvictionVerdict verdict;
  std::vector<std::string>& reasons = verdict.reasons;
  if (std::string reason = state_reason(report.word.state()); !reason.empty()) {
    reasons.push_back(std::move(reason));
    return verdict;
  }
  if (report.children_count != 0) {
    reasons.push_back(fmt::format("{} below it: only leaves are evicted",
                                  counted(report.children_count, "child stands", "children stand")));
  }
  for (const PageLease& held : report.leases) {
    if (held.lease.target != LeaseTarget::kPage) continue;
    reasons.push_back(held.lease.slot == kCoordinatorSlot ? "the operator pinned it"
                                                          : "leased by " + held.holder);
  }
  if (!report.flushed && report.retain_seconds && *report.retain_seconds > 0) {
    reasons.push_back(fmt::format("retained for another {}", seconds_text(*report.retain_seconds)));
  }
  verdict.possible = reasons.empty();
  if (verdict.possible) {
    reasons.push_back(report.flushed ? "a leaf without lease, of a flushed root: it goes first"
                                     : "a leaf without lease: it goes when pages are needed and it is the least "
                                       "recently used");
  }
  return verdict;
}

}  // namespace kvtrie::inspect
