// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/page_state.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "worker_plugin/streaming_copy.h"

namespace kvtrie::llama {
namespace {

constexpr std::size_t kFixedBytes = 6 * sizeof(std::uint32_t);  // before and behind the cells
constexpr std::size_t kCellBytes = 3 * sizeof(std::uint32_t);
constexpr std::uint32_t kNone = UINT32_MAX;

std::size_t head_bytes(std::size_t cells) { return kFixedBytes + cells * kCellBytes; }

// Front to back; behind the end it gives zeros and says so.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}
  std::uint32_t word() { return number<std::uint32_t>(); }
  std::uint64_t long_word() { return number<std::uint64_t>(); }
  void skip(std::size_t bytes) {
    whole_ = whole_ && bytes <= left_.size();
    left_ = whole_ ? left_.subspan(bytes) : std::span<const std::byte>();
  }
  const std::byte* at() const { return left_.data(); }
  std::size_t left() const { return left_.size(); }
  bool whole() const { return whole_; }

 private:
  template <typename T>
  T number() {
    T value = 0;
    const std::byte* const from = at();
    skip(sizeof value);
    if (whole_) std::memcpy(&value, from, sizeof value);
    return value;
  }
  std::span<const std::byte> left_;
  bool whole_ = true;
};

// Rows of V are short and many: sizes that the compiler knows are several times as fast.
void copy_rows(std::byte* to, std::size_t to_stride, const std::byte* from, std::size_t from_stride, std::size_t rows,
               std::size_t bytes) {
  const auto all = [&](auto copy) {
    for (std::size_t row = 0; row < rows; ++row)
      copy(to + row * to_stride, from + row * from_stride);
  };
  switch (bytes) {
    case 16:
      all([](std::byte* a, const std::byte* b) { std::memcpy(a, b, 16); });
      break;
    case 32:
      all([](std::byte* a, const std::byte* b) { std::memcpy(a, b, 32); });
      break;
    case 64:
      all([](std::byte* a, const std::byte* b) { std::memcpy(a, b, 64); });
      break;
    case 128:
      all([](std::byte* a, const std::byte* b) { std::memcpy(a, b, 128); });
      break;
    default:
      all([bytes](std::byte* a, const std::byte* b) { std::memcpy(a, b, bytes); });
  }
}

// `rows` of a state of all pages, `bytes` of a row for each page: to places[i] + offset, one row behind the other. Pages
// are written in pieces of some KiB and past the caches, since nobody here reads them again.
void scatter_rows(std::span<std::byte* const> places, std::size_t offset, const std::byte* from, std::size_t rows,
                  std::size_t bytes) {
  StreamingCopy copy;
  std::array<std::byte, 32768> block;  // fits into a core's first cache
  const std::size_t stride = places.size() * bytes;
  if (rows == 1 || stride > block.size()) {
    for (std::size_t i = 0; i < places.size(); ++i)
      for (std::size_t row = 0; row < rows; ++row)
        copy.add(places[i] + offset + row * bytes, from + row * stride + i * bytes, bytes);
    return;
  }
  for (std::size_t row = 0, count = 0; row < rows; row += count, from += count * stride) {
    count = std::min(block.size() / stride, rows - row);
    for (std::size_t i = 0; i < places.size(); ++i) {
      std::byte* const piece = block.data() + i * count * bytes;
      copy_rows(piece, bytes, from + i * bytes, stride, count, bytes);
      copy.add(places[i] + offset + row * bytes, piece, count * bytes);
    }
  }
}

}  // namespace

std::string StateShape::read(std::span<const std::byte> one_token) {
  Reader reader(one_token);
  sections_.clear();
  magic_ = reader.word();
  reader.skip(4);
  if (reader.word() != 1) return "its KV cache is not unified";
  if (reader.word() != 1 || reader.word() != 0 || reader.word() != 1)
    return "its KV state has cells that are not known";
  reader.skip(4);
  v_transposed_ = reader.word();
  layers_ = reader.word();
  if (!reader.whole() || v_transposed_ > 1 || layers_ == 0) return "its KV state has a layout that is not known";
  while (reader.whole() && reader.left() > 0) {
    StateSection section;
    if (reader.left() >= section.header.size()) std::memcpy(section.header.data(), reader.at(), section.header.size());
    reader.skip(4);  // type
    if (sections_.size() < layers_ || v_transposed_ == 0) {
      section.cell_bytes = static_cast<std::uint32_t>(reader.long_word());
    } else {
      section.cell_bytes = reader.word();
      section.rows = reader.word();
    }
    reader.skip(std::size_t{section.rows} * section.cell_bytes);
    sections_.push_back(section);
  }
  const bool good = reader.whole() && sections_.size() >= layers_ && sections_.size() <= 2 * std::size_t{layers_} &&
                    bytes(1) == one_token.size() && fits(one_token, 0, 1);
  return good ? "" : "its KV state has layers that are not known";
}

std::size_t StateShape::bytes(std::size_t cells) const {
  std::size_t all = head_bytes(cells);
  for (const StateSection& section : sections_)
    all += section.header.size() + section.rows * cells * section.cell_bytes;
  return all;
}

