// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>

#include "dump/dumper.h"

namespace kvtrie::engine {
namespace {

const std::map<std::string, WaitMode> kWaitModes = {
    {"auto", WaitMode::kAuto}, {"wait", WaitMode::kWait}, {"compute", WaitMode::kCompute}};
const std::map<std::string, Sabotage> kSabotages = {{"none", Sabotage::kNone},
                                                    {"publish-early", Sabotage::kPublishEarly},
                                                    {"half-write", Sabotage::kHalfWrite},
                                                    {"foreign-page", Sabotage::kForeignPage},
                                                    {"wrong-page", Sabotage::kWrongPage}};
const std::map<std::string, EngineKind> kEngines = {{"hash", EngineKind::kHash}, {"llama", EngineKind::kLlama}};
constexpr std::uint32_t kLlamaInFlightMax = 32;  // with their beams, what a llama_context has of sequence ids

void add_options(CLI::App& app, EngineOptions& options) {
  RunSettings& run = options.run;
  app.add_option("--requests", options.requests, "Requests (2000)")->check(CLI::Range(1U, 1'000'000U));
  app.add_option("--workers", options.workers, "Engine processes (4)")->check(CLI::Range(1U, 32U));
  app.add_option("--in-flight", run.in_flight, "Requests that a worker has taken at a time (8)")
      ->check(CLI::Range(1U, 64U));
  app.add_option("--batch", run.batch, "Requests of one prepare_batch, at most (4)")->check(CLI::Range(1U, 64U));
  app.add_option("--chunk", run.chunk, "Tokens that a step prefills, at most (128)")->check(CLI::Range(1U, 1U << 20));
  app.add_option("--seed", run.seed, "Of requests, model and faults (1)");
  app.add_option("--fail", run.fail_percent, "Percent of the requests that fail once, at a stage each (5)")
      ->check(CLI::Range(0U, 100U));
  app.add_option("--kill", run.kills, "Workers killed by SIGKILL, at a stage of a request each (0)");
  app.add_option("--wait-policy", run.wait, "Pages that another process computes: auto, wait, compute (auto)")
      ->transform(CLI::CheckedTransformer(kWaitModes));
  app.add_option("--prefill-us", run.prefill_token_us, "Time that a prefill takes for each token, in us (0)")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--same-prompt", run.same_tokens,
                 "All workers get one new prompt of so many tokens at once, again and again; "
                 "--requests are "
                 "prompts times workers")
      ->check(CLI::Range(1U, 1U << 20));
  app.add_flag("--kill-owner", run.kill_owner, "With --same-prompt: who computes it is killed half-way");
  app.add_option("--slow-worker", run.slow_worker,
                 "Worker 0 prefills so many times slower; of --same-prompt it begins first (1)")
      ->check(CLI::Range(1U, 1000U));
  app.add_option("--pages", options.pages, "Pages of the pool (256)");
  app.add_option("--tokens-per-page", options.tokens_per_page, "Tokens of a page (16)")->check(CLI::Range(1U, 1024U));
  app.add_option("--page-bytes", options.page_bytes, "Bytes of a page (512)");
  app.add_option("--stall-s", options.stall_s, "Fails when nothing goes on for so many seconds (30)");
  app.add_option("--sabotage", run.sabotage,
                 "A fault of the engine, to see that it is found: publish-early, half-write, "
                 "foreign-page; of llama: "
                 "wrong-page")
      ->transform(CLI::CheckedTransformer(kSabotages));
  app.add_option("--engine", run.engine, "What computes: hash, llama (hash)")
      ->transform(CLI::CheckedTransformer(kEngines));
  app.add_option("--model", options.model, "Of llama: a GGUF file")->type_name("FILE");
  app.add_option("--back-end", options.back_end, "... CPU back end: x64, haswell, ... (the best one for this CPU)")
      ->type_name("NAME");
  app.add_option("--logit-bound", options.logit_bound,
                 "... a logit, or a token chosen other than without the cache, is wrong when it is "
                 "further off (0.01)")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--page-bound", options.page_bound,
                 "... a page is wrong when so much of it is other than without the cache (0.05)")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--alone", options.alone, "... answers compared with the request alone, only to see (20)");
  app.add_option("--dump", options.dump,
                 "Debug dumps of the engines' steps: DIR[,raw][,after][,tag=N][,max=N], where a request's tag is its "
                 "number; see docs/dumps.md (none)")
      ->type_name("OPTIONS");
  app.add_option("--artifacts", options.artifacts,
                 "Below it goes what a run that is wrong leaves behind (a folder for temporary files)")
      ->envname("KVTRIE_ARTIFACTS")
      ->type_name("DIR");
  app.add_option("--json", options.json, "Write the results here")->type_name("FILE");
}

