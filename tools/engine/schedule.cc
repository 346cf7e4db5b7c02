// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/schedule.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <fstream>
#include <stdexcept>
#include <system_error>

namespace kvtrie::engine {
namespace {

constexpr std::uint32_t number(ScheduleRecord record) { return static_cast<std::uint32_t>(record); }

std::uint32_t count(std::size_t size) { return static_cast<std::uint32_t>(size); }

}  // namespace

ScheduleWriter::ScheduleWriter(const std::string& path)
    : fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600)) {
  if (fd_ < 0) throw std::system_error(errno, std::generic_category(), path);
}

ScheduleWriter::~ScheduleWriter() { ::close(fd_); }

void ScheduleWriter::remove(std::uint32_t slot, std::uint32_t first) {
  put({number(ScheduleRecord::kRemove), slot, first});
}

void ScheduleWriter::import_pages(const ScheduledImport& import) {
  put({number(ScheduleRecord::kImport), import.request, import.time_us, import.slot, import.first,
       count(import.tokens.size()), count(import.pages.size())});
  words_.insert(words_.end(), import.tokens.begin(), import.tokens.end());
  for (const ImportedPage& page : import.pages) {
    words_.push_back(page.page);
    words_.insert(words_.end(), page.sample.begin(), page.sample.end());
  }
}

void ScheduleWriter::batch(std::span<const BatchToken> tokens) {
  put({number(ScheduleRecord::kBatch), count(tokens.size())});
  for (const BatchToken& token : tokens)
    put({token.slot, token.position, token.token, token.wanted ? 1U : 0U});
}

void ScheduleWriter::choice(const ScheduledChoice& choice) {
  put({number(ScheduleRecord::kChoice), choice.request, choice.slot, choice.position, choice.index,
       count(choice.tokens.size())});
  for (const ChosenToken& chosen : choice.tokens)
    put({chosen.token, std::bit_cast<std::uint32_t>(chosen.logit)});
}

void ScheduleWriter::end_step() {
  const std::size_t bytes = words_.size() * sizeof words_[0];
  if (::write(fd_, words_.data(), bytes) != static_cast<ssize_t>(bytes))
    throw std::system_error(errno, std::generic_category(), "writing the schedule");
  words_.clear();
}

ScheduleReader::ScheduleReader(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  words_.resize(static_cast<std::size_t>(std::max<std::streamoff>(0, file.tellg())) / sizeof words_[0]);
  file.seekg(0);
  file.read(reinterpret_cast<char*>(words_.data()), static_cast<std::streamsize>(words_.size() * sizeof words_[0]));
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be read", path));
}

std::uint32_t ScheduleReader::word() {
  if (at_ == words_.size()) throw std::runtime_error("a schedule ends within a record");
  return words_[at_++];
}

std::optional<ScheduleRecord> ScheduleReader::next() {
  if (at_ == words_.size()) return {};
  return static_cast<ScheduleRecord>(word());
}

void ScheduleReader::remove(std::uint32_t& slot, std::uint32_t& first) {
  slot = word();
  first = word();
}

ScheduledImport ScheduleReader::import_pages() {
  ScheduledImport import;
  import.request = word();
  import.time_us = word();
  import.slot = word();
  import.first = word();
  import.tokens.resize(word());
  import.pages.resize(word());
  for (std::uint32_t& token : import.tokens)
    token = word();
  for (ImportedPage& page : import.pages) {
    page.page = word();
    for (std::uint32_t& sample : page.sample)
      sample = word();
  }
  return import;
}

std::vector<BatchToken> ScheduleReader::batch() {
  std::vector<BatchToken> tokens(word());
  for (BatchToken& token : tokens) {
    token.slot = word();
    token.position = word();
    token.token = word();
    token.wanted = word() != 0;
  }
  return tokens;
}

ScheduledChoice ScheduleReader::choice() {
  ScheduledChoice choice;
  choice.request = word();
  choice.slot = word();
  choice.position = word();
  choice.index = word();
  choice.tokens.resize(word());
  for (ChosenToken& chosen : choice.tokens) {
    chosen.token = word();
    chosen.logit = std::bit_cast<float>(word());
  }
  return choice;
}

}  // namespace kvtrie::engine
