// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A program on llama.cpp that knows nothing of kvtrie and uses its sequences in every way that the preload library
// follows. A line for each step: its name, the token that came out, and a hash of its logits. With and without the
// library they are the same.
//   plain_engine MODEL BACK_END_LIBRARY [own_caches|small_parts]
#include <ggml-backend.h>
#include <llama.h>

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/llama/words.h"

namespace {

constexpr std::int32_t kBatch = 256;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "plain_engine: %s\n", what);
  std::exit(1);
}

struct Engine {
  llama_model* model = nullptr;
  llama_context* context = nullptr;
  llama_memory_t memory = nullptr;
  llama_batch batch{};
  std::size_t vocabulary = 0;

  void add(llama_token token, llama_pos position, llama_seq_id sequence, bool output) {
    const auto i = batch.n_tokens++;
    batch.token[i] = token;
    batch.pos[i] = position;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = sequence;
    batch.logits[i] = output ? 1 : 0;
  }
  void run() {
    if (llama_decode(context, batch) != 0) fail("llama_decode");
  }
  llama_token say(const char* step, const float* logits) const {
    if (logits == nullptr) fail("no logits");
    const auto token = static_cast<llama_token>(std::max_element(logits, logits + vocabulary) - logits);
    std::printf("%s %d %016" PRIx64 "\n", step, token, XXH3_64bits(logits, vocabulary * sizeof *logits));
    return token;
  }
  // In batches, from `position` on; the last token's output, by its index in its batch.
  llama_token prefill(const char* step, const Tokens& tokens, llama_pos position, llama_seq_id sequence) {
    std::int32_t last = 0;
    for (std::size_t done = 0; done < tokens.size();) {
      batch.n_tokens = 0;
      const std::size_t end = std::min(tokens.size(), done + kBatch);
      for (; done < end; ++done) {
        add(tokens[done], position + static_cast<llama_pos>(done), sequence, done + 1 == tokens.size());
      }
      last = batch.n_tokens - 1;
      run();
    }
    return say(step, llama_get_logits_ith(context, last));
  }
  void generate(const char* step, llama_token token, llama_pos position, llama_seq_id sequence, int count) {
    for (int i = 0; i < count; ++i) {
      batch.n_tokens = 0;
      add(token, position + i, sequence, true);
      run();
      token = say(step, llama_get_logits_ith(context, 0));
    }
  }
};

void one_conversation(Engine& engine) {
  const Tokens system = words(1, 300);
  llama_token token = engine.prefill("system", system, 0, 0);
  engine.generate("answer", token, 300, 0, 20);
  engine.prefill("next_turn", words(2, 50), 320, 0);
  // Another answer to the same prompt.
  (void)llama_memory_seq_rm(engine.memory, 0, 300, -1);
  token = engine.prefill("other_turn", words(3, 50), 300, 0);
  engine.generate("other_answer", token, 350, 0, 3);
  // From the beginning again.
  llama_memory_clear(engine.memory, true);
  engine.prefill("again", system, 0, 0);
  (void)llama_memory_seq_rm(engine.memory, -1, -1, -1);
}

void outputs_in_the_middle(Engine& engine) {
  engine.batch.n_tokens = 0;
  const Tokens tokens = words(1, 200);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    engine.add(tokens[i], static_cast<llama_pos>(i), 0, i == 120 || i + 1 == tokens.size());
  }
  engine.run();
  engine.say("middle", llama_get_logits_ith(engine.context, 120));
  engine.say("end", llama_get_logits_ith(engine.context, 199));
  engine.say("last", llama_get_logits_ith(engine.context, -1));
  engine.say("first_row", llama_get_logits(engine.context));
  llama_sampler* const greedy = llama_sampler_init_greedy();
  std::printf("sampled %d\n", llama_sampler_sample(greedy, engine.context, 120));
  llama_sampler_free(greedy);
  llama_memory_clear(engine.memory, true);
}

// llama.cpp gives positions, the sequence and the output.
void simplest_batch(Engine& engine) {
  Tokens tokens = words(1, 150);
  if (llama_decode(engine.context, llama_batch_get_one(tokens.data(), 150)) != 0) fail("llama_decode");
  engine.say("simplest", llama_get_logits_ith(engine.context, -1));
  llama_memory_clear(engine.memory, true);
}

void context_shift(Engine& engine) {
  engine.prefill("before_shift", words(4, 240), 0, 0);
  (void)llama_memory_seq_rm(engine.memory, 0, 64, 128);
  llama_memory_seq_add(engine.memory, 0, 128, -1, -64);
  engine.prefill("after_shift", words(5, 100), 176, 0);
  // Only what stands before the shift is as it was.
  (void)llama_memory_seq_rm(engine.memory, 0, 64, -1);
  engine.prefill("behind_shift", words(6, 100), 64, 0);
  llama_memory_clear(engine.memory, true);
}

