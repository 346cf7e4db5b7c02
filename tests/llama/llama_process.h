// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A model of 2 M parameters, a kvtried whose pages fit it, and programs on llama.cpp that are run to their end.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/artifacts.h"
#include "tests/support/kvtried_process.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie::test {

struct Ran {
  int code = -1;
  std::string out;
  std::string err;
};

class LlamaTest : public testing::Test {
 protected:
  using Json = nlohmann::json;

  LlamaTest() {
    const Ran made = run(program("kvtrie-make-model") + " " + model());
    EXPECT_EQ(made.code, 0) << made.err;
  }
  void TearDown() override {
    if (daemon_) stop();
    if (!HasFailure() || pages_ == 0 || artifact_left_) return;
    const Artifact left;
    left.keep(cache_);
    std::fprintf(stderr, "left behind: %s\n", left.path().c_str());
  }
  void stop() {
    const Ran verified = run(program("kvtrie") + " verify --cache " + cache_.name() + " --dir " + cache_.directory());
    EXPECT_EQ(verified.code, 0) << verified.out << verified.err;
    EXPECT_EQ(daemon_->stop(), 0) << daemon_->err();
  }

  static std::string program(const std::string& name) { return std::string(KVTRIE_TEST_BIN_DIR) + "/" + name; }
  std::string model() const { return cache_.directory() + "/model.gguf"; }
  // One that every x86-64 CPU has, or that with kernels for batches, which is harder to be exact with.
  static std::string back_end() { return __builtin_cpu_supports("avx2") ? "haswell" : "x64"; }

  // `environment`: NAME=VALUE words before the command.
  Ran run(const std::string& command, const std::string& environment = "") const {
    const std::string err = cache_.directory() + "/err";
    Ran ran;
    std::FILE* const pipe = ::popen((environment + " " + command + " 2>" + err).c_str(), "re");
    if (pipe == nullptr) return ran;
    std::array<char, 4096> buffer{};
    for (std::size_t got = 0; (got = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
      ran.out.append(buffer.data(), got);
    const int status = ::pclose(pipe);
    ran.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    std::ifstream file(err);
    ran.err.assign(std::istreambuf_iterator<char>(file), {});
    return ran;
  }

  std::string llama(const std::string& more) const {
    return program("kvtrie-llama") + " --json --model " + model() + " --back-end " + back_end() + " " + more;
  }
  std::string cached() const { return " --cache " + cache_.name() + " --dir " + cache_.directory() + " "; }
  Json answer(const std::string& more) const {
    const Ran ran = run(llama(more));
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.code == 0 ? Json::parse(ran.out) : Json();
  }
  // Whether kvtrie-llama said the same to `words` with the cache as without: the tokens, and the logits bit for bit. If
  // not, an artifact is left behind, with dumps of both once more, and the text names the first page that differs.
  testing::AssertionResult same_answer(const Json& shared, const Json& alone, const std::string& words) const {
    std::string what;
    for (const std::string key : {"tokens", "logits_hash"}) {
      const auto of = [&key](const Json& answer) { return answer.contains(key) ? answer[key].dump() : "none"; };
      if (of(shared) == "none" || of(shared) != of(alone)) what += key + " " + of(shared) + ", not " + of(alone) + "\n";
    }
    if (what.empty()) return testing::AssertionSuccess();
    return testing::AssertionFailure() << what << artifact([&](const Artifact& left) {
             (void)run(llama(words + cached() + "--dump " + left.shared() + ",raw,after"));
             (void)run(llama(words + cached() + "--tenant artifact --dump " + left.alone() + ",raw,after"));
           });
  }
  std::uint64_t page_bytes(std::uint32_t tokens) const {
    const Ran ran = run(llama("--page-bytes " + std::to_string(tokens)));
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.code == 0 ? std::stoull(ran.out) : 64;
  }
  void serve(std::uint32_t tokens_per_page, std::uint32_t pages = 512, std::uint64_t bytes = 0) {
    if (bytes == 0) bytes = page_bytes(tokens_per_page);
    daemon_ = std::make_unique<KvtriedProcess>(
        cache_,
        std::vector<std::string>{"--pages", std::to_string(pages), "--tokens-per-page", std::to_string(tokens_per_page),
                                 "--page-bytes", std::to_string(bytes), "--metrics", "off"});
    ASSERT_TRUE(daemon_->ready()) << daemon_->err();
    page_bytes_ = bytes;
    pages_ = pages;
  }
  // The same tokens for the same name, with those of another behind them.
  static std::string tokens(std::uint32_t count, std::uint32_t name = 1, const std::vector<int>& more = {}) {
    std::string text = "--tokens ";
    std::uint32_t state = name;
    for (std::uint32_t i = 0; i < count; ++i) {
      state = state * 1664525U + 1013904223U;
      text += std::to_string(300 + (state >> 8) % 30000) + ",";
    }
    for (const int token : more)
      text += std::to_string(token) + ",";
    text.pop_back();
    return text + " ";
  }

  // What is said of it. Of the first failure of a test.
  template <typename Dumps>
  std::string artifact(Dumps write_dumps) const {
    if (artifact_left_) return {};
    artifact_left_ = true;
    const Artifact left;
    left.keep(cache_);
    write_dumps(left);
    return left.says();
  }

  TemporaryCache cache_{"llama"};
  std::unique_ptr<KvtriedProcess> daemon_;
  std::uint64_t page_bytes_ = 0;
  std::uint32_t pages_ = 0;
  mutable bool artifact_left_ = false;
};

// Programs that know nothing of kvtrie, with the preload library.
class PreloadedTest : public LlamaTest {
 protected:
  static std::string back_end_library() { return KVTRIE_TEST_LLAMA_DIR "/lib/libggml-cpu-" + back_end() + ".so"; }
  std::string report_path() const { return cache_.directory() + "/report"; }
  std::string preloaded(const std::string& more = "") const {
    return "KVTRIE_CACHE=" + cache_.name() + " KVTRIE_DIR=" + cache_.directory() +
           " KVTRIE_LLAMA_HASHES= " + "KVTRIE_LLAMA_REPORT=" + report_path() + " " + more +
           " LD_PRELOAD=" KVTRIE_TEST_PRELOAD;
  }
  // As same_answer(), for what a program prints; `more` as of preloaded().
  testing::AssertionResult same_output(const Ran& shared, const Ran& alone, const std::string& command,
                                       const std::string& more = "") const {
    if (shared.out == alone.out) return testing::AssertionSuccess();
    return testing::AssertionFailure() << shared.out << "and not\n"
                                       << alone.out << shared.err << artifact([&](const Artifact& left) {
             // Of the same calls of llama_decode: none is computed in parts.
             const std::string dumps = more + " KVTRIE_LLAMA_WAIT=never KVTRIE_LLAMA_DUMP=";
             (void)run(command, preloaded(dumps + left.shared() + ",after"));
             (void)run(command, preloaded(dumps + left.alone() + ",after KVTRIE_TENANT=artifact"));
           });
  }
  Json whole_report() const {
    std::ifstream file(report_path());
    return Json::parse(file);
  }
  Json report() const { return whole_report()["contexts"]; }
};

}  // namespace kvtrie::test
