// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A request trace: JSON lines, one request each, for example
//
//   {"timestamp": 27482, "input_length": 700, "output_length": 52, "hash_ids": [46, 2353]}
//
// timestamp      ms since the start of the trace, never decreasing
// input_length   tokens of the prompt
// output_length  tokens of the answer
// hash_ids       one id per block of 512 prompt tokens, the last one rounded up to a whole block.
//                An id stands for the whole prefix up to the end of its block, so an id always has
//                the same predecessors. The reader does not ask for that (a replay is right without
//                it); find_prefix_violation() checks it.
//
// The reader is strict: a key that is missing or of another type, a count of ids that does not fit
// input_length (as in a trace made with another block size), or a blank line that is not at the end
// is an error with its line. Other keys are ignored. All numbers are integers; ids have 64 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace kvtrie::replay {

inline constexpr std::size_t kBlockTokens = 512;

struct Request {
  std::uint64_t timestamp_ms = 0;
  std::uint32_t input_length = 0;
  std::uint32_t output_length = 0;
  std::vector<std::uint64_t> hash_ids;

  friend bool operator==(const Request&, const Request&) = default;
};

inline constexpr std::size_t kNoLimit = std::numeric_limits<std::size_t>::max();

struct TraceResult {
  std::vector<Request> requests;
  std::string error;  // empty: all is well; else what is wrong, where, and what is expected

  [[nodiscard]] bool ok() const { return error.empty(); }
};

// Reads up to `limit` requests; lines after them are not looked at. After an error `requests` holds
// those that were read before it. `name` stands in messages.
[[nodiscard]] TraceResult read_trace(std::istream& input, const std::string& name,
                                     std::size_t limit = kNoLimit);
[[nodiscard]] TraceResult read_trace_file(const std::string& path, std::size_t limit = kNoLimit);

// Writes what read_trace() reads.
void write_trace(std::ostream& output, std::span<const Request> requests);

// Empty when every id has one and the same predecessor (or none) wherever it occurs; else says
// which request and id break this.
[[nodiscard]] std::string find_prefix_violation(std::span<const Request> requests);

// Tokens of the prompt, with the last block rounded up.
[[nodiscard]] constexpr std::uint64_t prompt_tokens(const Request& request) {
  return static_cast<std::uint64_t>(request.hash_ids.size()) * kBlockTokens;
}

// Pages that a request holds at its end: prompt and answer.
[[nodiscard]] constexpr std::uint64_t pages_needed(const Request& request,
                                                   std::uint32_t tokens_per_page) {
  return (prompt_tokens(request) + request.output_length + tokens_per_page - 1) / tokens_per_page;
}

// Pages of the prompt that are full: those that are looked up and published.
[[nodiscard]] constexpr std::uint64_t pages_of_prompt(const Request& request,
                                                      std::uint32_t tokens_per_page) {
  return prompt_tokens(request) / tokens_per_page;
}

// Blocks of the prompt that lie wholly in its first `pages_hit` pages.
[[nodiscard]] constexpr std::uint64_t blocks_in_pages(std::uint64_t pages_hit,
                                                      std::uint32_t tokens_per_page) {
  return pages_hit * tokens_per_page / kBlockTokens;
}

// The namespace (0 .. namespaces-1) of the request at `index` of a trace: the same whichever worker
// serves it, and spread so that one prefix is asked for in several namespaces.
[[nodiscard]] std::uint32_t namespace_of_request(std::size_t index, std::uint32_t namespaces);

}  // namespace kvtrie::replay