// What is computed behind a hole must not be taken for what stands behind the whole.
void hole(Engine& engine) {
  engine.prefill("before_hole", words(12, 240), 0, 0);
  (void)llama_memory_seq_rm(engine.memory, 0, 64, 128);
  engine.prefill("behind_hole", words(13, 100), 240, 0);
  llama_memory_clear(engine.memory, true);
  const Tokens whole = joined(words(12, 240), words(13, 100));
  engine.prefill("no_hole", whole, 0, 0);
  llama_memory_clear(engine.memory, true);
}

void state_from_elsewhere(Engine& engine) {
  engine.prefill("saved", words(7, 100), 0, 0);
  std::vector<std::uint8_t> state(llama_state_seq_get_size(engine.context, 0));
  if (llama_state_seq_get_data(engine.context, state.data(), state.size(), 0) == 0) fail("get state");
  (void)llama_memory_seq_rm(engine.memory, 0, -1, -1);
  if (llama_state_seq_set_data(engine.context, state.data(), state.size(), 0) == 0) fail("set state");
  engine.prefill("loaded", words(8, 60), 100, 0);
  // Over something of the same length, which it must not be taken for.
  llama_memory_clear(engine.memory, true);
  engine.prefill("replaced", words(14, 100), 0, 0);
  if (llama_state_seq_set_data(engine.context, state.data(), state.size(), 0) == 0) fail("set state");
  engine.prefill("behind_loaded", words(15, 60), 100, 0);
  llama_memory_clear(engine.memory, true);
  const Tokens whole = joined(words(14, 100), words(15, 60));
  engine.prefill("not_loaded", whole, 0, 0);
  llama_memory_clear(engine.memory, true);
}

// Tokens alone: where cells lie differs when some come from the cache, and so do last bits.
void two_sequences(Engine& engine) {
  const Tokens common = words(1, 100);
  const Tokens a = joined(common, words(9, 30));
  const Tokens b = joined(common, words(10, 40));
  engine.batch.n_tokens = 0;
  std::int32_t last_of_a = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    if (i < a.size()) {
      last_of_a = engine.batch.n_tokens;
      engine.add(a[i], static_cast<llama_pos>(i), 0, i + 1 == a.size());
    }
    engine.add(b[i], static_cast<llama_pos>(i), 1, i + 1 == b.size());
  }
  engine.run();
  const auto token = [&](std::int32_t i) {
    const float* const logits = llama_get_logits_ith(engine.context, i);
    return static_cast<int>(std::max_element(logits, logits + engine.vocabulary) - logits);
  };
  std::printf("two %d %d\n", token(last_of_a), token(engine.batch.n_tokens - 1));
  // The second goes on from the first.
  (void)llama_memory_seq_rm(engine.memory, 1, -1, -1);
  llama_memory_seq_cp(engine.memory, 0, 1, -1, -1);
  engine.batch.n_tokens = 0;
  for (std::size_t i = 0; i < 20; ++i)
    engine.add(words(11, 20)[i], static_cast<llama_pos>(130 + i), 1, i == 19);
  engine.run();
  std::printf("copied %d sequences %u\n", token(19), llama_n_seq_max(engine.context));
  llama_memory_seq_keep(engine.memory, 1);
  llama_memory_clear(engine.memory, true);
}

// Sequences with KV caches of their own; tokens alone, as above.
void own_caches(Engine& engine) {
  for (llama_seq_id sequence = 0; sequence < 2; ++sequence) {
    engine.batch.n_tokens = 0;
    const Tokens tokens = words(1, 200);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      engine.add(tokens[i], static_cast<llama_pos>(i), sequence, i + 1 == tokens.size());
    }
    engine.run();
    const float* const logits = llama_get_logits_ith(engine.context, 199);
    std::printf("own %d\n", static_cast<int>(std::max_element(logits, logits + engine.vocabulary) - logits));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) fail("usage: plain_engine MODEL BACK_END_LIBRARY [own_caches|small_parts]");
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  if (ggml_backend_load(argv[2]) == nullptr) fail("no such back end");
  Engine engine;
  engine.model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (engine.model == nullptr) fail("no such model");
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 1024;
  const std::string more = argc > 3 ? argv[3] : "";
  params.n_batch = params.n_ubatch = 512;
  if (more == "small_parts") params.n_ubatch = 64;
  params.n_threads = params.n_threads_batch = 1;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  const auto with_context = [&](std::uint32_t sequences, auto... steps) {
    params.n_seq_max = sequences;
    params.kv_unified = sequences > 1 && more != "own_caches";
    engine.context = llama_init_from_model(engine.model, params);
    if (engine.context == nullptr) fail("no context");
    engine.memory = llama_get_memory(engine.context);
    engine.batch = llama_batch_init(512, 0, 1);
    engine.vocabulary = static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(engine.model)));
    (steps(engine), ...);
    llama_batch_free(engine.batch);
    llama_free(engine.context);
  };
  if (more == "own_caches") {
    with_context(2, own_caches);
  } else {
    with_context(1, one_conversation, outputs_in_the_middle, simplest_batch, context_shift, hole, state_from_elsewhere);
    with_context(2, two_sequences);
  }
  llama_model_free(engine.model);
  return 0;
}
