// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Debug dumps of the adapter and the preload library; and what a failing test of them leaves behind.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <set>

#include "tests/llama/llama_process.h"

namespace kvtrie::test {
namespace {

class LlamaDumpTest : public PreloadedTest {
 protected:
  std::string plain() const {
    return std::string(KVTRIE_TEST_PLAIN_ENGINE) + " " + model() + " " + back_end_library();
  }
  std::string folder(const std::string& name) const { return cache_.directory() + "/" + name; }
  static std::vector<std::string> dumps_in(const std::string& folder) {
    std::vector<std::string> found;
    if (!std::filesystem::exists(folder)) return found;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) found.push_back(entry.path().string());
    std::ranges::sort(found);
    return found;
  }
  static Json info_of(const std::string& dump) {
    std::ifstream file(dump + "/info.json");
    return Json::parse(file);
  }
  static std::string bytes_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // Of all dumps, position and state of the pages in them.
  static std::string states_in(const Json& info) {
    std::string states;
    for (const Json& page : info["pages"]) states += page["position"].dump() + page["state"].get<std::string>() + " ";
    return states;
  }
  // One bit of an item of K, in the pool: bytes that nobody may change (C3).
  std::uint64_t flip(std::uint32_t page, const Json& part, std::uint64_t item) const {
    const std::uint64_t at = page * page_bytes_ + part["offset"].get<std::uint64_t>() + 2 * item + 1;
    const int pool = ::open(cache_.pool_path(0).c_str(), O_RDWR | O_CLOEXEC);
    std::uint8_t byte = 0;
    EXPECT_EQ(::pread(pool, &byte, 1, static_cast<off_t>(at)), 1);
    byte ^= 4;
    EXPECT_EQ(::pwrite(pool, &byte, 1, static_cast<off_t>(at)), 1);
    ::close(pool);
    return at;
  }
  // Artifacts of this test's failures go away with it.
  void keep_artifacts_here() {
    const char* const before = std::getenv("KVTRIE_ARTIFACTS");
    artifacts_before_ = before == nullptr ? "" : before;
    ASSERT_EQ(::setenv("KVTRIE_ARTIFACTS", folder("artifacts").c_str(), 1), 0);
  }
  void TearDown() override {
    PreloadedTest::TearDown();
    if (artifacts_before_) (void)::setenv("KVTRIE_ARTIFACTS", artifacts_before_->c_str(), 1);  // empty: as none
  }
  std::optional<std::string> artifacts_before_;
};

TEST_F(LlamaDumpTest, HasWhatIsComputedAndThePagesThatItReads) {
  serve(16);
  const std::string prompt = tokens(71) + "-n 11 --tag 5 " + cached();
  const Json cold = answer(prompt + "--dump " + folder("cold") + ",raw,after");
  const Json hit = answer(prompt + "--dump " + folder("hit") + ",raw");
  EXPECT_EQ(hit["logits_hash"], cold["logits_hash"]);
  const std::vector<std::string> first = dumps_in(folder("cold"));
  const std::vector<std::string> second = dumps_in(folder("hit"));
  ASSERT_EQ(first.size(), 22U);  // of a prompt and 10 generated tokens, before and after
  ASSERT_EQ(second.size(), 11U);
  EXPECT_EQ(cold["counters"]["dumps"], 22);
  EXPECT_EQ(cold["counters"]["dump_failures"], 0);

  const Json before = info_of(first[0]);
  EXPECT_EQ(before["engine"], "llama.cpp");
  EXPECT_EQ(before["requests"][0]["tokens"].size(), 71U);
  EXPECT_EQ(before["requests"][0]["request_tag"], 5);
  EXPECT_EQ(before["requests"][0]["page_table"].size(), 4U);  // taken, not written
  EXPECT_EQ(before["batch"], Json::parse(R"([{"request":0,"kind":"prefill","first_token":0,"token_count":71}])"));
  EXPECT_EQ(states_in(before), "");
  const Json after = info_of(first[1]);
  EXPECT_EQ(states_in(after), "0published 1published 2published 3published ");
  // The fifth page is full behind the 9th generated token.
  EXPECT_EQ(states_in(info_of(first[19])), "0cached 1cached 2cached 3cached 4published ");

  const Json read = info_of(second[0]);
  EXPECT_EQ(read["requests"][0]["cached_tokens"], 64);
  EXPECT_EQ(read["batch"], Json::parse(R"([{"request":0,"kind":"prefill","first_token":64,"token_count":7}])"));
  EXPECT_EQ(read["requests"][0]["page_table"], after["requests"][0]["page_table"]);
  EXPECT_EQ(states_in(read), "0cached 1cached 2cached 3cached ");
  const Json next = info_of(second[1]);  // its sequence holds nothing by itself then
  EXPECT_EQ(next["batch"], Json::parse(R"([{"request":0,"kind":"decode","first_token":71,"token_count":1}])"));
  EXPECT_EQ(states_in(next), "0found 1found 2found 3found ");

  // What it says of a page is what the pool has.
  const std::string pool = bytes_of(cache_.pool_path(0));
  for (const Json& page : read["pages"]) {
    ASSERT_EQ(page["parts"].size(), 4U);
    for (const Json& part : page["parts"]) {
      EXPECT_EQ(part["dtype"], "f16");
      EXPECT_EQ(part["statistics"]["items"], 16 * 64);
      EXPECT_EQ(part["statistics"]["nan"], 0);
      const std::string file = bytes_of(second[0] + "/" + part["file"].get<std::string>());
      const std::string there =
          pool.substr(page["page"].get<std::uint64_t>() * page_bytes_ + part["offset"].get<std::uint64_t>(), 2048);
      EXPECT_EQ(file.substr(file.size() - 2048), there);
    }
  }
}

TEST_F(LlamaDumpTest, OfOneRequestByItsTagOrByCall) {
  serve(16);
  const auto dumps_of = [&](const std::string& options, const std::string& more) {
    std::filesystem::remove_all(folder("dumps"));
    const Json one = answer(tokens(40) + "-n 2 " + cached() + more + " --dump " + folder("dumps") + options);
    EXPECT_EQ(one["counters"]["dumps"], dumps_in(folder("dumps")).size());
    return dumps_in(folder("dumps")).size();
  };
  EXPECT_EQ(dumps_of(",tag=3", "--tag 4"), 0U);
  EXPECT_EQ(dumps_of(",tag=3", "--tag 3"), 2U);
  EXPECT_EQ(dumps_of(",tag=3", "--tag 4 --ask-for-dumps"), 2U);
  EXPECT_EQ(dumps_of(",asked", ""), 0U);
  EXPECT_EQ(dumps_of(",asked,after", "--ask-for-dumps"), 4U);
  EXPECT_EQ(dumps_of(",max=1", ""), 1U);
  EXPECT_EQ(run(llama(tokens(40) + "--dump " + folder("dumps"))).code, 2);  // without a cache
  EXPECT_EQ(run(llama(tokens(40) + cached() + "--dump x,row")).code, 2);
}

TEST_F(LlamaDumpTest, WhatCannotBeWrittenIsSaidOnceAndChangesNothing) {
  serve(16);
  const std::string prompt = tokens(40) + "-n 4 ";
  const Ran ran = run(llama(prompt + cached() + "--dump /proc/none"));
  const Json answered = Json::parse(ran.out);
  EXPECT_TRUE(same_answer(answered, answer(prompt), prompt));
  EXPECT_EQ(answered["counters"]["dump_failures"], 4);
  EXPECT_EQ(answered["counters"]["pages_published"], 2);
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  EXPECT_NE(ran.err.find("/proc/none"), std::string::npos) << ran.err;
}

TEST_F(LlamaDumpTest, AnUnmodifiedProgramIsDumpedByItsVariable) {
  serve(16);
  const Ran alone = run(plain());
  EXPECT_TRUE(same_output(run(plain(), preloaded()), alone, plain()));
  for (const Json& context : report()) EXPECT_EQ(context["dumps"], 0);
  // Within parts of batches, too, for which others may wait.
  const std::string more = "KVTRIE_TENANT=b KVTRIE_LLAMA_DUMP=" + folder("all") + ",after";
  EXPECT_TRUE(same_output(run(plain(), preloaded(more)), alone, plain()));
  std::size_t counted = 0;
  for (const Json& context : report()) {
    counted += context["dumps"].get<std::size_t>();
    EXPECT_EQ(context["dump_failures"], 0);
  }
  std::set<std::string> kinds;
  std::size_t requests_max = 0;
  std::size_t published = 0;
  for (const std::string& dump : dumps_in(folder("all"))) {
    const Json info = info_of(dump);
    requests_max = std::max(requests_max, info["requests"].size());
    EXPECT_EQ(info["requests"].size(), info["batch"].size());
    for (const Json& entry : info["batch"]) kinds.insert(entry["kind"]);
    for (const Json& page : info["pages"]) published += page["state"] == "published" ? 1 : 0;
  }
  EXPECT_EQ(dumps_in(folder("all")).size(), counted);
  EXPECT_EQ(requests_max, 2U);
  EXPECT_GT(published, 20U);
  for (const char* kind : {"prefill", "decode", "diverged"}) EXPECT_TRUE(kinds.contains(kind)) << kind;

  (void)run(plain(), preloaded("KVTRIE_LLAMA_DUMP=" + folder("second") + ",tag=1"));  // its second sequence
  EXPECT_GT(dumps_in(folder("second")).size(), 0U);
  for (const std::string& dump : dumps_in(folder("second"))) {
    const Json requests = info_of(dump)["requests"];
    EXPECT_TRUE(std::ranges::any_of(requests, [](const Json& request) { return request["request_tag"] == 1; }));
  }
  const Ran wrong = run(plain(), preloaded("KVTRIE_LLAMA_DUMP=/d,row"));
  EXPECT_EQ(wrong.out, alone.out);
  EXPECT_NE(wrong.err.find("KVTRIE_LLAMA_DUMP: 'row'"), std::string::npos) << wrong.err;
  EXPECT_EQ(std::count(wrong.err.begin(), wrong.err.end(), '\n'), 1) << wrong.err;
}

// The process is stopped inside a dump while its sequence has no lease of its own; then all is evicted that may be, and
// others write into what is free.
TEST_F(LlamaDumpTest, PagesAreHeldWhileTheyAreDumped) {
  serve(16, 90);
  const std::string prompt = tokens(592) + "-n 16 ";
  (void)answer(prompt + cached());
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const std::string command = "exec " + llama(prompt + cached() + "--dump " + folder("dumps") + ",raw");
    ::execl("/bin/sh", "sh", "-c", (command + " >" + folder("out")).c_str(), nullptr);
    ::_exit(127);
  }
  struct Ended {
    pid_t pid;
    ~Ended() {
      if (pid > 0 && ::waitpid(pid, nullptr, WNOHANG) == 0) {
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
      }
    }
  };
  const Ended ended{child};
  // Not the first one: the sequence holds what it has just imported.
  const auto unfinished = [&] {
    for (const std::string& dump : dumps_in(folder("dumps"))) {
      if (dump.find(".unfinished-") != std::string::npos && dump.find("-000000-") == std::string::npos) return true;
    }
    return false;
  };
  int status = 0;
  bool stopped = false;
  while (!stopped && ::waitpid(child, &status, WNOHANG) == 0) {
    if (!unfinished()) continue;
    ::kill(child, SIGSTOP);
    ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
    ASSERT_TRUE(WIFSTOPPED(status));
    stopped = unfinished();
    if (!stopped) ::kill(child, SIGCONT);
  }
  ASSERT_TRUE(stopped) << "it was done before it could be stopped";
  const Ran evicted = run(program("kvtrie") + " evict --cache " + cache_.name() + " --dir " + cache_.directory());
  EXPECT_EQ(evicted.code, 0) << evicted.err;
  const Json other = answer(tokens(1000, 2) + "-n 2 --batch 256 " + cached());
  EXPECT_GT(other["counters"]["pages_published"], 0);
  EXPECT_LE(other["counters"]["pages_published"], 90 - 37);  // of 62
  ::kill(child, SIGCONT);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);

  const std::vector<std::string> dumps = dumps_in(folder("dumps"));
  ASSERT_GT(dumps.size(), 2U);
  const Json right = info_of(dumps[0])["pages"];
  EXPECT_EQ(right.size(), 37U);
  std::size_t compared = 0;
  for (const std::string& dump : dumps) {
    const Json info = info_of(dump);
    for (const Json& page : info["pages"]) {
      EXPECT_EQ(page["bytes_hash"], right[page["position"].get<std::size_t>()]["bytes_hash"]) << dump;
      ++compared;
    }
  }
  EXPECT_GE(compared, 3 * right.size());
}

