// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/llama/llama_process.h"

namespace kvtrie::test {
namespace {

class LlamaPreloadTest : public PreloadedTest {
 protected:
  std::string plain() const {
    return std::string(KVTRIE_TEST_PLAIN_ENGINE) + " " + model() + " " + back_end_library();
  }
};

TEST_F(LlamaPreloadTest, AnUnmodifiedProgramSaysTheSameAndComputesLess) {
  serve(16);
  const Ran alone = run(plain());
  ASSERT_EQ(alone.code, 0) << alone.err;
  const Ran first = run(plain(), preloaded());
  EXPECT_EQ(first.code, 0);
  EXPECT_TRUE(same_output(first, alone, plain()));
  EXPECT_EQ(first.err, "");
  const Json cold = report();
  const Ran second = run(plain(), preloaded());
  EXPECT_TRUE(same_output(second, alone, plain()));
  const Json warm = report();
  ASSERT_EQ(warm.size(), 2U);
  for (const Json& context : warm) {
    EXPECT_EQ(context["sharing"], true);
    EXPECT_GT(context["pages_imported"], 0);
    EXPECT_EQ(context["tokens_given"].get<int>() - context["tokens_seen"].get<int>(), context["tokens_imported"]);
    for (const char* failure : {"import_failures", "layout_failures", "export_failures", "other_failures"}) {
      EXPECT_EQ(context[failure], 0) << context.dump();
    }
  }
  EXPECT_GT(cold[0]["tokens_seen"], warm[0]["tokens_seen"].get<int>() * 2);
  EXPECT_GT(warm[0]["diverged"], 0);  // context shift, a state from elsewhere
}

// Those who wait get pages as they fill; and what comes out is what comes out of llama.cpp's own parts.
TEST_F(LlamaPreloadTest, ComputesABatchInThePartsThatLlamaCppMakes) {
  serve(16);
  const std::string program = plain() + " small_parts";
  const Ran alone = run(program);
  ASSERT_EQ(alone.code, 0) << alone.err;
  const auto same = [&](const std::string& more) {
    return same_output(run(program, preloaded(more)), alone, program, more);
  };
  EXPECT_TRUE(same("KVTRIE_LLAMA_WAIT=never"));
  EXPECT_EQ(report()[0]["batches_ahead"], 0);
  EXPECT_TRUE(same("KVTRIE_TENANT=b"));  // which finds nothing
  EXPECT_GT(report()[0]["batches_ahead"], 10);
  EXPECT_TRUE(same("KVTRIE_TENANT=b"));
  EXPECT_GT(report()[0]["pages_imported"], 0);
  EXPECT_NE(run(program, preloaded("KVTRIE_LLAMA_WAIT=perhaps")).err.find("perhaps"), std::string::npos);
}

TEST_F(LlamaPreloadTest, IsOffWithoutItsVariable) {
  serve(16);
  const Ran alone = run(plain());
  const Ran off = run(plain(), "KVTRIE_LLAMA_REPORT=" + report_path() + " LD_PRELOAD=" KVTRIE_TEST_PRELOAD);
  EXPECT_EQ(off.code, 0);
  EXPECT_EQ(off.out, alone.out);
  EXPECT_EQ(off.err, "");
  EXPECT_FALSE(std::filesystem::exists(report_path()));
  EXPECT_EQ(run("/bin/echo hello", preloaded()).out, "hello\n");  // a program without llama.cpp
}

TEST_F(LlamaPreloadTest, WhatItCannotShareItPassesThroughAndSaysSoOnce) {
  const Ran alone = run(plain());
  const Ran nobody = run(plain(), preloaded());  // no kvtried serves the cache
  EXPECT_EQ(nobody.code, 0);
  EXPECT_EQ(nobody.out, alone.out);
  EXPECT_NE(nobody.err.find("not shared"), std::string::npos) << nobody.err;
  EXPECT_EQ(std::count(nobody.err.begin(), nobody.err.end(), '\n'), 1) << nobody.err;
  EXPECT_EQ(report()[0]["sharing"], false);

  serve(16, 64, 256);
  const Ran small = run(plain(), preloaded());
  EXPECT_EQ(small.out, alone.out);
  EXPECT_NE(small.err.find("--page-bytes " + std::to_string(page_bytes(16))), std::string::npos) << small.err;
}

TEST_F(LlamaPreloadTest, CachesOfSequencesBecomeOneOnlyWhereThatIsAllowed) {
  serve(16);
  const Ran alone = run(plain() + " own_caches");
  ASSERT_EQ(alone.code, 0) << alone.err;
  const Ran kept = run(plain() + " own_caches", preloaded());
  EXPECT_EQ(kept.out, alone.out);
  EXPECT_NE(kept.err.find("kv_unified"), std::string::npos) << kept.err;
  EXPECT_EQ(report()[0]["tokens_seen"], 400);
  const Ran unified = run(plain() + " own_caches", preloaded("KVTRIE_LLAMA_UNIFY=1"));
  EXPECT_TRUE(same_output(unified, alone, plain() + " own_caches", "KVTRIE_LLAMA_UNIFY=1"));
  EXPECT_EQ(unified.err, "");
  EXPECT_EQ(report()[0]["tokens_seen"], 208);  // of the second sequence those behind its 12 whole pages
}

}  // namespace
}  // namespace kvtrie::test
