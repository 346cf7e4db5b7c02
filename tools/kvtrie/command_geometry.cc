// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_geometry.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "shm/shared_object.h"
#include "tools/kvtrie/known_models.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

constexpr std::uint32_t kFirstMetricsPort = 9464;  // kvtried's own, and one more for each further cache
constexpr std::size_t kCacheNameMax = 40;

// What stops a plan, with the exit code it gives.
struct Refused {
  Exit code;
  std::string text;
};

// A name that a cache may have, out of a model's.
std::string cache_name_of(const std::string& model) {
  std::string name;
  for (const char c : model.substr(0, kCacheNameMax)) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '-' || c == '_';
    name += plain ? static_cast<char>(std::tolower(static_cast<unsigned char>(c))) : '-';
  }
  return cache_name_problem(name).empty() ? name : "model";
}

std::uint64_t bytes_of(const Geometry& geometry) {
  return layout_of(geometry).segment_bytes + geometry.planes * pool_bytes(geometry);
}

// The most pages whose pools and segment fit; 0: not even the fewest do.
std::uint64_t pages_for(Geometry geometry, std::uint64_t memory_bytes) {
  std::uint64_t fits = 0;
  std::uint64_t low = kPagesMin;
  std::uint64_t high = kPagesMax;
  while (low <= high) {
    geometry.pages = low + (high - low) / 2;
    const bool enough = geometry_problem(geometry).empty() && bytes_of(geometry) <= memory_bytes;
    if (enough) {
      fits = geometry.pages;
      low = geometry.pages + 1;
    } else {
      high = geometry.pages - 1;
    }
  }
  return fits;
}

std::string command_of(const CachePlan& plan, std::size_t index) {
  const Geometry& g = plan.geometry;
  std::string text = fmt::format("kvtried --cache {} --pages {} --tokens-per-page {} --page-bytes {}", plan.cache,
                                 g.pages, g.tokens_per_page, g.page_bytes);
  if (g.planes != 1) text += fmt::format(" --planes {}", g.planes);
  if (index != 0) text += fmt::format(" --metrics 127.0.0.1:{}", kFirstMetricsPort + index);
  return text;
}

class Planner {
 public:
  explicit Planner(const GeometryOptions& options) : options_(options) {
    const auto kind = gguf::element_kind(options.dtype);
    if (!kind) {
      throw Refused{Exit::kUsage, fmt::format("--dtype '{}': there are {}", options.dtype, gguf::element_kind_names(", "))};
    }
    kind_ = *kind;
    report_.options = options;
  }

  GeometryReport run() {
    for (const std::string& name : options_.models) add_known(name);
    for (const std::string& file : options_.files) add_file(file);
    if (options_.layers != 0) add("model", "given", gguf::uniform_shape("model", options_.layers, options_.by_hand));
    report_.list = report_.models.empty();
    if (report_.list) {
      for (const KnownModel& model : known_models()) add(model.name, source_of(model), model.shape());
    } else {
      plan_all();
    }
    return std::move(report_);
  }

 private:
  static std::string source_of(const KnownModel& model) {
    return std::string("https://huggingface.co/") + model.repository;
  }

  void add_known(const std::string& name) {
    const KnownModel* model = find_known_model(name);
    if (model == nullptr) {
      throw Refused{Exit::kNotFound,
                    fmt::format("model '{}' is not known; `kvtrie geometry` lists those that are, --gguf reads a file, "
                                "--layers, --kv-heads and --head-dim give a shape by hand",
                                name)};
    }
    add(model->name, source_of(*model), model->shape());
  }

  void add_file(const std::string& path) {
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    if (!std::filesystem::exists(status)) throw Refused{Exit::kNotFound, fmt::format("--gguf '{}': no such file", path)};
    std::ifstream stream;
    if (std::filesystem::is_regular_file(status)) stream.open(path, std::ios::binary);  // a pipe would wait for ever
    if (!stream.is_open()) throw Refused{Exit::kRefused, fmt::format("--gguf '{}': not a file that may be read", path)};
    try {
      gguf::KvShape shape = gguf::shape_from(gguf::Metadata::read(stream));
      shape.name = printable(shape.name.c_str(), shape.name.size());
      std::string name = shape.name;
      add(std::move(name), path, std::move(shape));
    } catch (const gguf::FormatError& problem) {
      throw Refused{Exit::kCorrupt, fmt::format("--gguf '{}': {}", path, problem.what())};
    }
  }

  void add(std::string name, std::string source, gguf::KvShape shape) {
    ModelGeometry model{std::move(name), std::move(source), std::move(shape), 0, 0, {}, {}};
    const gguf::PageBytes page = gguf::page_bytes_of(model.shape, kind_, options_.tokens_per_page, options_.planes);
    model.page_bytes = page.bytes;
    model.bytes_per_token = page.bytes * options_.planes / options_.tokens_per_page;
    model.problem = page.problem;
    report_.models.push_back(std::move(model));
  }

