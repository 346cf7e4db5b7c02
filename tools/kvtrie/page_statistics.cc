// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/page_statistics.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "dump/dump_json.h"
#include "shm/page_table.h"
#include "tools/kvtrie/pools.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

// Lines "key=value", as they stand in the namespace's record.
std::string fields_of(const Segment& segment, PageIndex page) {
  const NamespaceId id = namespace_in(segment.descriptor(page).scope.load(std::memory_order_acquire));
  if (id.value >= segment.namespace_count()) return {};
  const NamespaceRecord& record = segment.name_space(id);
  const std::size_t bytes = record.fields_bytes.load(std::memory_order_relaxed);
  return {record.fields, std::min(bytes, sizeof record.fields)};
}

// A digit a bin: 0 for none, 1 to 9 for up to the fullest.
std::string histogram_text(const dump::Statistics& all) {
  const std::uint64_t most = *std::ranges::max_element(all.histogram);
  std::string text;
  for (const std::uint64_t count : all.histogram) {
    text += static_cast<char>('0' + (count == 0 ? 0 : std::max<std::uint64_t>(1, count * 9 / most)));
  }
  return text;
}

}  // namespace

PageStatistics gather_statistics(const Segment& segment, PageIndex page, const PlaneBytes& bytes,
                                 std::optional<dump::DType> dtype) {
  PageStatistics statistics;
  const auto word = [&] { return segment.descriptor(page).state.load(std::memory_order_acquire); };
  const std::uint64_t before = word();
  const std::string fields = fields_of(segment, page);
  std::vector<std::byte> read(bytes.page_bytes());
  for (std::uint32_t plane = 0; plane < bytes.planes(); ++plane) {
    if (const Status status = bytes.read(page, plane, 0, read); !status) {
      statistics.problem = in_words(fmt::format("page {} in plane {}", page.value, plane), status);
      return statistics;
    }
    std::vector<PartStatistics>& parts = statistics.planes.emplace_back();
    for (dump::Part& part : dtype ? dump::whole_page(read.size(), *dtype) : dump::parts_of_page(fields, read)) {
      const auto of_part = std::span<const std::byte>(read).subspan(part.offset, part.bytes());
      const dump::Statistics all = dump::statistics_of(of_part, part.dtype);
      parts.push_back({std::move(part), all});
    }
  }
  statistics.changed = word() != before;
  return statistics;
}

std::string to_text(const PageStatistics& statistics) {
  using enum Table::Align;
  Table table;
  for (const char* title : {"plane", "part", "dtype", "shape"}) table.column(title, kLeft);
  for (const char* title : {"NaN", "Inf", "min", "max", "mean", "deviation"}) table.column(title, kRight);
  table.column("min to max", kLeft);
  for (std::size_t plane = 0; plane < statistics.planes.size(); ++plane) {
    for (const PartStatistics& row : statistics.planes[plane]) {
      const dump::Part& part = row.part;
      const dump::Statistics& all = row.all;
      const auto number = [&](double value) { return all.finite() == 0 ? "-" : fmt::format("{:.6g}", value); };
      const std::string shape = fmt::format("{}", fmt::join(part.shape, "x"));
      table.row({std::to_string(plane), part.name, dump::name_of(part.dtype), shape,
                 grouped(all.nan), grouped(all.inf), number(all.min), number(all.max), number(all.mean),
                 number(all.standard_deviation), histogram_text(all)});
    }
  }
  std::string text = "\n" + table.text();
  if (statistics.changed) text += "The page changed while it was read: its bytes may be of two lives.\n";
  return text;
}

Json to_json(const PageStatistics& statistics) {
  Json json;
  json["changed_while_read"] = statistics.changed;
  Json& planes = json["planes"] = Json::array();
  for (std::size_t plane = 0; plane < statistics.planes.size(); ++plane) {
    Json parts = Json::array();
    for (const auto& [part, all] : statistics.planes[plane]) parts.push_back(dump::to_json(part, all));
    planes.push_back({{"plane", plane}, {"parts", std::move(parts)}});
  }
  return json;
}

}  // namespace kvtrie::inspect
