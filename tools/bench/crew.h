// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The same measurement in several processes at once: forked, each with an attachment of its own, brought together
// between their rounds. The caller must not be attached itself and must have no other thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

namespace kvtrie::bench {

struct CrewMemory;  // what its members share

class CrewMember {
 public:
  CrewMember(CrewMemory& memory, std::uint32_t index, std::uint32_t count)
      : memory_(memory), index_(index), count_(count) {}
  std::uint32_t index() const { return index_; }
  std::uint32_t count() const { return count_; }
  // Returns when all have come here. Who waits for long and wants to disturb nobody meanwhile looks so often only.
  void meet(std::chrono::microseconds between_looks = {});
  // Kept for the caller of run_crew, in order. At most kFiguresMax.
  void figure(double value);

  static constexpr std::uint32_t kMembersMax = 16;
  static constexpr std::uint32_t kFiguresMax = 1U << 16;

 private:
  CrewMemory& memory_;
  std::uint32_t index_;
  std::uint32_t count_;
};

// By member: its figures. Throws std::runtime_error when one failed; the others are ended then.
std::vector<std::vector<double>> run_crew(std::uint32_t count, const std::function<void(CrewMember&)>& work);

}  // namespace kvtrie::bench
