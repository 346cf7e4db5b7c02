// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A worker process of a replay: takes requests from the shared plan, keeps several open, and moves
// one of them by a stage at a time, chosen by chance, so that their stages mix in every order.
//
// No room for one of them: it has given everything back and waits, no new request is taken, and the
// others are finished first; then it may wait for pages alone. So requests of one worker never wait
// for each other for ever.
#pragma once

#include <cstdint>

namespace kvtrie::replay {

// main() of a worker. `plan_fd` was inherited. Returns the exit code; why it failed is in its
// tally.
int run_worker(int plan_fd, std::uint32_t worker, std::uint32_t incarnation);

}  // namespace kvtrie::replay
