// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Linked into a program with crash points: it stops itself (SIGSTOP) at the place that a test names (stop_orders.h).

#include <csignal>
#include <cstring>

#include "shm/crash_point.h"
#include "tests/e2e/stop_orders.h"

namespace {

kvtrie::test::StopOrders* orders = nullptr;

void stop_where_told(const char* place) {
  if (orders->hits_left.load() == 0 || std::strcmp(place, orders->place.data()) != 0) return;
  if (orders->hits_left.fetch_sub(1) == 1) ::kill(::getpid(), SIGSTOP);
}

// Before main.
const bool installed = [] {
  const char* const path = std::getenv(kvtrie::test::kStopOrdersVariable);
  orders = path == nullptr ? nullptr : kvtrie::test::map_stop_orders(path);
  if (orders != nullptr) kvtrie::crash_hook.store(stop_where_told);
  return orders != nullptr;
}();

}  // namespace
