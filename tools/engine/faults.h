// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Faults between the stages of a request: it fails there, or its worker dies by SIGKILL. Which requests, and at which
// stage, follows from the seed; each but once, so that every answer is given in the end.
#pragma once

#include "tools/engine/board.h"
#include "tools/engine/request.h"

namespace kvtrie::engine {

class Faults {
 public:
  Faults(Board& board, std::uint32_t worker) : board_(board), worker_(worker) {}

  // At its first attempt; later ones have none.
  void plan(Request& request) const;
  // True: the request has failed behind `stage`. Does not return when it kills.
  bool strike(Stage stage, Request& request) const;
  // kill_owner: dies when another process may wait for the rest of this prompt.
  void strike_owner(const Request& request) const;

 private:
  Board& board_;
  const std::uint32_t worker_;
};

}  // namespace kvtrie::engine