TEST_F(LlamaDumpTest, AFailureLeavesADumpThatNamesThePageAndTheCacheAsItWas) {
  keep_artifacts_here();
  serve(16);
  const std::string words = tokens(100) + "-n 3 ";
  const Json alone = answer(words);
  (void)answer(words + cached() + "--dump " + folder("cold") + ",after");
  EXPECT_TRUE(same_answer(answer(words + cached()), alone, words));
  EXPECT_FALSE(std::filesystem::exists(folder("artifacts")));

  const Json page = info_of(dumps_in(folder("cold"))[1])["pages"][2];
  const Json part = page["parts"][1];
  // Attention of this model chooses: what it passes over changes nothing. So the first token whose K it looks at.
  std::uint64_t token = 0;
  std::uint64_t byte = 0;
  Json hit;
  for (; token < 16; ++token) {
    byte = flip(page["page"], part, token * 64 + 7);
    hit = answer(words + cached());
    if (hit["logits_hash"] != alone["logits_hash"]) break;
    (void)flip(page["page"], part, token * 64 + 7);
  }
  ASSERT_LT(token, 16U);
  const testing::AssertionResult result = same_answer(hit, alone, words);
  EXPECT_FALSE(result);
  const std::string item = "[" + std::to_string(token) + ",7]";
  const std::string said = result.message();
  const std::string name = "first page that differs: page " + page["page"].dump() +
                           " of the cache, part k.1, request 0 position 2 plane 0 (page ";
  EXPECT_NE(said.find(name), std::string::npos) << said;
  EXPECT_NE(said.find("part k.1 " + item + ": "), std::string::npos) << said;
  const std::string left =
      folder("artifacts") + "/LlamaDumpTest.AFailureLeavesADumpThatNamesThePageAndTheCacheAsItWas";
  EXPECT_NE(said.find("left behind: " + left + "\n"), std::string::npos) << said;

  // The command that it says, too.
  const std::size_t command = said.find("kvtrie diff-dumps ");
  ASSERT_NE(command, std::string::npos) << said;
  const std::string arguments = said.substr(command + 7, said.find('\n', command) - command - 7);
  const Ran ran = run(program("kvtrie") + " " + arguments + " --json");
  EXPECT_EQ(ran.code, 1) << ran.err;
  const Json diff = Json::parse(ran.out);
  EXPECT_EQ(diff["tokens"], nullptr);
  EXPECT_EQ(diff["pages"]["page_b"], page["page"]);
  EXPECT_EQ(diff["pages"]["position"], 2);
  EXPECT_EQ(diff["pages"]["part"], "k.1");
  EXPECT_EQ(diff["pages"]["index"], Json::parse(item));

  // As it was; and `kvtrie` can look at it when nothing else is left of it.
  const std::string pool = bytes_of(cache_.pool_path(0));
  const std::string kept = left + "/cache/";
  const std::string kept_pool = bytes_of(kept + std::filesystem::path(cache_.pool_path(0)).filename().string());
  ASSERT_EQ(kept_pool.size(), pool.size());
  EXPECT_EQ(kept_pool[byte], pool[byte]);
  stop();
  daemon_.reset();
  for (const auto& entry : std::filesystem::directory_iterator(kept)) {
    std::filesystem::copy_file(entry.path(), "/dev/shm/" + entry.path().filename().string(),
                               std::filesystem::copy_options::overwrite_existing);
  }
  const Ran stats = run(program("kvtrie") + " page " + page["page"].dump() + " --stats --json" + cached());
  EXPECT_EQ(stats.code, 0) << stats.err;
  EXPECT_NE(stats.out.find("\"k.1\""), std::string::npos) << stats.out;
}

TEST_F(LlamaDumpTest, AFailureOfAnUnmodifiedProgramNamesThePage) {
  keep_artifacts_here();
  serve(16);
  const std::string program =
      std::string(KVTRIE_TEST_ODD_ENGINE) + " context_of " + model() + " " + back_end_library() + " 1024";
  const Ran alone = run(program);
  (void)run(program, preloaded("KVTRIE_LLAMA_DUMP=" + folder("cold") + ",after,max=2"));
  const Json page = info_of(dumps_in(folder("cold"))[1])["pages"][1];
  for (std::uint64_t token = 0; token < 16; ++token) (void)flip(page["page"], page["parts"][0], token * 64 + 3);
  const testing::AssertionResult result = same_output(run(program, preloaded()), alone, program);
  EXPECT_FALSE(result);
  const std::string name = "first page that differs: page " + page["page"].dump() +
                           " of the cache, part k.0, request 0 position 1 plane 0 (page ";
  EXPECT_NE(std::string(result.message()).find(name), std::string::npos) << result.message();
}

}  // namespace
}  // namespace kvtrie::test
