// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Programs that do what few programs do (odd_engine.cc), with the preload library: the same comes out of them, and what
// others find is right.

#include <atomic>
#include <set>
#include <string_view>
#include <thread>

#include "tests/llama/llama_process.h"

namespace kvtrie::test {
namespace {

class LlamaOddTest : public PreloadedTest {
 protected:
  std::string odd(const std::string& mode, const std::string& more = "", const std::string& model = "") const {
    return std::string(KVTRIE_TEST_ODD_ENGINE) + " " + mode + " " + (model.empty() ? this->model() : model) + " " +
           back_end_library() + " " + more;
  }
  // `first` and, once go() was called, `second` go to its standard input; while_it_waits() runs in between.
  template <typename Between>
  void told(const std::string& size, const std::string& first, const std::string& second, Between while_it_waits) {
    const std::string out = cache_.directory() + "/told";
    const std::string go = cache_.directory() + "/go";
    std::filesystem::remove(out);
    std::filesystem::remove(go);
    const std::string alone = run("printf " + first + second + " | " + odd("told", size)).out;
    const std::string input =
        "(printf " + first + "; while ! test -e " + go + "; do sleep 0.02; done; printf " + second + ")";
    Ran ran;
    std::thread program([&] { ran = run(input + " | env " + preloaded() + " " + odd("told", size) + " >" + out); });
    const auto said = [&] {
      std::ifstream file(out);
      return std::string(std::istreambuf_iterator<char>(file), {});
    };
    EXPECT_TRUE(eventually([&] { return said().find('\n') != std::string::npos; }));
    while_it_waits();
    std::ofstream(go) << "go";
    program.join();
    EXPECT_EQ(ran.code, 0);
    EXPECT_EQ(said(), alone);
    told_ = ran.err;
  }
  std::string told_;
  // It says the same with the library as without.
  Ran same(const std::string& command, const std::string& more = "") const {
    const Ran alone = run(command);
    EXPECT_EQ(alone.code, 0) << command << alone.err;
    const Ran shared = run(command, preloaded(more));
    EXPECT_EQ(shared.code, alone.code) << command;
    EXPECT_TRUE(same_output(shared, alone, command, more)) << command;
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
  for (const auto& [mode, words] : {std::pair{"layer_inputs", "hidden state"}, {"sampler", "samples"}}) {
    const Ran ran = same(odd(mode));
    EXPECT_NE(ran.err.find(words), std::string::npos) << mode;
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
    // What came before is shared, be it others' or its own.
    const bool reads = mode == std::string_view("layer_inputs");
    EXPECT_EQ(report()[0]["pages_published"], reads ? 6 : 0);
    EXPECT_EQ(report()[0]["tokens_imported"], reads ? 0 : 192);
  }
  EXPECT_NE(same(odd("sampler_from_the_start")).err.find("samples"), std::string::npos);
  EXPECT_EQ(same(odd("warmed_up")).err, "");
  EXPECT_EQ(report()[0]["pages_published"], 12);  // of the last prompt alone
  EXPECT_NE(run(odd("none"), preloaded()).err.find("no call"), std::string::npos);
}

TEST_F(LlamaOddTest, HasAChild) {
  serve(16);
  const Ran ran = run(odd("with_a_child"), preloaded());
  const auto reported = "pid " + std::to_string(whole_report()["pid"].get<int>()) + "\n";
  EXPECT_NE(ran.out.find(reported), std::string::npos) << ran.out;
}

// 65 tokens behind a hit of 16, in parts of 64: the last one alone would go through other kernels.
TEST_F(LlamaOddTest, LeavesNoTokenAlone) {
  serve(16);
  (void)same(odd("parts", "18"));
  (void)same(odd("parts", "81"));
  EXPECT_EQ(report()[0]["tokens_imported"], 15);
}

TEST_F(LlamaOddTest, SurvivesItsCache) {
  serve(16);
  told("200", "d", "cdcd", [&] {
    ASSERT_EQ(daemon_->stop(), 0);
    daemon_ = std::make_unique<KvtriedProcess>(
        cache_, std::vector<std::string>{"--pages", "512", "--tokens-per-page", "8", "--page-bytes",
                                         std::to_string(page_bytes_), "--metrics", "off", "--fresh"});
    ASSERT_TRUE(daemon_->ready()) << daemon_->err();
  });
  EXPECT_EQ(report()[0]["caches_lost"], 1);
  EXPECT_EQ(report()[0]["pages_published"], 200 / 16 + 2 * (200 / 8));  // in the first one, and in the second
  EXPECT_NE(told_.find("given up"), std::string::npos) << told_;
  EXPECT_EQ(std::count(told_.begin(), told_.end(), '\n'), 1) << told_;
}

TEST_F(LlamaOddTest, HoldsNothingWhileItWaits) {
  serve(16, 64);
  told("200", "d", "g", [] {});
  EXPECT_EQ(report()[0]["pages_published"], (200 + 48) / 16);
  EXPECT_EQ(report()[0]["begins"], 1 + 48 / 16);
  told("880", "d", "g", [&] {
    const Ran other = run(odd("context_of", "1024"), preloaded("KVTRIE_LLAMA_REPORT=" + cache_.directory() + "/other"));
    EXPECT_EQ(other.code, 0);
    std::ifstream file(cache_.directory() + "/other");
    const Json context = Json::parse(file)["contexts"][0];
    EXPECT_EQ(context["pages_published"], 12) << context.dump();
  });
}

// What it has was computed before the flush, and is nobody else's to find.
TEST_F(LlamaOddTest, IsFlushedWhileItWaits) {
  serve(16);
  told("200", "d", "gcd", [&] {
    const Ran flushed = run(program("kvtrie") + " flush 0 --cache " + cache_.name() + " --dir " + cache_.directory());
    ASSERT_EQ(flushed.code, 0) << flushed.err;
  });
  EXPECT_EQ(report()[0]["pages_published"], 200 / 16 + 200 / 16);
  EXPECT_EQ(told_, "");
}

// As llama-server's prompt cache does. What comes back goes on where it was; after a flush it is private as before.
TEST_F(LlamaOddTest, PutsStatesBack) {
  serve(16);
  told("200", "dsc", "drg", [] {});
  EXPECT_EQ(report()[0]["states_restored"], 1);
  EXPECT_EQ(report()[0]["pages_published"], 200 / 16 + 248 / 16);
  told("200", "dsc", "dbg", [] {});  // one bit is another
  EXPECT_EQ(report()[0]["states_restored"], 0);
  EXPECT_EQ(report()[0]["pages_published"], 0);
  const auto flush = [&] {
    const Ran flushed = run(program("kvtrie") + " flush 0 --cache " + cache_.name() + " --dir " + cache_.directory());
    ASSERT_EQ(flushed.code, 0) << flushed.err;
  };
  told("200", "dsc", "drg", flush);
  EXPECT_EQ(report()[0]["states_restored"], 1);
  EXPECT_EQ(report()[0]["pages_published"], 200 / 16);  // the one that was computed behind the flush
}

// What is computed behind a state that came from elsewhere is not published, whoever calls whom inside of libllama: some
// are linked so that their calls of their own functions do not come by the preload library.
TEST_F(LlamaOddTest, PutsStatesBackByOldNames) {
  std::ifstream file(KVTRIE_TEST_LLAMA_DIR "/lib/libllama.v0.5.0.so", std::ios::binary);
  std::string bytes(std::istreambuf_iterator<char>(file), {});
  const std::string relacount("\xf9\xff\xff\x6f\0\0\0\0", 8), symbolic("\x10\0\0\0\0\0\0\0", 8);
  const std::size_t tag = bytes.find(relacount);  // in .dynamic; a hint for the loader
  ASSERT_TRUE(tag != std::string::npos && tag % 8 == 0);
  bytes.replace(tag, symbolic.size(), symbolic);
  const std::string bound = cache_.directory() + "/libllama.v0.5.0.so";
  std::ofstream(bound, std::ios::binary) << bytes;
  serve(16);
  for (const std::string& library : {std::string(), ":" + bound}) {
    const std::string tenant = library.empty() ? "a" : "b";
    const std::string command = odd("old_names", cache_.directory());
    const Ran shared = run(command, preloaded("KVTRIE_TENANT=" + tenant) + library);
    EXPECT_EQ(shared.out, run(command).out) << shared.err;
    EXPECT_EQ(report()[0]["diverged"], 2) << library;
    EXPECT_EQ(report()[0]["pages_published"], 3 * 96 / 16) << library;
  }
}

// Evicted is not flushed: it is published again.
TEST_F(LlamaOddTest, IsEvictedWhileItWaits) {
  serve(16);
  told("200", "d", "g", [&] {
    const Ran evicted = run(program("kvtrie") + " evict --cache " + cache_.name() + " --dir " + cache_.directory());
    ASSERT_EQ(evicted.code, 0) << evicted.err;
  });
  EXPECT_EQ(report()[0]["pages_published"], 200 / 16 + 248 / 16);
}

TEST_F(LlamaOddTest, WritesThePagesThatOthersWrite) {
  serve(64);
  (void)same(odd("context_of", "1024"), "KVTRIE_TENANT=a");
  (void)same(odd("few_outputs"), "KVTRIE_TENANT=b");  // another number of sequences
  std::ifstream pool(cache_.pool_path(0), std::ios::binary);
  std::multiset<std::string> pages;
  for (std::string page(page_bytes_, '\0'); pool.read(page.data(), static_cast<std::streamsize>(page.size()));) {
    if (page.find_first_not_of('\0') != std::string::npos) pages.insert(page);
  }
  EXPECT_EQ(pages.size(), 6U);
  EXPECT_EQ(std::set<std::string>(pages.begin(), pages.end()).size(), 3U);
}

// The second time its prompt was imported, and its last token is at another place of llama.cpp's batch.
TEST_F(LlamaOddTest, ReadsOutputsBehindCallsThatFail) {
  serve(16);
  EXPECT_EQ(same(odd("encodes")).err, "");
  EXPECT_EQ(same(odd("encodes")).err, "");
  EXPECT_EQ(report()[0]["tokens_imported"], 192 + 88);
}

// KV with an adapter is nobody else's; nor what was computed without one in a context that had one.
TEST_F(LlamaOddTest, SetsAnAdapterInMidSequence) {
  serve(16);
  const std::string adapter = cache_.directory() + "/lora.gguf";
  ASSERT_EQ(run(odd("add_lora", adapter)).code, 0);
  const Ran ran = same(odd("lora", adapter));
  EXPECT_NE(ran.err.find("LoRA"), std::string::npos) << ran.err;
  EXPECT_EQ(report()[0]["pages_published"], 100 / 16);
  EXPECT_EQ(same(odd("read_lora")).err, "");
  EXPECT_EQ(report()[0]["tokens_imported"], 100 / 16 * 16);
  EXPECT_EQ(same(odd("lora", adapter)).out, ran.out);  // behind imported pages
  EXPECT_EQ(report()[0]["tokens_imported"], 100 / 16 * 16);
}

// All contexts of the model compute other KV from then on, the one that is not trained and one that is made later, too.
TEST_F(LlamaOddTest, TrainsItsModel) {
  serve(16, 64, 2 * page_bytes(16));  // of F32
  EXPECT_NE(same(odd("trained")).err.find("trained"), std::string::npos);
  const Json contexts = report();
  ASSERT_EQ(contexts.size(), 3U);
  for (const Json& context : contexts)
    EXPECT_EQ(context["sharing"], false) << context.dump();
  EXPECT_EQ(contexts[1]["pages_published"], 100 / 16) << contexts.dump();  // before
}

TEST_F(LlamaOddTest, ReportsWhileThreadsCompute) {
  serve(16);
  const std::string alone = run(odd("threads")).out;
  std::atomic<bool> done = false;
  unsigned whole = 0;
  std::thread reader([&] {
    std::string last;
    while (!done) {
      std::ifstream file(report_path());
      const std::string text(std::istreambuf_iterator<char>(file), {});
      if (text.empty() || text == last) continue;
      EXPECT_FALSE(Json::parse(text, nullptr, false).is_discarded()) << text;
      ++whole;
      last = text;
    }
  });
  const Ran ran = run(odd("threads"), preloaded());
  done = true;
  reader.join();
  EXPECT_EQ(ran.out, alone) << ran.err;
  EXPECT_GT(whole, 5U);
  ASSERT_EQ(report().size(), 22U);
  for (std::size_t i = 20; i < 22; ++i) {
    EXPECT_EQ(report()[i]["tokens_given"], 20 * 100);
    EXPECT_EQ(report()[i]["tokens_imported"], 10 * 96);  // each prompt's second time
  }
}

TEST_F(LlamaOddTest, SplitsItsModelOverDevices) {
  serve(16);
  EXPECT_EQ(same(odd("split", "31")).err, "");
  for (const auto& [split, imported] : {std::pair{"31", 192}, {"13", 0}, {"0", 0}}) {
    (void)same(odd("split", split));
    EXPECT_EQ(report()[0]["tokens_imported"], imported) << split;
  }
  (void)same(odd("context_of", "1024"));
  EXPECT_EQ(report()[0]["tokens_imported"], 192);  // none is as all 0
}

// A copy that is there from the start, and one that comes later: with another soname, for a library that needs that.
TEST_F(LlamaOddTest, LoadsAnotherLibllama) {
  serve(16);
  const auto renamed = [&](const std::string& from, const std::string& to) {
    std::ifstream file(from, std::ios::binary);
    std::string bytes(std::istreambuf_iterator<char>(file), {});
    std::size_t at = 0;
    for (const std::string_view soname = "libllama.v0.5.0.so"; (at = bytes.find(soname, at)) != std::string::npos;)
      bytes.replace(at, soname.size(), "libllama.v0.5.9.so");
    std::ofstream(cache_.directory() + "/" + to, std::ios::binary) << bytes;
  };
  renamed(KVTRIE_TEST_LLAMA_DIR "/lib/libllama.v0.5.0.so", "libllama.v0.5.9.so");
  renamed(KVTRIE_TEST_ODD_PLUGIN, "plugin.so");
  const Ran two = same(odd("two_copies", cache_.directory() + "/libllama.v0.5.9.so"));
  EXPECT_NE(two.err.find("two copies of libllama"), std::string::npos) << two.err;
  EXPECT_EQ(std::count(two.err.begin(), two.err.end(), '\n'), 1) << two.err;
  EXPECT_FALSE(std::filesystem::exists(report_path()));

  const Ran later = same(odd("second_copy", cache_.directory()));
  EXPECT_NE(later.out.find("its own"), std::string::npos) << later.out;
  EXPECT_NE(later.err.find("another copy of libllama"), std::string::npos) << later.err;
  EXPECT_EQ(std::count(later.err.begin(), later.err.end(), '\n'), 1) << later.err;
  ASSERT_EQ(report().size(), 1U);
  EXPECT_EQ(report()[0]["pages_published"], 200 / 16);  // the first one's go on
}

// Its structures and arguments are others: nothing of them is changed.
TEST_F(LlamaOddTest, IsOfAnotherVersion) {
  const Ran ran = same(KVTRIE_TEST_OTHER_ENGINE);
  EXPECT_EQ(ran.out, "6534\n140.5\n");
  EXPECT_NE(ran.err.find("is llama.cpp 99.0.0"), std::string::npos) << ran.err;
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
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
