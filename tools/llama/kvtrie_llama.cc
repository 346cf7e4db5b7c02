// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <thread>

#include "tools/llama/engine.h"
#include "tools/warm/warm_memory.h"

namespace kvtrie::llama {
namespace {

constexpr int kExitUsage = 2;
constexpr std::chrono::milliseconds kWarmingUp{500};
constexpr int kExitRefused = 3;

struct Options {
  EngineOptions engine;
  std::string prompt;
  std::string prompt_file;
  std::vector<llama_token> tokens;
  std::size_t count = 16;
  std::uint32_t repeat = 1;
  std::uint32_t page_tokens = 0;
  bool json = false;
  bool no_cache = false;
  std::string wait = "auto";
  bool start_on_input = false;
  std::uint32_t keep_warm_ms = 0;
  std::string dump;
};

void add_options(CLI::App& app, Options& options) {
  EngineOptions& engine = options.engine;
  app.add_option("--model", engine.model, "GGUF file")->required()->type_name("FILE");
  app.add_option("--cache", engine.cache, "Cache to share prefixes through")->type_name("NAME");
  app.add_option("--dir", engine.directory, "Its directory, of kvtried --dir (the default one)")->type_name("DIR");
  app.add_flag("--no-cache", options.no_cache, "Share nothing, whatever --cache says");
  app.add_option("--tenant", engine.tenant, "Share among those of the same tenant only")->type_name("NAME");
  auto* const prompt = app.add_option("--prompt", options.prompt, "Text")->type_name("TEXT");
  auto* const file = app.add_option("--prompt-file", options.prompt_file, "Text in a file; - for standard input")
                         ->type_name("FILE")
                         ->excludes(prompt);
  app.add_option("--tokens", options.tokens, "Token ids instead of text, separated by commas")
      ->delimiter(',')
      ->type_name("IDS")
      ->excludes(prompt)
      ->excludes(file);
  app.add_option("-n,--count", options.count, "Tokens to generate, greedily (16)")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  app.add_option("--repeat", options.repeat, "Answer the prompt that many times (1)")->type_name("N");
  app.add_option("--context", engine.context, "Tokens that the context holds (4096)")->type_name("N");
  app.add_option("--batch", engine.batch, "Tokens computed at a time (512)")
      ->check(CLI::Range(2, 1 << 20))
      ->type_name("N");
  app.add_option("--threads", engine.threads, "Of the engine (1)")->check(CLI::Range(1, 1024))->type_name("N");
  app.add_option("--back-end", engine.back_end, "CPU back end: x64, haswell, icelake, ... (the best one for this CPU)")
      ->type_name("NAME");
  app.add_flag("--flash-attention", engine.flash_attention,
               "On; off by default, since with it a hit differs in last bits");
  app.add_option("--kv-type", engine.kv_type, "f16, f32, q8_0 (f16)")->check(CLI::IsMember({"f16", "f32", "q8_0"}));
  app.add_option("--hash-memory", engine.hash_memory, "Folder where hashes of model files are remembered (none)")
      ->type_name("DIR");
  app.add_option("--page-bytes", options.page_tokens,
                 "Only print the --page-bytes that kvtried needs for this model with TOKENS a page")
      ->type_name("TOKENS");
  app.add_option("--wait", options.wait,
                 "For what another process computes just now: never, always, or auto: while that is likely to cost "
                 "less than to compute it, too (auto)")
      ->check(CLI::IsMember({"never", "auto", "always"}));
  app.add_option("--wait-limit", engine.wait.limit_ms, "No wait is longer (120000)")->type_name("MS");
  app.add_option("--dump", options.dump,
                 "Write debug dumps before each llama_decode: DIR[,raw][,after][,tag=N][,asked][,max=N]; see "
                 "docs/dumps.md (none)")
      ->type_name("OPTIONS");
  app.add_flag("--ask-for-dumps", engine.ask_for_dumps, "Of this prompt, whatever tag= and asked say");
  app.add_option("--tag", engine.tag, "Request tag, in dumps and in `kvtrie workers --leases` (0)")->type_name("N");
  app.add_flag("--start-on-input", options.start_on_input,
               "Say `ready` on standard output when the model is loaded, begin with the next line of standard input");
  app.add_option("--keep-warm", options.keep_warm_ms,
                 "Read all of this process's memory so often, for measuring on a virtual machine whose host takes what is "
                 "idle (0: off)")
      ->type_name("MS");
  app.add_flag("--json", options.json, "Results as JSON, a line for each answer");
}

bool read_dump_options(Options& options) {
  std::string error;
  std::optional<dump::DumpOptions> dump = dump::parse_dump_options(options.dump, error);
  if (dump && options.engine.cache.empty()) error = "dumps are of pages: with --cache";
  if (!error.empty()) {
    fmt::print(stderr, "kvtrie-llama: --dump: {}\n", error);
    return false;
  }
  options.engine.dump = *std::move(dump);
  return true;
}

std::vector<llama_token> prompt_of(const Options& options, const Engine& engine) {
  if (!options.tokens.empty()) return options.tokens;
  std::string text = options.prompt;
  if (options.prompt_file == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
  } else if (!options.prompt_file.empty()) {
    std::ifstream file(options.prompt_file, std::ios::binary);
    if (!file) throw EngineError(fmt::format("{}: cannot be read", options.prompt_file));
    text.assign(std::istreambuf_iterator<char>(file), {});
  }
  if (text.empty()) throw EngineError("give --prompt, --prompt-file or --tokens");
  return engine.tokenize(text);
}

nlohmann::json to_json(const Answer& answer, const Engine& engine) {
  nlohmann::json out = {
      {"prompt_tokens", answer.prompt_tokens},
      {"cached_tokens", answer.cached_tokens},
      {"prefilled_tokens", answer.prompt_tokens - answer.cached_tokens},
      {"first_token_ms", answer.first_token_ms},
      {"decode_ms", answer.decode_ms},
      {"wait_ms", answer.wait_ms},
      {"total_ms", answer.total_ms},
      {"load_ms", engine.load_ms()},
      {"attach_ms", engine.attach_ms()},
      {"tokens", answer.tokens},
      {"text", engine.text(answer.tokens)},
      {"logits_hash", fmt::format("{:016x}", answer.logits_hash)},
  };
  if (const SharedContext* shared = engine.shared()) {
    for (const auto& [name, value] : list(shared->counters()))
      out["counters"][name] = value;
    if (!shared->last_failure().empty()) out["last_failure"] = shared->last_failure();
  }
  return out;
}

void print(const Answer& answer, const Engine& engine) {
  fmt::print("{}\n", engine.text(answer.tokens));
  fmt::print(
      stderr,
      "prompt {} tokens, {} of them cached; first token after {:.1f} ms, all {} after {:.1f} ms; logits {:016x}\n",
      answer.prompt_tokens, answer.cached_tokens, answer.first_token_ms, answer.tokens.size(), answer.total_ms,
      answer.logits_hash);
  if (const SharedContext* shared = engine.shared(); shared != nullptr && !shared->last_failure().empty()) {
    fmt::print(stderr, "last failure: {}\n", shared->last_failure());
  }
}

int run(int argc, const char* const* argv) {
  CLI::App app{"Answers a prompt with llama.cpp, with the prompt's cached beginning taken from kvtrie.",
               "kvtrie-llama"};
  app.footer("exit codes: 0 answered, 1 failed, 2 usage, 3 the cache cannot be used with this model");
  app.set_version_flag("--version", KVTRIE_VERSION);
  Options options;
  add_options(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? EXIT_SUCCESS : kExitUsage;
  }
  if (options.no_cache) options.engine.cache.clear();
  if (!options.dump.empty() && !read_dump_options(options)) return kExitUsage;
  options.engine.wait.mode = wait_mode(options.wait);
  try {
    Engine engine(options.engine);
    std::optional<KeepWarm> keep_warm;
    if (options.page_tokens != 0) {
      fmt::print("{}\n", engine.page_bytes(options.page_tokens));
      return EXIT_SUCCESS;
    }
    const std::vector<llama_token> prompt = prompt_of(options, engine);
    if (options.keep_warm_ms != 0) {
      keep_warm.emplace(std::chrono::milliseconds(options.keep_warm_ms));
      std::this_thread::sleep_for(kWarmingUp);
    }
    if (options.start_on_input) {
      fmt::print("ready\n");
      std::fflush(stdout);
      std::string line;
      std::getline(std::cin, line);
    }
    for (std::uint32_t i = 0; i < options.repeat; ++i) {
      const Answer answer = engine.answer(prompt, options.count);
      if (options.json) {
        // Pieces of a random model need not be UTF-8.
        fmt::print("{}\n", to_json(answer, engine).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
        std::fflush(stdout);
      } else {
        print(answer, engine);
      }
    }
  } catch (const Refused& error) {
    fmt::print(stderr, "kvtrie-llama: {}\n", error.what());
    return kExitRefused;
  } catch (const EngineError& error) {
    fmt::print(stderr, "kvtrie-llama: {}\n", error.what());
    return EXIT_FAILURE;
  } catch (const std::system_error& error) {
    fmt::print(stderr, "kvtrie-llama: {}\n", error.what());
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace kvtrie::llama

int main(int argc, char** argv) { return kvtrie::llama::run(argc, argv); }
