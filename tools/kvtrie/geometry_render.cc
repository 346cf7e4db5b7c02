// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How a GeometryReport looks, as text and as JSON (docs/kvtrie-json.md).

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/kvtrie/command_geometry.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

constexpr const char* kSeveralModels =
    "Several models are several caches: a cache has one size of page. Each has its coordinator, with a --cache and a\n"
    "--metrics port of its own; a worker attaches to the cache of its model.\n";

// Neighbouring layers that are alike.
struct LayerRun {
  std::uint64_t layers = 0;
  gguf::LayerShape shape;
};

std::vector<LayerRun> runs_of(const gguf::KvShape& shape) {
  std::vector<LayerRun> runs;
  for (const gguf::LayerShape& layer : shape.layers) {
    if (runs.empty() || runs.back().shape != layer) runs.push_back({0, layer});
    ++runs.back().layers;
  }
  return runs;
}

std::string shape_text(const gguf::KvShape& shape) {
  constexpr std::size_t kRunsShown = 4;
  const std::vector<LayerRun> runs = runs_of(shape);
  std::string text;
  for (std::size_t i = 0; i < std::min(kRunsShown, runs.size()); ++i) {
    const auto& [layers, layer] = runs[i];
    text += fmt::format("{}{} x {} KV heads x ({} + {})", i == 0 ? "" : ", ", layers, layer.kv_heads, layer.key_length,
                        layer.value_length);
  }
  if (runs.size() > kRunsShown) text += fmt::format(", and {}", counted(runs.size() - kRunsShown, "more run"));
  return text;
}

std::string list_text(const GeometryReport& report) {
  using enum Table::Align;
  Table table;
  table.column("model", kLeft);
  table.column("layers x KV heads x (key + value)", kLeft);
  table.column("bytes a token", kRight);
  table.column(report.options.planes == 1 ? "page bytes" : "page bytes a plane", kRight);
  table.column("config.json of", kLeft);
  for (const ModelGeometry& model : report.models) {
    const bool possible = model.problem.empty();
    table.row({model.name, shape_text(model.shape), possible ? grouped(model.bytes_per_token) : "-",
               possible ? grouped(model.page_bytes) : model.problem, model.source});
  }
  return table.text() + fmt::format("{} tokens a page, {}, {}. --model NAME says what to start.\n",
                                    report.options.tokens_per_page, report.options.dtype,
                                    counted(report.options.planes, "plane"));
}

std::string model_text(const GeometryReport& report, const ModelGeometry& model) {
  const CachePlan& plan = *model.plan;
  const Geometry& g = plan.geometry;
  FieldLines lines;
  lines.add("model", fmt::format("{} ({})", model.name, model.source));
  lines.add("KV", fmt::format("{}, {}", shape_text(model.shape), report.options.dtype));
  lines.add("page", fmt::format("{} tokens, {} bytes ({}){}", g.tokens_per_page, g.page_bytes, bytes_text(g.page_bytes),
                                g.planes == 1 ? "" : fmt::format(" in each of {} planes", g.planes)));
  lines.add("token", fmt::format("{} bytes", grouped(model.bytes_per_token)));
  lines.add("pages", fmt::format("{}: {} tokens", grouped(g.pages), grouped(g.pages * g.tokens_per_page)));
  const std::uint64_t pools = plan.pool_bytes_each * g.planes;
  lines.add("memory", fmt::format("{} of pools, {} of segment ({})", bytes_text(pools), bytes_text(plan.segment_bytes),
                                  percent_text(static_cast<double>(plan.segment_bytes), static_cast<double>(pools))));
  for (const std::string& note : model.shape.notes) lines.add("note", note);
  lines.add("start", plan.command);
  return lines.text();
}

Json to_json(const ModelGeometry& model) {
  Json json;
  json["name"] = model.name;
  json["source"] = model.source;
  Json& layers = json["layers"] = Json::array();
  for (const auto& [count, shape] : runs_of(model.shape)) {
    layers.push_back({{"layers", count},
                      {"kv_heads", shape.kv_heads},
                      {"key_length", shape.key_length},
                      {"value_length", shape.value_length}});
  }
  json["bytes_per_token"] = model.problem.empty() ? Json(model.bytes_per_token) : Json(nullptr);
  json["page_bytes"] = model.problem.empty() ? Json(model.page_bytes) : Json(nullptr);
  json["problem"] = model.problem.empty() ? Json(nullptr) : Json(model.problem);
  json["notes"] = model.shape.notes;
  Json& plan = json["plan"] = nullptr;
  if (model.plan) {
    plan = {{"cache", model.plan->cache},
            {"pages", model.plan->geometry.pages},
            {"tokens", model.plan->geometry.pages * model.plan->geometry.tokens_per_page},
            {"segment_bytes", model.plan->segment_bytes},
            {"pool_bytes_each", model.plan->pool_bytes_each},
            {"command", model.plan->command}};
  }
  return json;
}

}  // namespace

std::string to_text(const GeometryReport& report) {
  if (report.list) return list_text(report);
  std::string text;
  for (const ModelGeometry& model : report.models) text += (text.empty() ? "" : "\n") + model_text(report, model);
  return report.models.size() > 1 ? text + "\n" + kSeveralModels : text;
}

Json to_json(const GeometryReport& report) {
  Json json;
  json["dtype"] = report.options.dtype;
  json["tokens_per_page"] = report.options.tokens_per_page;
  json["planes"] = report.options.planes;
  json["memory_bytes"] = report.list ? Json(nullptr) : Json(report.options.memory_bytes);
  Json& models = json["models"] = Json::array();
  for (const ModelGeometry& model : report.models) models.push_back(to_json(model));
  return json;
}

}  // namespace kvtrie::inspect