std::string problem_of(const EngineOptions& options) {
  const bool llama = options.run.engine == EngineKind::kLlama;
  std::string wrong_dump;
  if (!options.dump.empty() && !dump::parse_dump_options(options.dump, wrong_dump)) return "--dump: " + wrong_dump;
  if (llama && options.model.empty()) return "--engine llama: with --model";
  if (llama && (options.run.same_tokens > 0 || options.run.slow_worker > 1 || options.run.prefill_token_us > 0))
    return "--engine llama: without --same-prompt, --slow-worker and --prefill-us";
  if (llama && options.run.in_flight > kLlamaInFlightMax)
    return fmt::format("--engine llama: --in-flight up to {}", kLlamaInFlightMax);
  if (!llama && options.run.sabotage == Sabotage::kWrongPage) return "--sabotage wrong-page: with --engine llama";
  const std::uint64_t bytes = std::uint64_t{8} * options.tokens_per_page;
  if (!llama && (options.page_bytes == 0 || options.page_bytes % bytes != 0)) {
    return fmt::format("--page-bytes: a multiple of {}: 8 bytes for each token", bytes);
  }
  const std::uint64_t longest = options.run.same_tokens > 0 ? options.run.same_tokens : kMixedPromptMax + kOutputMax;
  const std::uint64_t beams = options.run.same_tokens > 0 ? 1 : kBeamsMax;
  // All beams of a request at once, none of whose pages may be shared; and kvtried keeps some pages
  // free.
  const std::uint64_t needed = (longest / options.tokens_per_page + 2) * beams + 8;
  if (options.pages < needed) return fmt::format("--pages: the longest request needs {}", needed);
  if (options.run.kill_owner != 0 && (options.run.same_tokens == 0 || options.run.kills > 0)) {
    return "--kill-owner: with --same-prompt, and without --kill";
  }
  if (options.run.same_tokens > 0 && options.requests % options.workers != 0) {
    return "--same-prompt: --requests is a multiple of --workers";
  }
  if (options.run.kills > options.requests) return "--kill: more than there are requests";
  return {};
}

}  // namespace

std::optional<EngineOptions> parse_options(int argc, const char* const* argv, int& exit_code) {
  CLI::App app{"Engines with continuous batching on one small pool, whose every answer is compared.", "kvtrie-engine"};
  app.footer("exit codes: 0 all answers right and no page lost, 1 not so, 2 usage");
  app.set_version_flag("--version", KVTRIE_VERSION);
  EngineOptions options;
  options.run.seed = 1;
  options.run.in_flight = 8;
  options.run.batch = 4;
  options.run.chunk = 128;
  options.run.fail_percent = 5;
  options.run.slow_worker = 1;
  options.run.wait = WaitMode::kAuto;
  add_options(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    exit_code = app.exit(error) == 0 ? kExitOk : kExitUsage;
    return {};
  }
  if (app.count("--fail") == 0 && options.run.same_tokens > 0) options.run.fail_percent = 0;
  exit_code = kExitUsage;
  if (const std::string problem = problem_of(options); !problem.empty()) {
    fmt::print(stderr, "kvtrie-engine: {}\n", problem);
    return {};
  }
  exit_code = kExitOk;
  return options;
}

}  // namespace kvtrie::engine
