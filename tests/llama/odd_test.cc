// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Programs that do what few programs do (odd_engine.cc), with the preload library: the same comes out of them, and what
// others find is right.

#include "tests/llama/llama_process.h"

namespace kvtrie::test {
namespace {

class LlamaOddTest : public PreloadedTest {
 protected:
  std::string odd(const std::string& mode, const std::string& more = "", const std::string& model = "") const {
    return std::string(KVTRIE_TEST_ODD_ENGINE) + " " + mode + " " + (model.empty() ? this->model() : model) + " " +
           back_end_library() + " " + more;
  }
  // It says the same with the library as without.
  Ran same(const std::string& command, const std::string& more = "") const {
    const Ran alone = run(command);
    EXPECT_EQ(alone.code, 0) << command << alone.err;
    const Ran shared = run(command, preloaded(more));
    EXPECT_EQ(shared.code, alone.code) << command;
    EXPECT_EQ(shared.out, alone.out) << command << shared.err;
    return shared;
  }
};

TEST_F(LlamaOddTest, IsWithoutWeightsOrHasFewOutputs) {
  serve(16);
  EXPECT_NE(same(odd("without_weights")).err.find("without weights"), std::string::npos);
  EXPECT_EQ(same(odd("few_outputs")).err, "");
  EXPECT_EQ(report()[0]["pages_published"], 12);
}

TEST_F(LlamaOddTest, ChangesWhatItHas) {
  serve(16);
  EXPECT_EQ(same(odd("edit")).err, "");
  EXPECT_EQ(report()[0]["pages_published"], 6 + 290 / 16 - 5);
  EXPECT_EQ(same(odd("shifted_copy"), "KVTRIE_TENANT=b").code, 0);
  EXPECT_EQ(same(odd("reader"), "KVTRIE_TENANT=b").err, "");  // what was moved would be wrong here
}

TEST_F(LlamaOddTest, HasOtherFactorsForLongContexts) {
  const std::string longer = cache_.directory() + "/long.gguf";
  ASSERT_EQ(run(odd("add_long_factors", longer)).code, 0);
  serve(16);
  const std::string small = same(odd("context_of", "512", longer)).out;
  EXPECT_NE(same(odd("context_of", "1024", longer)).out, small);
  EXPECT_EQ(report()[0]["tokens_imported"], 0);
  (void)same(odd("context_of", "2048", longer));
  EXPECT_EQ(report()[0]["tokens_imported"], 192);
  EXPECT_NE(same(odd("own_caches", "", longer), "KVTRIE_LLAMA_UNIFY=1").err.find("other factors"), std::string::npos);
}

TEST_F(LlamaOddTest, LosesItsModelFile) {
  serve(16);
  const std::string replaced = cache_.directory() + "/replaced.gguf";
  const std::string second = cache_.directory() + "/second.gguf";
  std::filesystem::copy_file(model(), replaced);
  ASSERT_EQ(run(program("kvtrie-make-model") + " --seed 2 " + second).code, 0);
  const Ran ran = run(odd("model_replaced", second, replaced), preloaded());
  EXPECT_EQ(ran.out, run(odd("model_replaced", "", model())).out);
  EXPECT_NE(ran.err.find("changed or replaced"), std::string::npos) << ran.err;
  EXPECT_EQ(same(odd("elsewhere", cache_.directory())).err, "");
  EXPECT_EQ(report()[0]["pages_published"], 12);
}

TEST_F(LlamaOddTest, UsesIdsThatItDidNotAskFor) {
  serve(16);
  for (const char* kind : {"unified", "own"}) {
    const Ran ran = same(odd("ids_beyond", kind));
    EXPECT_NE(ran.err.find("n_seq_max"), std::string::npos) << ran.err;
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  }
}

TEST_F(LlamaOddTest, StopsSharingAndSaysSo) {
  serve(16);
  for (const auto& [mode, words] : {std::pair{"hidden_states", "hidden state"}, {"not_causal", "not causal"}}) {
    EXPECT_NE(same(odd(mode)).err.find(words), std::string::npos) << mode;
    EXPECT_EQ(report()[0]["pages_published"], 0);
  }
  EXPECT_EQ(same(odd("warmed_up")).err, "");
  EXPECT_EQ(report()[0]["pages_published"], 12);  // of the last prompt alone
  EXPECT_NE(run(odd("none"), preloaded()).err.find("no call"), std::string::npos);
}

TEST_F(LlamaOddTest, HasAChild) {
  serve(16);
  const Ran ran = run(odd("with_a_child"), preloaded());
  EXPECT_NE(ran.out.find("pid " + std::to_string(whole_report()["pid"].get<int>()) + "\n"), std::string::npos) << ran.out;
}

// 65 tokens behind a hit of 16, in parts of 64: the last one alone would go through other kernels.
TEST_F(LlamaOddTest, LeavesNoTokenAlone) {
  serve(16);
  (void)same(odd("parts", "18"));
  (void)same(odd("parts", "81"));
  EXPECT_EQ(report()[0]["tokens_imported"], 15);
}

TEST_F(LlamaOddTest, HasNoMemory) {
  serve(16);
  const Ran alone = run(odd("no_memory"));
  for (const char* wait : {"KVTRIE_LLAMA_WAIT=never", "KVTRIE_LLAMA_WAIT=auto"}) {
    EXPECT_EQ(run(odd("no_memory"), preloaded(wait)).out, alone.out);
    unsigned stopped = 0;
    for (const Json& context : report())
      stopped += context.contains("reason") ? 1 : 0;
    EXPECT_GT(stopped, 10U);
    EXPECT_LT(stopped, report().size());  // there are no more allocations
  }
}

}  // namespace
}  // namespace kvtrie::test
