// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Another release beside the running one: kvtried and plugin with another layout version, which is part of the objects'
// names. Either has a segment of its own; each refuses the other in words that say what to do; workers go on with what
// they have; and the way back is open.

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/kvtried_process.h"
#include "worker_plugin/kvtrie.h"

namespace kvtrie {
namespace {

using test::KvtriedProcess;
using testing::AllOf;
using testing::HasSubstr;

const std::string kOtherKvtried = KVTRIE_TEST_OTHER_DIR "/kvtried_other_layout";
const std::string kOtherPlugin = KVTRIE_TEST_OTHER_DIR "/libkvtrie_worker_other_layout.so";
const std::string kPlugin = KVTRIE_TEST_LIB_DIR "/libkvtrie_worker.so";

std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A plugin as an engine loads it. Both are in this process at once, and know nothing of each other.
class Plugin {
 public:
  explicit Plugin(const std::string& path) : library_(::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    EXPECT_NE(library_, nullptr) << ::dlerror();
    if (library_ == nullptr) return;
    const auto get = reinterpret_cast<const kvtrie_api* (*)(std::uint32_t)>(::dlsym(library_, "kvtrie_get_api"));
    api_ = get(KVTRIE_API_VERSION);
  }
  Plugin(const Plugin&) = delete;
  Plugin& operator=(const Plugin&) = delete;
  ~Plugin() {
    if (library_ != nullptr) ::dlclose(library_);
  }
  const kvtrie_api* operator->() const { return api_; }
  std::string error() const { return api_->last_error(); }

 private:
  void* library_;
  const kvtrie_api* api_ = nullptr;
};

class Engine {
 public:
  Engine(const Plugin& plugin, const std::string& cache, const std::string& directory) : plugin_(plugin) {
    kvtrie_attach_options where{};
    where.size = sizeof where;
    where.cache = cache.c_str();
    where.directory = directory.c_str();
    code_ = plugin_->attach(&where, &worker_);
    text_ = plugin_.error();
    if (code_ != KVTRIE_OK) return;
    EXPECT_EQ(open("model", space_), KVTRIE_OK) << plugin_.error();
  }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine() {
    if (code_ != KVTRIE_OK) return;
    EXPECT_EQ(plugin_->detach(worker_), KVTRIE_OK) << plugin_.error();
  }

  kvtrie_code code() const { return code_; }
  const std::string& text() const { return text_; }
  kvtrie_code open(const std::string& model, kvtrie_namespace& space) {
    const kvtrie_field field{"model", model.c_str()};
    return plugin_->open_namespace(worker_, &field, 1, model.c_str(), &space);
  }
  // Serves a prompt of two pages: returns how many of its tokens were cached, and caches the rest. The bytes of a page
  // are derived from `mark`; a hit with others is a failure.
  std::uint64_t serve(std::uint32_t prompt, char mark) {
    std::array<std::uint32_t, 32> tokens{};
    tokens.fill(prompt);
    kvtrie_begin_result hit{};
    hit.size = sizeof hit;
    kvtrie_sequence sequence{0};
    EXPECT_EQ(plugin_->begin(worker_, space_, tokens.data(), tokens.size(), nullptr, &hit, &sequence), KVTRIE_OK)
        << plugin_.error();
    EXPECT_EQ(plugin_->allocate(sequence, tokens.size(), nullptr), KVTRIE_OK) << plugin_.error();
    std::array<char, 2 * 1024> bytes{};
    bytes.fill(mark);
    if (hit.cached_pages < 2) {
      const std::uint64_t first = hit.cached_tokens;
      EXPECT_EQ(plugin_->copy_in(sequence, first, 32 - first, 0, nullptr, bytes.data()), KVTRIE_OK) << plugin_.error();
    }
    EXPECT_EQ(plugin_->publish(sequence, tokens.size(), nullptr), KVTRIE_OK) << plugin_.error();
    EXPECT_EQ(plugin_->copy_out(sequence, 0, 32, 0, nullptr, bytes.data()), KVTRIE_OK) << plugin_.error();
    EXPECT_EQ(std::ranges::count(bytes, mark), static_cast<std::ptrdiff_t>(bytes.size())) << "bytes of another cache";
    EXPECT_EQ(plugin_->release(sequence), KVTRIE_OK) << plugin_.error();
    return hit.cached_tokens;
  }
  kvtrie_code evict() {
    std::uint64_t evicted = 0;
    return plugin_->evict(worker_, {0}, 0, &evicted);
  }
  kvtrie_code flush() { return plugin_->flush(worker_, space_); }
  std::string error() const { return plugin_.error(); }

