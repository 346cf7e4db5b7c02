// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/page_state.h"

#include <cstring>
#include <vector>

namespace kvtrie::llama {
namespace {

// Front to back; behind the end it gives zeros and says so.
class Words {
 public:
  explicit Words(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::uint32_t next() {
    std::uint32_t word = 0;
    whole_ = whole_ && bytes_.size() - at_ >= sizeof word;
    if (whole_) std::memcpy(&word, bytes_.data() + at_, sizeof word);
    at_ += whole_ ? sizeof word : 0;
    return word;
  }
  bool whole() const { return whole_; }

 private:
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
  bool whole_ = true;
};

}  // namespace

std::string read_shape(std::span<const std::byte> one_token, std::size_t bytes_of_two, StateShape& shape) {
  Words words(one_token);
  shape.magic = words.next();
  (void)words.next();  // the sequence
  if (words.next() != 1) return "its KV cache is not unified";
  if (words.next() != 1) return "a state of one token does not have one cell";
  const bool one_sequence = words.next() == 0 && words.next() == 1;
  (void)words.next();  // the sequence
  shape.v_transposed = words.next();
  shape.layers = words.next();
  if (!words.whole() || !one_sequence || shape.v_transposed > 1 || shape.layers == 0) {
    return "its KV state has a layout that is not known";
  }
  if (bytes_of_two <= one_token.size()) return "its KV state does not grow with its tokens";
  shape.bytes_of_one = one_token.size();
  shape.bytes_of_more = bytes_of_two - one_token.size();
  return {};
}

bool state_fits(std::span<const std::byte> state, const StateShape& shape, std::int32_t position, std::uint32_t tokens) {
  if (state.size() < shape.bytes(tokens)) return false;
  Words words(state);
  if (words.next() != shape.magic) return false;
  (void)words.next();
  if (words.next() != 1 || words.next() != tokens) return false;
  std::vector<bool> seen(tokens);  // cells stand as they lie in the cache, which need not be the order of their positions
  for (std::uint32_t i = 0; i < tokens; ++i) {
    const std::uint32_t place = words.next() - static_cast<std::uint32_t>(position);
    if (place >= tokens || seen[place] || words.next() != 1) return false;
    seen[place] = true;
    (void)words.next();
  }
  return words.next() == shape.v_transposed && words.next() == shape.layers && words.whole();
}

}  // namespace kvtrie::llama
