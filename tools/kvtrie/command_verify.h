// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie verify`: shm/verify.h over a live or a dead segment, for people and scripts.
#pragma once

#include <string>

#include "shm/verify.h"
#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"

namespace kvtrie::inspect {

struct VerifyOutput {
  std::string cache;
  bool at_rest = false;
  double seconds = 0;
  VerifyReport report;
};

Command add_verify_command(CLI::App& app);

VerifyOutput gather_verify(const Segment& segment, const std::string& cache,
                           const VerifyOptions& options);
// What `verify` says of a segment that cannot even be opened: one finding.
VerifyOutput verify_of_unreadable(const std::string& cache, Status status);
std::string to_text(const VerifyOutput& output);
Json to_json(const VerifyOutput& output);

}  // namespace kvtrie::inspect
