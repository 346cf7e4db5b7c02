// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What administrative commands are aimed at: a coordinator, a namespace by its id or label, a cached prefix.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "shm/ids.h"
#include "shm/namespace_table.h"
#include "shm/segment.h"
#include "shm/wire_client.h"
#include "tools/kvtrie/command.h"

namespace kvtrie::inspect {

// The coordinator of the cache that the context names, and a look at its segment.
struct AdminTarget {
  CoordinatorAddress address;
  const Segment& segment;
  bool json;
};
Outcome on_coordinator(const Context& context, const std::function<Outcome(const AdminTarget& target)>& ask);

// The failed answer of a coordinator.
Outcome refused(const Status& status, const std::string& message, bool json);

// An open namespace by its id, else by its label; a label that several have is a usage error.
struct NamespaceFound {
  std::optional<OpenNamespace> name_space;
  Outcome failure;
};
NamespaceFound find_open_namespace(const AdminTarget& target, const std::string& named);

// Token ids, separated by commas or white space: "1,2,3", "@FILE", or "-" for stdin.
struct TokensRead {
  std::vector<std::uint32_t> tokens;
  std::string problem;  // empty: none
};
TokensRead read_tokens(const std::string& words);

// The deepest cached page of the tokens' full pages; none: not even the first is cached. Loads only; unverified, so its
// handle is to be leased, or compared again.
struct CachedPrefix {
  Handle deepest;
  std::uint32_t pages = 0;
};
CachedPrefix find_prefix(const Segment& segment, const OpenNamespace& name_space,
                         const std::vector<std::uint32_t>& tokens);

}  // namespace kvtrie::inspect