 private:
  const Plugin& plugin_;
  kvtrie_worker worker_{0};
  kvtrie_namespace space_{0};
  kvtrie_code code_ = KVTRIE_OK;
  std::string text_;
};

class UpgradeTest : public testing::Test {
 protected:
  ~UpgradeTest() override {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
      if (entry.path().filename().string().starts_with("kvtrie." + cache_.name() + ".v"))
        std::filesystem::remove(entry, ignored);
    }
  }
  static std::vector<std::string> geometry() {
    return {"--pages", "64", "--page-bytes", "1K", "--workers", "4", "--metrics", "off"};
  }
  std::unique_ptr<KvtriedProcess> start() { return std::make_unique<KvtriedProcess>(cache_, geometry()); }
  // Of the other release.
  std::unique_ptr<KvtriedProcess> start_other(const std::vector<std::string>& more = {}) {
    std::vector<std::string> words = geometry();
    words.insert(words.end(), more.begin(), more.end());
    return std::make_unique<KvtriedProcess>(cache_, words, kOtherKvtried);
  }
  std::unique_ptr<Engine> engine(const Plugin& plugin) const {
    return std::make_unique<Engine>(plugin, cache_.name(), cache_.directory());
  }
  bool there(const std::string& object) const {
    return std::filesystem::exists("/dev/shm/kvtrie." + cache_.name() + "." + object);
  }
  // Exit code and what this release's kvtrie printed.
  std::pair<int, std::string> kvtrie(const std::string& words) const {
    const std::string command =
        std::string(KVTRIE_TEST_BIN_DIR "/kvtrie ") + words + " --cache " + cache_.name() + " 2>&1";
    std::string printed;
    FILE* const pipe = ::popen(command.c_str(), "r");
    std::array<char, 512> part{};
    while (::fgets(part.data(), part.size(), pipe) != nullptr)
      printed += part.data();
    return {WEXITSTATUS(::pclose(pipe)), printed};
  }

