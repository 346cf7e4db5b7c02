// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a hit costs where each page's bytes are compared with their checksum (kvtried --page-checksums), beside a hit in a
// cache without.

#include <fmt/format.h>

#include <memory>
#include <stdexcept>

#include "tools/bench/sections.h"
#include "tools/bench/workload.h"

namespace kvtrie::bench {
namespace {

constexpr std::uint32_t kLength = 256;  // pages of a prompt

}  // namespace

void run_checksums(const Settings& settings, Report& report) {
  for (const std::uint64_t page_bytes : {std::uint64_t{2} << 10, std::uint64_t{64} << 10}) {
    const std::uint64_t pages = settings.quick ? 1U << 12 : 1U << 14;
    const BenchCache with(settings, {.pages = pages, .page_bytes = page_bytes, .page_checksums = true});
    const BenchCache without(settings, {.pages = pages, .page_bytes = page_bytes});
    const auto hits = [&](const BenchCache& cache) {
      return [worker = std::make_shared<BenchWorker>(settings, cache.own(), cache.model()),
              prompts = cache.prompts(kLength, 16)] {
        const double ns = time_ns([&] {
          for (const Prompt& prompt : prompts) {
            if (worker->begin_and_release(prompt.tokens) != kLength) throw std::runtime_error("not a full hit");
          }
        });
        return ns / static_cast<double>(prompts.size() * kLength);
      };
    };
    const Rounds rounds = alternate(settings.rounds, {hits(with), hits(without)});
    report.add({"full hit, bytes compared", fmt::format("pages of {} KiB, prompt of {}", page_bytes >> 10, kLength),
                spread_of(rounds[0]), "ns/page", "without", ratio_of(rounds[0], rounds[1])});
  }
}

}  // namespace kvtrie::bench