  void plan_all() {
    const std::uint64_t share = options_.memory_bytes / report_.models.size();
    for (std::size_t i = 0; i < report_.models.size(); ++i) {
      ModelGeometry& model = report_.models[i];
      if (!model.problem.empty()) throw Refused{Exit::kUsage, fmt::format("{}: {}", model.name, model.problem)};
      model.plan = plan(model, share, i);
    }
  }

  CachePlan plan(const ModelGeometry& model, std::uint64_t memory_bytes, std::size_t index) const {
    CachePlan plan;
    plan.cache = cache_name_of(model.name);
    for (std::size_t other = 0; other < index; ++other) {
      if (report_.models[other].plan->cache == plan.cache) plan.cache += fmt::format("-{}", index + 1);
    }
    plan.geometry.tokens_per_page = options_.tokens_per_page;
    plan.geometry.page_bytes = model.page_bytes;
    plan.geometry.planes = options_.planes;
    plan.geometry.pages = kPagesMin;
    if (const std::string problem = geometry_problem(plan.geometry); !problem.empty()) {
      throw Refused{Exit::kUsage, fmt::format("{}: {}", model.name, problem)};
    }
    const std::uint64_t pages = pages_for(plan.geometry, memory_bytes);
    if (pages == 0) {
      throw Refused{Exit::kUsage,
                    fmt::format("{}: {} is too little memory: the smallest cache ({} pages of {}) needs {}; give more "
                                "with --memory",
                                model.name, bytes_text(memory_bytes), kPagesMin, bytes_text(model.page_bytes),
                                bytes_text(bytes_of(plan.geometry)))};
    }
    plan.geometry.pages = pages;
    plan.segment_bytes = layout_of(plan.geometry).segment_bytes;
    plan.pool_bytes_each = pool_bytes(plan.geometry);
    plan.command = command_of(plan, index);
    return plan;
  }

  const GeometryOptions& options_;
  gguf::ElementKind kind_{};
  GeometryReport report_;
};

void add_shape_options(CLI::App& command, GeometryOptions& options) {
  command.add_option("--model", options.models, "A known model; several are several caches")->type_name("NAME");
  command.add_option("--gguf", options.files, "A model's GGUF file; several are several caches")->type_name("FILE");
  CLI::Option* layers = command.add_option("--layers", options.layers, "A shape by hand: layers that keep KV")
                            ->check(CLI::Range(1U, gguf::kLayersMax))
                            ->type_name("N");
  CLI::Option* heads = command.add_option("--kv-heads", options.by_hand.kv_heads, "... KV heads of a layer")
                           ->check(CLI::Range(1U, gguf::kHeadsMax))
                           ->type_name("N");
  CLI::Option* length = command.add_option("--head-dim", options.by_hand.key_length, "... elements of a head's key")
                            ->check(CLI::Range(1U, gguf::kHeadLengthMax))
                            ->type_name("N");
  CLI::Option* value =
      command.add_option("--value-dim", options.by_hand.value_length, "... of its value (as many as of the key)")
          ->check(CLI::Range(0U, gguf::kHeadLengthMax))
          ->type_name("N");
  layers->needs(heads)->needs(length);
  heads->needs(layers);
  length->needs(layers);
  value->needs(layers);
}

void add_size_options(CLI::App& command, GeometryOptions& options) {
  command.add_option("--dtype", options.dtype, "How elements are stored")
      ->type_name(gguf::element_kind_names("|"))
      ->capture_default_str();
  command.add_option("--tokens-per-page", options.tokens_per_page, "Tokens of a page")
      ->check(CLI::Range(1U, kTokensPerPageMax))
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--tp", options.planes, "Tensor-parallel ranks, each with a plane of its own")
      ->check(CLI::Range(1U, kPlanesMax))
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--memory", options.memory_bytes, "Memory for all of it, such as 64GiB (8GiB)")
      ->transform(CLI::AsSizeValue(false))
      ->type_name("BYTES");
}

}  // namespace

Command add_geometry_command(CLI::App& app) {
  const auto options = std::make_shared<GeometryOptions>();
  CLI::App* command = app.add_subcommand("geometry", "How large a model's pages are, and the kvtried to start for it");
  add_shape_options(*command, *options);
  add_size_options(*command, *options);
  command->footer(
      "Without a model it lists those that it knows. Examples:\n"
      "  kvtrie geometry --model llama-3.1-8b --memory 64GiB\n"
      "  kvtrie geometry --gguf model.gguf --dtype q8_0\n"
      "  kvtrie geometry --model qwen3-32b --tp 4 --memory 256GiB\n"
      "  kvtrie geometry --model llama-3.1-8b --model qwen3-8b --memory 64GiB   (two caches, half each)");
  return {command, [command, options](const Context& context) {
            try {
              if (options->layers != 0 && command->count("--value-dim") == 0) {
                options->by_hand.value_length = options->by_hand.key_length;
              }
              return render(Planner(*options).run(), context.json);
            } catch (const Refused& refused) {
              return failure(refused.code, refused.text, context.json);
            }
          }};
}

}  // namespace kvtrie::inspect
