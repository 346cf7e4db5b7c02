// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie geometry`: how large the pages of a model are, how many fit into memory, and the kvtried that serves them. It
// looks at no cache. Several models are several caches: a cache has one size of page.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "shm/geometry.h"
#include "tools/gguf/kv_shape.h"
#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"

namespace kvtrie::inspect {

struct GeometryOptions {
  std::vector<std::string> models;  // names of known_models.h
  std::vector<std::string> files;   // GGUF
  std::uint32_t layers = 0;         // 0: no shape is given by hand
  gguf::LayerShape by_hand;
  std::string dtype = "f16";
  std::uint32_t tokens_per_page = 16;
  std::uint32_t planes = 1;
  std::uint64_t memory_bytes = std::uint64_t{8} << 30;  // of all models together
};

// The cache of one model.
struct CachePlan {
  std::string cache;   // a name for it
  Geometry geometry;   // what kvtried is told; the rest is its default
  std::uint64_t segment_bytes = 0;
  std::uint64_t pool_bytes_each = 0;  // of one plane
  std::string command;                // that starts its coordinator
};

struct ModelGeometry {
  std::string name;
  std::string source;  // file, repository of its config.json, or "given"
  gguf::KvShape shape;
  std::uint64_t page_bytes = 0;    // in one plane; 0: `problem` says why
  std::uint64_t bytes_per_token = 0;  // in all planes
  std::string problem;
  std::optional<CachePlan> plan;  // of a model that was asked for
};

struct GeometryReport {
  GeometryOptions options;
  bool list = false;  // no model was asked for: all known ones
  std::vector<ModelGeometry> models;
};

Command add_geometry_command(CLI::App& app);

std::string to_text(const GeometryReport& report);
Json to_json(const GeometryReport& report);

}  // namespace kvtrie::inspect
