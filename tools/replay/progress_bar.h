// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A line on standard error that is drawn over itself, if that is a terminal; else nothing.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace kvtrie::replay {

class ProgressBar {
 public:
  explicit ProgressBar(std::uint64_t whole) : whole_(whole), shown_(::isatty(STDERR_FILENO) == 1) {}
  ~ProgressBar() {
    if (drawn_) fmt::print(stderr, "\r\033[K");
  }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  [[nodiscard]] bool shown() const { return shown_; }

  void draw(std::uint64_t done, const std::string& note) {
    constexpr std::uint64_t kCells = 40;
    if (!shown_) return;
    const std::uint64_t cells = whole_ == 0 ? kCells : done * kCells / whole_;
    fmt::print(stderr, "\r[{:#<{}}{:.<{}}] {}/{}  {}\033[K", "", cells, "", kCells - cells, done,
               whole_, note);
    std::fflush(stderr);
    drawn_ = true;
  }

 private:
  const std::uint64_t whole_;
  const bool shown_;
  bool drawn_ = false;
};

}  // namespace kvtrie::replay
