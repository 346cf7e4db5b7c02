// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <string>

#include "tools/llama/random_model.h"

namespace kvtrie::llama {
namespace {

constexpr int kExitUsage = 2;

std::string preset_names() {
  std::string names;
  for (const Preset& preset : presets())
    names += (names.empty() ? "" : ", ") + std::string(preset.name);
  return names;
}

const Preset& preset_of(const std::string& name) {
  for (const Preset& preset : presets()) {
    if (preset.name == name) return preset;
  }
  throw CLI::ValidationError("--preset", "one of " + preset_names());
}

int run(int argc, const char* const* argv) {
  CLI::App app{"Writes a GGUF model with random weights and a real vocabulary.", "kvtrie-make-model"};
  app.set_version_flag("--version", KVTRIE_VERSION);
  RandomModelOptions options;
  std::string preset = "2m";
  std::string type = "f16";
  ModelShape shape{.layers = 0, .width = 0, .heads = 0, .kv_heads = 0, .feed_forward = 0, .context = 0};
  options.vocabulary = KVTRIE_LLAMA_MODELS "/ggml-vocab-llama-spm.gguf";
  app.add_option("output", options.output, "The file to write")->required()->type_name("FILE");
  app.add_option("--preset", preset, "Size: " + preset_names() + " (2m)")->type_name("NAME");
  app.add_option("--layers", shape.layers, "Instead of the preset's")->type_name("N");
  app.add_option("--width", shape.width, "... elements of a token's state")->type_name("N");
  app.add_option("--heads", shape.heads, "... attention heads")->type_name("N");
  app.add_option("--kv-heads", shape.kv_heads, "... heads of keys and values (as --heads, where that is given)")
      ->type_name("N");
  app.add_option("--feed-forward", shape.feed_forward,
                 "... elements inside the feed-forward (3 x --width, where given)")
      ->type_name("N");
  app.add_option("--context", shape.context, "... tokens that it says it was trained for")->type_name("N");
  app.add_option("--type", type, "Of the weights: f16, f32 (f16)")->check(CLI::IsMember({"f16", "f32"}));
  app.add_option("--seed", options.seed, "Of the weights (1)")->type_name("N");
  app.add_option("--name", options.name, "general.name in the file (the preset's)")->type_name("NAME");
  app.add_option("--vocabulary", options.vocabulary, "GGUF file with a tokenizer (llama-spm of llama.cpp)")
      ->type_name("FILE");
  try {
    app.parse(argc, argv);
    options.shape = preset_of(preset).shape;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? EXIT_SUCCESS : kExitUsage;
  }
  ModelShape& result = options.shape;
  if (shape.layers != 0) result.layers = shape.layers;
  if (shape.width != 0) {
    result.width = shape.width;
    result.feed_forward = 3 * shape.width;
  }
  if (shape.heads != 0) result.heads = result.kv_heads = shape.heads;
  if (shape.kv_heads != 0) result.kv_heads = shape.kv_heads;
  if (shape.feed_forward != 0) result.feed_forward = shape.feed_forward;
  if (shape.context != 0) result.context = shape.context;
  options.type = type == "f32" ? WeightType::kF32 : WeightType::kF16;
  if (options.name.empty()) options.name = "random-" + preset;
  try {
    const std::uint64_t parameters = write_random_model(options);
    fmt::print("{}: {:.1f} M parameters, {} layers x {}\n", options.output, static_cast<double>(parameters) / 1e6,
               result.layers, result.width);
  } catch (const RandomModelError& error) {
    fmt::print(stderr, "kvtrie-make-model: {}\n", error.what());
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace kvtrie::llama

int main(int argc, char** argv) { return kvtrie::llama::run(argc, argv); }
