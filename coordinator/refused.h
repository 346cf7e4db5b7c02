// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Why a request is refused: a code for programs and a text for people that says what to do.
#pragma once

#include <string>

#include "shm/wire.h"

namespace kvtrie {

struct Refused {
  Refusal refusal = Refusal::kNone;
  std::string text;
};

}  // namespace kvtrie
