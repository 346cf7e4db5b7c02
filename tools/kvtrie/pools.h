// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The bytes of a cache's pages, to read.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "save/plane_bytes.h"
#include "shm/segment.h"
#include "shm/shared_object.h"
#include "tools/kvtrie/exit_codes.h"

namespace kvtrie::inspect {

// "what: why: errno's text".
std::string in_words(const std::string& what, const Status& status);

// The pools of a segment, one a plane, each of the size that the segment states.
class Pools {
 public:
  Pools(const Segment& segment, const std::string& cache);

  const std::string& problem() const { return problem_; }  // empty: all are there
  Exit code() const { return code_; }
  const PlaneBytes& planes() const { return *planes_; }  // requires no problem

 private:
  std::vector<FileDescriptor> pools_;
  std::optional<PlaneBytes> planes_;
  std::string problem_;
  Exit code_ = Exit::kOk;
};

}  // namespace kvtrie::inspect
