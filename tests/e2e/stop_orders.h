// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How a test tells a process that it has started where to stop itself: a file that both map, named by the variable
// kStopOrdersVariable. stop_hook.cc obeys.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

namespace kvtrie::test {

inline constexpr const char* kStopOrdersVariable = "KVTRIE_TEST_STOP_ORDERS";

struct StopOrders {
  std::atomic<std::uint32_t> hits_left;  // at the place, until it stops; 0: it does not
  std::array<char, 60> place;            // written while hits_left is 0
};

// nullptr: no such file.
inline StopOrders* map_stop_orders(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0 || ::ftruncate(fd, sizeof(StopOrders)) != 0) return nullptr;
  void* const memory = ::mmap(nullptr, sizeof(StopOrders), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ::close(fd);
  return memory == MAP_FAILED ? nullptr : static_cast<StopOrders*>(memory);
}

inline void order_stop(StopOrders& orders, std::string_view place, std::uint32_t hits) {
  orders.hits_left.store(0);
  orders.place.fill(0);
  place.copy(orders.place.data(), orders.place.size() - 1);
  orders.hits_left.store(hits);
}

}  // namespace kvtrie::test
