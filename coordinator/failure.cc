// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/failure.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>

namespace kvtrie {

Failure failure_of(const std::string& what, const Status& status) {
  const int error = status.system_errno();
  if (error == 0) return {fmt::format("{}: {}", what, status.what())};
  Failure failure{fmt::format("{}: {} ({})", what, status.what(), std::strerror(error))};
  failure.no_room = error == ENOSPC || error == ENOMEM;
  return failure;
}

Failure system_failure(const std::string& what, int error) {
  return {fmt::format("{}: {}", what, std::strerror(error))};
}

}  // namespace kvtrie
