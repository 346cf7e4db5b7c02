// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/failure.h"

#include <fmt/format.h>

#include <cstring>

namespace kvtrie {

Failure failure_of(const std::string& what, const Status& status) {
  if (status.system_errno() == 0) return {fmt::format("{}: {}", what, status.what())};
  return {fmt::format("{}: {} ({})", what, status.what(), std::strerror(status.system_errno()))};
}

Failure system_failure(const std::string& what, int error) {
  return {fmt::format("{}: {}", what, std::strerror(error))};
}

}  // namespace kvtrie
