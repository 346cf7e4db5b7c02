// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The targets without libFuzzer: random inputs of a seed, as long as KVTRIE_FUZZ_SECONDS says, and the inputs that
// once found something (inputs/TARGET/). A finding ends the process; the seed, and the file that the input was
// written to, are on stderr by then.
//   KVTRIE_FUZZ_SEED=N      the seed; else a new one a day
//   KVTRIE_FUZZ_SECONDS=N   of each target
//   KVTRIE_FUZZ_REPLAY=FILE runs that input only: --gtest_filter='*Replays/TARGET'

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/fuzz_targets.h"
#include "tests/shm/test_support.h"

namespace kvtrie::fuzz {

static void PrintTo(const Target& target, std::ostream* out) { *out << target.name; }

namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned kInputSecondsMax = 10;  // an input that takes longer is a finding
constexpr std::size_t kInputBytesMax = 600;

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

// What a signal handler writes down.
const std::vector<std::uint8_t>* running = nullptr;
char crash_file[256] = {};

extern "C" void keep_input(int signal_number) {
  const int fd = running == nullptr ? -1 : ::open(crash_file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  const char* const said[] = {"\nFINDING (or no end in time); the input is in ", crash_file, "\n"};
  if (fd >= 0 && ::write(fd, running->data(), running->size()) == static_cast<ssize_t>(running->size())) {
    for (const char* text : said)
      (void)!::write(2, text, std::strlen(text));
  }
  std::signal(signal_number, SIG_DFL);
  (void)::raise(signal_number);
}

class FuzzTest : public ::testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
#ifdef KVTRIE_TSAN
    GTEST_SKIP() << "the thread sanitizer reports misuse of locks, and what is written beside, as such";
#endif
    const std::string path =
        (std::filesystem::temp_directory_path() / ("kvtrie-fuzz-crash-" + std::string(GetParam().name))).string();
    std::strncpy(crash_file, path.c_str(), sizeof crash_file - 1);
    for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGALRM})
      std::signal(number, keep_input);
  }
  void TearDown() override {
    for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGALRM})
      std::signal(number, SIG_DFL);
  }

  static void run(const std::vector<std::uint8_t>& input) {
    running = &input;
    ::alarm(kInputSecondsMax);
    GetParam().run(input.data(), input.size());
    ::alarm(0);
    running = nullptr;
  }

  static std::vector<std::uint8_t> read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
};

TEST_P(FuzzTest, HoldsOnRandomInputs) {
  const std::uint64_t seed =
      from_environment("KVTRIE_FUZZ_SEED", static_cast<std::uint64_t>(std::time(nullptr) / 86'400));
  const auto end = Clock::now() + std::chrono::milliseconds(1000 * from_environment("KVTRIE_FUZZ_SECONDS", 2));
  std::fprintf(stderr, "target %s: KVTRIE_FUZZ_SEED=%llu\n", GetParam().name, static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  std::vector<std::uint8_t> input;
  std::uint64_t rounds = 0;
  for (; Clock::now() < end; ++rounds) {
    input.resize(random() % (random() % kInputBytesMax + 1));
    std::ranges::generate(input, [&] { return static_cast<std::uint8_t>(random() >> 56); });
    run(input);
  }
  std::fprintf(stderr, "target %s: %llu inputs\n", GetParam().name, static_cast<unsigned long long>(rounds));
  EXPECT_GT(rounds, 20U);
}

TEST_P(FuzzTest, Replays) {
  if (const char* const one = std::getenv("KVTRIE_FUZZ_REPLAY")) return run(read(one));
  const std::filesystem::path all = std::filesystem::path(KVTRIE_FUZZ_INPUTS) / GetParam().name;
  if (!std::filesystem::exists(all)) return;
  for (const auto& entry : std::filesystem::directory_iterator(all))
    run(read(entry.path()));
}

INSTANTIATE_TEST_SUITE_P(All, FuzzTest, ::testing::ValuesIn(kTargets),
                         [](const auto& target) { return std::string(target.param.name); });

// The guards are there: what is read just outside a segment is seen.
TEST(GuardedMmapTest, ReadsJustOutsideAMappingEnd) {
  const FileDescriptor fd(std::move(*test::nameless_object(8192)));
  for (const std::int64_t at : {std::int64_t{-1}, std::int64_t{8192}, std::int64_t{0}}) {
    test::Child child([&](const test::Line&) {
      const Result<Mapping> mapping = Mapping::map(fd.get(), 8192, Access::kReadWrite);
      return static_cast<int>(*reinterpret_cast<volatile std::byte*>(mapping->data() + at));
    });
    EXPECT_EQ(child.wait(), at == 0 ? 0 : -SIGSEGV) << at;
  }
}

}  // namespace
}  // namespace kvtrie::fuzz
