// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/dumping_engine.h"

#include <algorithm>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace kvtrie::engine {

dump::DumpedPage dumped_page(std::string_view fields, const PageShape& shape, const std::byte* page,
                             std::uint32_t position, std::uint64_t end) {
  const std::uint64_t first = std::uint64_t{position} * shape.tokens_per_page;
  const std::uint64_t tokens = std::min<std::uint64_t>(shape.tokens_per_page, end - first);
  std::span<const std::byte> bytes(page, shape.page_bytes);
  dump::DumpedPage dumped;
  dumped.position = position;
  dumped.parts = dump::parts_of_page(fields, bytes);
  if (dumped.parts.size() > 1) {  // a state, which ends with its last part
    bytes = bytes.first(dumped.parts.back().offset + dumped.parts.back().bytes());
  } else {
    bytes = bytes.first(shape.page_bytes / shape.tokens_per_page * tokens);
    dumped.parts = dump::parts_of_page(fields, bytes);
  }
  dumped.bytes = bytes;
  return dumped;
}

DumpingEngine::DumpingEngine(std::unique_ptr<Engine> inner, const dump::DumpOptions& options, std::string engine,
                             std::string fields, const PageShape& shape)
    : inner_(std::move(inner)),
      dumper_(options),
      engine_(std::move(engine)),
      fields_(std::move(fields)),
      shape_(shape) {}

void DumpingEngine::step(std::span<Work> batch) {
  const bool wanted = std::ranges::any_of(batch, [this](const Work& work) { return dumper_.wants(work.request); });
  if (wanted) write("before", batch);
  inner_->step(batch);
  if (wanted && dumper_.options().after) write("after", batch);
}

void DumpingEngine::write(const char* moment, std::span<const Work> batch) {
  const bool after = std::string_view(moment) == "after";
  dump::Dump dump{.moment = moment, .engine = engine_, .requests = {}, .batch = {}, .pages = {}};
  for (const Work& work : batch) {
    const std::uint64_t index = dump.requests.size();
    dump.requests.push_back({.id = "request " + std::to_string(work.request),
                             .tag = work.request,
                             .name_space = fields_,
                             .tokens = work.tokens,
                             .cached_tokens = 0,
                             .page_table = work.page_ids});
    dump.batch.push_back({.request = index,
                          .kind = work.end - work.first == 1 && work.first > 0 ? "decode" : "prefill",
                          .first_token = work.first,
                          .token_count = work.end - work.first});
    const std::uint64_t end = after ? work.end : work.first;
    for (std::uint32_t position = 0; std::uint64_t{position} * shape_.tokens_per_page < end; ++position) {
      const bool written = std::uint64_t{position + 1} * shape_.tokens_per_page > work.first;
      dump::DumpedPage page = dumped_page(fields_, shape_, work.pages[position], position, end);
      page.request = index;
      page.page = work.page_ids[position];
      page.state = after && written ? "written" : "read";
      dump.pages.push_back(std::move(page));
    }
  }
  const dump::WrittenDump done = dumper_.write(dump);
  if (done.directory.empty()) throw std::runtime_error("a dump cannot be written: " + done.error);
}

}  // namespace kvtrie::engine