// Which cell has which position: [position - first]. Empty: not each of them once, or another beginning.
std::vector<std::uint32_t> StateShape::cells_of(std::span<const std::byte> state, std::int32_t first,
                                                std::size_t count) const {
  if (state.size() != bytes(count)) return {};
  Reader reader(state);
  if (reader.word() != magic_) return {};
  reader.skip(4);
  if (reader.word() != 1 || reader.word() != count) return {};
  std::vector<std::uint32_t> cells(count, kNone);
  for (std::uint32_t cell = 0; cell < count; ++cell) {
    const std::uint32_t place = reader.word() - static_cast<std::uint32_t>(first);
    if (place >= count || cells[place] != kNone || reader.word() != 1) return {};
    cells[place] = cell;
    reader.skip(4);
  }
  if (reader.word() != v_transposed_ || reader.word() != layers_) return {};
  for (const StateSection& section : sections_) {
    if (std::memcmp(reader.at(), section.header.data(), section.header.size()) != 0) return {};
    reader.skip(section.header.size() + section.rows * count * section.cell_bytes);
  }
  return cells;
}

bool StateShape::fits(std::span<const std::byte> state, std::int32_t first, std::uint32_t tokens) const {
  const std::vector<std::uint32_t> cells = cells_of(state, first, tokens);
  return !cells.empty() && std::ranges::is_sorted(cells);
}

void StateShape::clear_ids(std::span<std::byte> state, std::uint32_t tokens) {
  std::memset(state.data() + sizeof(std::uint32_t), 0, sizeof(std::int32_t));
  std::byte* cell = state.data() + 4 * sizeof(std::uint32_t);
  for (std::uint32_t i = 0; i < tokens; ++i, cell += kCellBytes)
    std::memset(cell + 2 * sizeof(std::uint32_t), 0, sizeof(std::int32_t));
}

std::byte* StateShape::write_head(std::byte* at, std::int32_t first, std::size_t cells) const {
  const auto put = [&at](std::uint32_t word) {
    std::memcpy(at, &word, sizeof word);
    at += sizeof word;
  };
  put(magic_);
  put(0);
  put(1);
  put(static_cast<std::uint32_t>(cells));
  for (std::uint32_t cell = 0; cell < cells; ++cell) {
    put(static_cast<std::uint32_t>(first) + cell);
    put(1);
    put(0);
  }
  put(v_transposed_);
  put(layers_);
  return at;
}

bool StateShape::split(std::span<const std::byte> state, std::int32_t first, std::uint32_t tokens,
                       std::span<std::byte* const> pages) const {
  const std::size_t count = pages.size() * tokens;
  const std::vector<std::uint32_t> cells = cells_of(state, first, count);
  if (cells.empty()) return false;
  for (std::size_t i = 0; i < pages.size(); ++i)
    (void)write_head(pages[i], first + static_cast<std::int32_t>(i * tokens), tokens);
  const bool in_order = std::ranges::is_sorted(cells);  // each once: they are 0, 1, ...
  const std::byte* from = state.data() + head_bytes(count);
  std::size_t offset = head_bytes(tokens);
  // All pages of a section before the next: what a row's cache lines hold is for several pages.
  for (const StateSection& section : sections_) {
    const std::size_t cell = section.cell_bytes;
    from += section.header.size();
    for (std::byte* const page : pages)
      std::memcpy(page + offset, section.header.data(), section.header.size());
    offset += section.header.size();
    if (in_order) scatter_rows(pages, offset, from, section.rows, tokens * cell);
    for (std::size_t i = 0; !in_order && i < pages.size(); ++i) {
      std::byte* const to = pages[i] + offset;
      for (std::uint32_t token = 0; token < tokens; ++token) {
        const std::size_t own = cells[i * tokens + token];
        copy_rows(to + token * cell, tokens * cell, from + own * cell, count * cell, section.rows, cell);
      }
    }
    offset += section.rows * tokens * cell;
    from += section.rows * count * cell;
  }
  return true;
}

void StateShape::gather(std::span<const std::byte* const> pages, std::int32_t first, std::uint32_t tokens,
                        std::int32_t from, std::size_t count, std::span<std::byte> state) const {
  std::byte* to = write_head(state.data(), from, count);
  std::size_t offset = head_bytes(tokens);
  const auto skipped = static_cast<std::size_t>(from - first);
  for (const StateSection& section : sections_) {
    const std::size_t cell = section.cell_bytes;
    std::memcpy(to, section.header.data(), section.header.size());
    to += section.header.size();
    offset += section.header.size();
    std::size_t done = 0;
    for (std::size_t i = skipped / tokens; done < count; ++i) {
      const std::size_t begin = (skipped + done) % tokens;
      const std::size_t part = std::min(tokens - begin, count - done);
      copy_rows(to + done * cell, count * cell, pages[i] + offset + begin * cell, tokens * cell, section.rows,
                part * cell);
      done += part;
    }
    to += section.rows * count * cell;
    offset += section.rows * tokens * cell;
  }
}

}  // namespace kvtrie::llama
