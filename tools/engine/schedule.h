// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a llama.cpp worker did, batch by batch: a file that it appends to, one write a step, so that
// who is killed leaves all its steps but the one that it was in. 32-bit words in the host's order,
// records one behind the other:
//
//   remove   1, slot, first                          KV of the slot's positions from `first` on was
//   removed import   2, request, time, slot, first, tokens n, pages m | n x token | m x { page,
//   sample (PageSample) }
//            KV of n tokens came from the cache, into the slot's positions from `first` on; us
//            since the run began
//   batch    3, n | n x { slot, position, token, wanted }               one llama_decode
//   choice   4, request, slot, position, index, n | n x { token, logit (float) }
//            of the batch before: the best n next tokens at `position`, from the logits of its
//            token `index`
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tools/engine/llama_session.h"

namespace kvtrie::engine {

enum class ScheduleRecord : std::uint32_t { kRemove = 1, kImport, kBatch, kChoice };

struct ImportedPage {
  std::uint32_t page = 0;
  PageSample sample{};
};
struct ScheduledImport {
  std::uint32_t request = 0, time_us = 0, slot = 0, first = 0;
  std::vector<std::uint32_t> tokens;
  std::vector<ImportedPage> pages;
};
struct ChosenToken {
  std::uint32_t token = 0;
  float logit = 0;
};
struct ScheduledChoice {
  std::uint32_t request = 0, slot = 0, position = 0, index = 0;
  std::vector<ChosenToken> tokens;  // best first
};

class ScheduleWriter {
 public:
  // A new file. Throws std::system_error.
  explicit ScheduleWriter(const std::string& path);
  ~ScheduleWriter();
  ScheduleWriter(const ScheduleWriter&) = delete;
  ScheduleWriter& operator=(const ScheduleWriter&) = delete;

  void remove(std::uint32_t slot, std::uint32_t first);
  void import_pages(const ScheduledImport& import);
  void batch(std::span<const BatchToken> tokens);
  void choice(const ScheduledChoice& choice);
  // What was told since the last time is in the file.
  void end_step();

 private:
  void put(std::initializer_list<std::uint32_t> words) { words_.insert(words_.end(), words); }
  int fd_;
  std::vector<std::uint32_t> words_;
};

// Front to back: next() says of what kind the record is, and then that one is read.
class ScheduleReader {
 public:
  // Throws std::runtime_error: it cannot be read.
  explicit ScheduleReader(const std::string& path);

  std::optional<ScheduleRecord> next();
  void remove(std::uint32_t& slot, std::uint32_t& first);
  ScheduledImport import_pages();
  std::vector<BatchToken> batch();
  ScheduledChoice choice();

 private:
  std::uint32_t word();  // throws std::runtime_error at the end
  std::vector<std::uint32_t> words_;
  std::size_t at_ = 0;
};

}  // namespace kvtrie::engine
