// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Debug dumps: what an engine is about to compute, or has computed, with the pages that it reads, as one directory that
// people, numpy and `kvtrie diff-dumps` read. docs/dumps.md has its format.
//
//   const Dumper dumper(options);                        off without a directory
//   ...
//   if (dumper.wants(request_tag)) {                     free when it is off: one load
//     dumper.write({.moment = "before", ...});           gathers statistics, writes files: slow
//   }
//
// Dumps hold prompts and KV: directories are made for the owner alone (0700, files 0600).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dump/page_layout.h"

namespace kvtrie::dump {

struct DumpOptions {
  std::string directory{};                  // that dumps are made in; empty: no dumps
  bool raw = false;                         // with the bytes of every part, as .npy
  bool after = false;                       // after a computation, too
  bool only_asked = false;                  // of requests for which the engine asks by call
  std::optional<std::uint32_t> only_tag{};  // of one request, by its tag
  std::uint64_t dumps_max = 1000;           // of this process; then no more
};

// "DIR[,raw][,after][,tag=N][,asked][,max=N]", as programs take it from a flag or their
// environment. `error` says what is wrong.
std::optional<DumpOptions> parse_dump_options(std::string_view text, std::string& error);

struct DumpedRequest {
  std::string id{};  // the engine's own name for it
  std::uint32_t tag = 0;
  std::string name_space{};  // fields, as text
  std::span<const std::uint32_t> tokens{};
  std::uint64_t cached_tokens = 0;                    // at its begin
  std::span<const std::uint32_t> page_table{};  // page of each position; KVTRIE_NO_PAGE where there is none
};

// What one computation does: tokens [first_token, first_token + token_count) of a request.
struct DumpedBatchEntry {
  std::uint64_t request = 0;  // index into Dump::requests
  std::string kind{};         // "prefill", "decode", ...
  std::uint64_t first_token = 0;
  std::uint64_t token_count = 0;
};

struct DumpedPage {
  std::uint64_t request = 0;  // index into Dump::requests
  std::uint32_t position = 0;
  std::uint32_t page = 0;
  std::uint32_t plane = 0;
  std::string state{};  // "cached", "private", "announced", ...
  std::span<const std::byte> bytes{};
  std::vector<Part> parts{};  // empty: one raw part
};

struct Dump {
  std::string moment{};  // "before", "after"; part of the directory's name
  std::string engine{};
  std::vector<DumpedRequest> requests{};
  std::vector<DumpedBatchEntry> batch{};
  std::vector<DumpedPage> pages{};
};

struct WrittenDump {
  std::string directory;  // of this dump: it is there whole, or not at all
  std::string error;      // not empty: why there is none
};

// Thread-safe.
class Dumper {
 public:
  Dumper() = default;  // off
  explicit Dumper(DumpOptions options) : options_(std::move(options)), on_(!options_.directory.empty()) {}
  Dumper(const Dumper&) = delete;
  Dumper& operator=(const Dumper&) = delete;

  // Whether dumps are on at all.
  bool on() const noexcept { return on_; }
  // ... and of a request with this tag. `asked`: the engine wants those of this request, whatever its tag.
  bool wants(std::uint32_t request_tag, bool asked = false) const noexcept {
    if (!on_ || next_.load(std::memory_order_relaxed) >= options_.dumps_max) return false;
    return asked || (!options_.only_asked && (!options_.only_tag || *options_.only_tag == request_tag));
  }
  const DumpOptions& options() const noexcept { return options_; }

  // DIRECTORY/PID-NUMBER-MOMENT, whatever wants() says. Never throws. What `dump` names must stay as it is meanwhile.
  WrittenDump write(const Dump& dump) noexcept;

 private:
  DumpOptions options_;
  bool on_ = false;
  std::atomic<std::uint64_t> next_{0};
};

}  // namespace kvtrie::dump