  test::TemporaryCache cache_{"upgrade"};
  const Plugin plugin_{kPlugin};
  const Plugin other_plugin_{kOtherPlugin};
};

TEST_F(UpgradeTest, OneOfThemServesACacheAtATime) {
  const auto running = start();
  ASSERT_TRUE(running->ready()) << running->err();
  const auto other = start_other();
  EXPECT_EQ(other->wait(), 3);
  EXPECT_THAT(other->err(), AllOf(HasSubstr("another coordinator"), HasSubstr(std::to_string(running->pid()))));
  EXPECT_FALSE(there("v902.seg"));
  EXPECT_EQ(engine(plugin_)->serve(1, 'a'), 0U);
  EXPECT_EQ(running->stop(), 0);
}

TEST_F(UpgradeTest, WithAnotherDirectoryBothServeTheirOwn) {
  const auto running = start();
  ASSERT_TRUE(running->ready()) << running->err();
  const std::string directory = cache_.directory() + "/new";
  const auto other = start_other({"--dir", directory});
  ASSERT_TRUE(other->ready()) << other->err();
  EXPECT_EQ(other->value("adopted"), "0");
  Engine mine(plugin_, cache_.name(), cache_.directory());
  Engine theirs(other_plugin_, cache_.name(), directory);
  ASSERT_EQ(theirs.code(), KVTRIE_OK) << theirs.text();
  EXPECT_EQ(mine.serve(1, 'a'), 0U);
  EXPECT_EQ(theirs.serve(1, 'b'), 0U) << "nothing is shared, not even by accident";
  EXPECT_EQ(mine.serve(1, 'a'), 32U);
  EXPECT_EQ(theirs.serve(1, 'b'), 32U);
  const Engine astray(plugin_, cache_.name(), directory);
  EXPECT_EQ(astray.code(), KVTRIE_E_REFUSED);
  EXPECT_THAT(astray.text(), HasSubstr("the segment has layout version 902, the plugin knows " +
                                       std::to_string(kLayoutVersion) + ": install plugin and kvtried of one release"));
  const Engine too_new(other_plugin_, cache_.name(), cache_.directory());
  EXPECT_EQ(too_new.code(), KVTRIE_E_REFUSED);
  EXPECT_THAT(too_new.text(), HasSubstr("layout version " + std::to_string(kLayoutVersion) + ", the plugin knows 902"));
}

TEST_F(UpgradeTest, WorkersOfTheOldOneGoOnAndTheWayBackIsOpen) {
  auto old = start();
  ASSERT_TRUE(old->ready()) << old->err();
  auto worker = engine(plugin_);
  EXPECT_EQ(worker->serve(1, 'a'), 0U);
  EXPECT_EQ(old->stop(), 0);

  auto next = start_other();
  ASSERT_TRUE(next->ready()) << next->err();
  EXPECT_EQ(next->value("adopted"), "0") << "a segment beside it";
  EXPECT_TRUE(next->logs("event=other_layout cache=" + cache_.name() + " layout=" + std::to_string(kLayoutVersion)));
  EXPECT_EQ(engine(other_plugin_)->serve(1, 'b'), 0U);

  // Who was attached before works on in the old segment. What he asks of the coordinator is of the old segment, too, so
  // the new one must not do it to its own.
  EXPECT_EQ(worker->serve(1, 'a'), 32U);
  EXPECT_EQ(worker->serve(2, 'c'), 0U) << "allocates and publishes";
  EXPECT_EQ(worker->serve(2, 'c'), 32U);
  kvtrie_namespace space{7};
  for (const kvtrie_code code : {worker->flush(), worker->evict(), worker->open("new", space)}) {
    EXPECT_EQ(code, KVTRIE_E_REFUSED);
    EXPECT_THAT(worker->error(),
                HasSubstr("layout version 902, the one of who asks has " + std::to_string(kLayoutVersion)));
    EXPECT_THAT(worker->error(), HasSubstr("attach anew with plugin and tools of its release"));
  }
  EXPECT_EQ(engine(other_plugin_)->serve(1, 'b'), 32U) << "neither evicted nor flushed";
  EXPECT_EQ(engine(plugin_)->code(), KVTRIE_E_REFUSED);
  worker.reset();  // detaches all the same
  EXPECT_EQ(next->stop(), 0);

  old = start();
  ASSERT_TRUE(old->ready()) << old->err();
  EXPECT_EQ(old->value("adopted"), "1");
  EXPECT_TRUE(old->logs("event=other_layout cache=" + cache_.name() + " layout=902"));
  EXPECT_EQ(engine(plugin_)->serve(1, 'a'), 32U);
  EXPECT_EQ(engine(plugin_)->serve(2, 'c'), 32U);
  EXPECT_EQ(kvtrie("verify").first, 0) << kvtrie("verify").second;
  EXPECT_EQ(old->stop(), 0);
}

TEST_F(UpgradeTest, ToolsSayWhatASegmentOfAnotherReleaseIs) {
  auto other = start_other();
  ASSERT_TRUE(other->ready()) << other->err();
  for (const char* const command : {"status", "verify", "workers"}) {
    const auto [code, printed] = kvtrie(command);
    EXPECT_EQ(code, 3) << printed;
    EXPECT_THAT(printed, AllOf(HasSubstr("there is kvtrie." + cache_.name() + ".v902.seg"),
                               HasSubstr("layout version 902, this kvtrie reads"),
                               HasSubstr("use that of the release that made it")))
        << command;
  }
  // Under our name, and still another's.
  std::filesystem::copy_file("/dev/shm/kvtrie." + cache_.name() + ".v902.seg", cache_.segment_path());
  const auto [code, printed] = kvtrie("status");
  EXPECT_NE(code, 0);
  EXPECT_THAT(printed, HasSubstr("another layout version; use the kvtrie build that made it"));
  std::filesystem::remove(cache_.segment_path());
  EXPECT_EQ(other->stop(), 0);
  const auto destroyed = kvtrie("destroy --dir " + cache_.directory());
  EXPECT_NE(destroyed.first, 0);
  EXPECT_THAT(destroyed.second, HasSubstr("layout 902: use the kvtrie of the build that made it"));
  EXPECT_TRUE(there("v902.seg"));
  EXPECT_TRUE(there("v902.pool0"));
}

// Else the other release would be this one in part.
TEST(OtherReleaseTest, EverySourceThatNamesTheLayoutIsCompiledForIt) {
  std::istringstream list(KVTRIE_TEST_OTHER_SOURCES);
  const std::vector<std::string> compiled{std::istream_iterator<std::string>(list), {}};
  const std::filesystem::path root = KVTRIE_TEST_SOURCE_DIR;
  std::size_t found = 0;
  for (const char* const folder : {"shm", "save", "metrics", "coordinator", "worker_plugin"}) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      if (!entry.is_regular_file()) continue;
      const std::string name = entry.path().lexically_relative(root).string();
      const std::string text = text_of(entry.path());
      const bool names =
          text.find("kLayoutVersion") != std::string::npos || text.find("struct_fingerprint()") != std::string::npos;
      if (!names || name == "shm/format.h" || name == "shm/geometry.h") continue;
      ++found;
      if (text.find("kLayoutVersion") == std::string::npos) continue;  // calls geometry.cc's
      EXPECT_NE(std::ranges::find(compiled, name), compiled.end()) << name;
    }
  }
  EXPECT_GE(found, compiled.size());
}

}  // namespace
}  // namespace kvtrie
