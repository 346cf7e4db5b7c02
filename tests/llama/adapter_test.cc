// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <fcntl.h>
#include <unistd.h>

#include "tests/llama/llama_process.h"

namespace kvtrie::test {
namespace {

using LlamaAdapterTest = LlamaTest;

TEST_F(LlamaAdapterTest, AHitIsBitExactInASecondProcess) {
  serve(16);
  std::uint64_t before = 0;  // tokens of this prompt that shorter ones have left
  // Within a page, at its end, behind it; and with a batch that ends inside what is cached.
  for (const std::uint32_t count : {15U, 16U, 17U, 33U, 300U, 515U}) {
    const std::string prompt = tokens(count) + "-n 3 ";
    const Json alone = answer(prompt);
    const Json first = answer(prompt + cached());
    const Json second = answer(prompt + cached());
    for (const Json* shared : {&first, &second}) {
      EXPECT_TRUE(same_answer(*shared, alone, prompt)) << count;
      EXPECT_EQ((*shared)["cached_tokens"].get<std::uint64_t>() + (*shared)["prefilled_tokens"].get<std::uint64_t>(),
                count);
      EXPECT_FALSE(shared->contains("last_failure")) << (*shared)["last_failure"];
    }
    EXPECT_EQ(first["cached_tokens"], std::min<std::uint64_t>(before, count - 2)) << count;
    const std::uint64_t whole = count / 16 * 16;
    EXPECT_EQ(second["cached_tokens"], std::min<std::uint64_t>(whole, count - 2)) << count;
    EXPECT_EQ(second["counters"]["pages_imported"], (std::min<std::uint64_t>(whole, count - 2) + 15) / 16) << count;
    before = whole;
  }
}

class LlamaPageSizeTest : public LlamaTest, public testing::WithParamInterface<std::uint32_t> {};

TEST_P(LlamaPageSizeTest, AHitIsBitExact) {
  serve(GetParam(), 1024);
  const std::string prompt = tokens(215) + "-n 4 --batch 50 ";
  const Json alone = answer(prompt);
  (void)answer(prompt + cached());
  const Json hit = answer(prompt + cached());
  EXPECT_EQ(hit["cached_tokens"], std::min(215 / GetParam() * GetParam(), 213U));
  EXPECT_TRUE(same_answer(hit, alone, prompt));
}
INSTANTIATE_TEST_SUITE_P(Tokens, LlamaPageSizeTest, testing::Values(1U, 7U, 100U));

TEST_F(LlamaAdapterTest, PublishesGeneratedTokensToo) {
  serve(16);
  // Generated one by one they went through other kernels than in a batch, but in this back end, which has only one
  // kind.
  for (const std::string back_end : {"x64", "haswell"}) {
    if (back_end == "haswell" && this->back_end() != back_end) continue;
    const std::string same = "--model " + model() + " --json --back-end " + back_end + " ";
    const auto ask = [&](const std::string& more) {
      return Json::parse(run(program("kvtrie-llama") + " " + same + more).out);
    };
    const Json first = ask(tokens(40) + "-n 60 " + cached());
    ASSERT_EQ(first["tokens"].size(), 60U);
    EXPECT_EQ(first["counters"]["pages_published"], (40 + 59) / 16);  // the last one was never decoded
    const std::string continued = tokens(40, 1, first["tokens"].get<std::vector<int>>()) + "-n 5 ";
    const Json next = ask(continued + cached());
    const Json alone = ask(continued);
    EXPECT_EQ(next["cached_tokens"], (40 + 59) / 16 * 16);
    EXPECT_EQ(next["tokens"], alone["tokens"]);
    if (back_end == "x64") {
      EXPECT_EQ(next["logits_hash"], alone["logits_hash"]);
    }
  }
}

TEST_F(LlamaAdapterTest, RefusesPagesThatAreTooSmallAndSaysWhatWouldFit) {
  serve(16, 64, page_bytes(16) - 64);
  const Ran ran = run(llama(tokens(40) + cached()));
  EXPECT_EQ(ran.code, 3);
  EXPECT_NE(ran.err.find("--page-bytes " + std::to_string(page_bytes(16))), std::string::npos) << ran.err;
}

TEST_F(LlamaAdapterTest, SharesNothingWhereNumericsOrTenantsDiffer) {
  serve(16, 512, page_bytes(16) * 2);
  const std::string prompt = tokens(100) + "-n 1 ";
  (void)answer(prompt + cached());
  ASSERT_GT(answer(prompt + cached())["cached_tokens"], 0);
  const std::string other_model = cache_.directory() + "/other.gguf";
  ASSERT_EQ(run(program("kvtrie-make-model") + " --seed 2 " + other_model).code, 0);
  for (const std::string other : {"--flash-attention", "--kv-type f32", "--tenant b"}) {
    const Json first = answer(prompt + cached() + other);
    EXPECT_EQ(first["cached_tokens"], 0) << other;
    EXPECT_EQ(first["tokens"], answer(prompt + other)["tokens"]) << other;
    EXPECT_GT(answer(prompt + cached() + other)["cached_tokens"], 0) << other;
  }
  // The engine's own variable: quantized K and V lie in the cache otherwise.
  const std::string quantized = prompt + "--kv-type q8_0 --flash-attention ";
  (void)answer(quantized + cached());
  const Ran unturned = run(llama(quantized + cached()), "LLAMA_ATTN_ROT_DISABLE=1");
  ASSERT_EQ(unturned.code, 0) << unturned.err;
  EXPECT_EQ(Json::parse(unturned.out)["cached_tokens"], 0);
  EXPECT_GT(answer(quantized + cached())["cached_tokens"], 0);
  for (const std::string other : {"--back-end x64", "--back-end sse42"}) {
    const Ran ran = run(program("kvtrie-llama") + " --json --model " + model() + " " + other + " " + prompt + cached());
    ASSERT_EQ(ran.code, 0) << ran.err;
    if (other == "--back-end " + back_end()) continue;
    EXPECT_EQ(Json::parse(ran.out)["cached_tokens"], 0) << other;
  }
  const Ran ran = run(program("kvtrie-llama") + " --json --model " + other_model + " --back-end " + back_end() + " " +
                      prompt + cached());
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(Json::parse(ran.out)["cached_tokens"], 0) << "another seed";
}

TEST_F(LlamaAdapterTest, APageThatIsNotWhatItsPlaceSaysIsComputed) {
  serve(16);
  const std::string prompt = tokens(200) + "-n 3 ";
  const Json alone = answer(prompt);
  (void)answer(prompt + cached());
  // Everywhere a position that is none, and a count of cells that the engine would believe.
  const int pool = ::open(cache_.pool_path(0).c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(pool, 0);
  for (const auto& [offset, value] : {std::pair{16, std::uint32_t{0x80000000U}}, {12, 0x7FFFFFFFU}, {8, 7U}}) {
    for (std::uint64_t page = 0; page < pages_; ++page) {
      ASSERT_EQ(::pwrite(pool, &value, sizeof value, static_cast<off_t>(page * page_bytes_) + offset), 4);
    }
    const Json hit = answer(prompt + cached());
    EXPECT_EQ(hit["cached_tokens"], 0);
    EXPECT_EQ(hit["counters"]["layout_failures"], 1);
    EXPECT_EQ(hit["counters"]["begins"], 1);
    EXPECT_TRUE(same_answer(hit, alone, prompt));
  }
  ::close(pool);
}

TEST_F(LlamaAdapterTest, AFullCacheCostsSharingAlone) {
  serve(16, 64);
  const std::string prompt = tokens(1100) + "-n 3 --batch 1200 ";
  const Json full = answer(prompt + cached());
  EXPECT_TRUE(same_answer(full, answer(prompt), prompt));
  EXPECT_GT(full["counters"]["no_free_pages"], 0);
  EXPECT_EQ(full["counters"]["pages_published"], 0);
}

TEST_F(LlamaAdapterTest, GoesOnWhenItsCoordinatorIsKilled) {
  serve(16);
  const std::string prompt = tokens(100) + "-n 3 ";
  const Json alone = answer(prompt);
  const std::string out = cache_.directory() + "/answers";
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const std::string command = "exec " + llama(prompt + "--repeat 2000 " + cached()) + " >" + out;
    ::execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    ::_exit(127);
  }
  const auto lines = [&] {
    std::ifstream file(out);
    return std::count(std::istreambuf_iterator<char>(file), {}, '\n');
  };
  ASSERT_TRUE(eventually([&] { return lines() > 3; }));
  daemon_->send(SIGKILL);
  (void)daemon_->wait();
  const auto then = lines();
  EXPECT_TRUE(eventually([&] { return lines() > then + 3; }));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  daemon_.reset();
  std::ifstream file(out);
  std::string last;  // whole line
  for (std::string line; std::getline(file, line) && !file.eof();)
    last = line;
  EXPECT_EQ(Json::parse(last)["logits_hash"], alone["logits_hash"]);
  EXPECT_EQ(Json::parse(last)["cached_tokens"], 96);
}

}  // namespace
}  // namespace kvtrie::test
