// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What in a status is a reason to act: each line says what is wrong and what to do about it.
#pragma once

#include <string>
#include <vector>

#include "tools/kvtrie/command_status.h"

namespace kvtrie::inspect {

std::vector<std::string> find_attention(const StatusReport& report);

}  // namespace kvtrie::inspect
