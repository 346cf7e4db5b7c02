// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// C9: apart from the touch of the deepest page, at most once a tick, hits of different processes
// write no common cache line. Two workers hit the same prompt, with the plugin as it is shipped,
// under valgrind's lackey, which shows every load and store with its address; the lines of the
// segment are compared. Nor does one read what the other wrote.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <set>
#include <sstream>
#include <string_view>
#include <thread>

#include "shm/segment.h"
#include "tests/hot_path/written_lines.h"
#include "tests/support/kvtried_process.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie::test {
namespace {

using Lines = std::set<std::uint64_t>;  // numbers: offset in the segment / 64

constexpr std::size_t kPhases = static_cast<std::size_t>(Phase::kEnd);

// What a phase accessed, by address, and the first behind it.
struct Accesses {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> loads;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> stores;
};

// Reads lackey's lines as they come: "I  0401ab70,3", " L 1fff000698,8", " S ...", " M ..." (load
// and store).
class TraceReader {
 public:
  void take(std::string_view line) {
    if (line.size() < 4 || line[0] != ' ') return;
    std::uint64_t address = 0;
    std::uint64_t bytes = 0;
    const char* const end = line.data() + line.size();
    const auto [comma, error] = std::from_chars(line.data() + 3, end, address, 16);
    if (error != std::errc{} || comma == end ||
        std::from_chars(comma + 1, end, bytes).ec != std::errc{})
      return;
    const bool loads = line[1] != 'S';
    const bool stores = line[1] != 'L';
    if (stores && address >= kPhaseMarks && address < kPhaseMarks + kPhases) {
      phase_ = static_cast<std::size_t>(address - kPhaseMarks);
      return;
    }
    if (phase_ == 0) return;
    if (loads) phases_.at(phase_).loads.emplace_back(address, address + bytes);
    if (stores) phases_.at(phase_).stores.emplace_back(address, address + bytes);
  }
  const Accesses& of(Phase phase) const { return phases_.at(static_cast<std::size_t>(phase)); }

 private:
  std::size_t phase_ = 0;
  std::array<Accesses, kPhases> phases_;
};

struct Pipe {
  Pipe() {
    int ends[2] = {-1, -1};
    if (::pipe2(ends, O_CLOEXEC) != 0) std::abort();
    read = FileDescriptor(ends[0]);
    write = FileDescriptor(ends[1]);
  }
  FileDescriptor read;
  FileDescriptor write;
};

class TracedWorker {
 public:
  explicit TracedWorker(const TemporaryCache& cache) {
    constexpr int kLog = 3;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(input_.read.get(), STDIN_FILENO);
      ::dup2(output_.write.get(), STDOUT_FILENO);
      const int log = ::fcntl(log_.write.get(), F_DUPFD,
                              kLog + 1);  // dup2 onto itself would keep close-on-exec
      ::dup2(log, kLog);
      ::execlp("valgrind", "valgrind", "--tool=lackey", "--trace-mem=yes", "--log-fd=3",
               KVTRIE_TEST_OPERATIONS, KVTRIE_TEST_PLUGIN, cache.directory().c_str(),
               cache.name().c_str(), nullptr);
      ::_exit(127);
    }
    for (FileDescriptor* theirs : {&input_.read, &output_.write, &log_.write})
      *theirs = FileDescriptor();
    reader_ = std::thread([this] { read_log(); });
  }
  TracedWorker(const TracedWorker&) = delete;
  TracedWorker& operator=(const TracedWorker&) = delete;
  ~TracedWorker() {
    if (pid_ > 0) ::kill(pid_, SIGKILL);
    (void)end();
  }

  // Its output up to this word. It ends when the worker does.
  bool says(const std::string& word) {
    char buffer[4096];
    while (said_.find(word) == std::string::npos) {
      const ssize_t got = ::read(output_.read.get(), buffer, sizeof buffer);
      if (got <= 0) return false;
      said_.append(buffer, static_cast<std::size_t>(got));
    }
    return true;
  }
  void tell(const std::string& text) const {
    EXPECT_EQ(::write(input_.write.get(), text.data(), text.size()),
              static_cast<ssize_t>(text.size()));
  }
  // Wait status. What it did is known then.
  int end() {
    input_.write = FileDescriptor();
    int status = -1;
    if (pid_ > 0) ::waitpid(pid_, &status, 0);
    pid_ = -1;
    if (reader_.joinable()) reader_.join();
    return status;
  }

  Lines written(Phase phase) const { return lines(trace_.of(phase).stores); }
  Lines read(Phase phase) const { return lines(trace_.of(phase).loads); }
  PageIndex deepest() const {
    const std::size_t at = said_.find("deepest ");
    return {at == std::string::npos ? 0
                                    : static_cast<std::uint32_t>(std::stoul(said_.substr(at + 8)))};
  }

 private:
  void read_log() {
    std::string kept;
    std::vector<char> buffer(1 << 18);
    for (ssize_t got = 0; (got = ::read(log_.read.get(), buffer.data(), buffer.size())) > 0;) {
      kept.append(buffer.data(), static_cast<std::size_t>(got));
      std::size_t first = 0;
      for (std::size_t end = 0; (end = kept.find('\n', first)) != std::string::npos;
           first = end + 1) {
        trace_.take(std::string_view(kept).substr(first, end - first));
      }
      kept.erase(0, first);
    }
  }
  // Of the segment: "segment FIRST-LAST rw-s OFFSET ...", as /proc/self/maps has it.
  Lines lines(const std::vector<std::pair<std::uint64_t, std::uint64_t>>& accesses) const {
    Lines found;
    std::istringstream said(said_);
    for (std::string line; std::getline(said, line);) {
      unsigned long first = 0;
      unsigned long last = 0;
      unsigned long offset = 0;
      if (std::sscanf(line.c_str(), "segment %lx-%lx %*s %lx", &first, &last, &offset) != 3)
        continue;
      for (const auto& [begin, end] : accesses) {
        if (begin < first || begin >= last) continue;
        for (std::uint64_t at = begin; at < end; ++at)
          found.insert((at - first + offset) / kLineBytes);
      }
    }
    return found;
  }

  Pipe input_, output_, log_;
  pid_t pid_ = -1;
  std::string said_;
  TraceReader trace_;
  std::thread reader_;
};

Lines common(const Lines& some, const Lines& others) {
  Lines both;
  std::ranges::set_intersection(some, others, std::inserter(both, both.end()));
  return both;
}

class WrittenLinesTest : public testing::Test {
 protected:
  WrittenLinesTest()
      : daemon_(cache_, {"--pages", "4096", "--page-bytes", "64", "--workers", "4", "--metrics",
                         "off", "--clock", "driven", "--tick-ns", "1000000"}) {}
  void SetUp() override {
    ASSERT_TRUE(daemon_.ready()) << daemon_.err();
    if (std::system("valgrind --version > /dev/null 2>&1") != 0)
      GTEST_SKIP() << "valgrind is not installed";
  }
  void TearDown() override { EXPECT_EQ(daemon_.stop(), 0) << daemon_.err(); }

  TemporaryCache cache_{"lines"};
  KvtriedProcess daemon_;
};

// Where a line is, for people: "area 2 + 1152".
std::string place_of(const SegmentLayout& layout, std::uint64_t line) {
  for (std::uint32_t i = 0; i < layout.area_count; ++i) {
    const AreaEntry& area = layout.areas[i];
    const std::uint64_t offset = line * kLineBytes;
    if (offset < area.offset || offset >= area.offset + area.stride * area.count) continue;
    return "area " + std::to_string(area.kind) + " + " + std::to_string(offset - area.offset);
  }
  return "superblock + " + std::to_string(line * kLineBytes);
}

TEST_F(WrittenLinesTest, HitsOfTwoProcessesShareTheTouchAlone) {
  const std::string fill = KVTRIE_TEST_OPERATIONS " " KVTRIE_TEST_PLUGIN " " + cache_.directory() +
                           " " + cache_.name() + " cache";
  ASSERT_EQ(std::system(fill.c_str()), 0);
  TracedWorker one(cache_);
  TracedWorker two(cache_);
  ASSERT_TRUE(one.says("ready") && two.says("ready"));
  // A tick for each, so that both touch.
  one.tell("100\n");
  ASSERT_TRUE(one.says("done"));
  two.tell("200\n");
  ASSERT_TRUE(two.says("done"));
  ASSERT_EQ(one.end(), 0);
  ASSERT_EQ(two.end(), 0);

  const Result<Segment> segment = open_segment(cache_.name(), Access::kReadOnly);
  ASSERT_TRUE(segment);
  ASSERT_EQ(one.deepest(), two.deepest());
  const std::uint64_t touched =
      static_cast<std::uint64_t>(
          reinterpret_cast<const std::byte*>(&segment->descriptor(one.deepest())) -
          reinterpret_cast<const std::byte*>(&segment->superblock())) /
      kLineBytes;
  const auto places = [&](const Lines& lines) {
    std::string text;
    for (const std::uint64_t line : lines)
      text += place_of(segment->layout(), line) + "; ";
    return text;
  };

  for (const TracedWorker* worker : {&one, &two}) {
    EXPECT_TRUE(worker->written(Phase::kFirstHit).contains(touched))
        << "the first hit in a tick touches";
    EXPECT_FALSE(worker->written(Phase::kSecondHit).contains(touched)) << "the second does not";
    EXPECT_FALSE(worker->written(Phase::kSecondHit).empty()) << "it writes its lease";
    EXPECT_TRUE(worker->read(Phase::kSecondHit).contains(touched));
    EXPECT_LE(worker->written(Phase::kFirstHit).size(), 8U)
        << places(worker->written(Phase::kFirstHit));
  }
  const Lines first = common(one.written(Phase::kFirstHit), two.written(Phase::kFirstHit));
  EXPECT_EQ(first, Lines{touched}) << places(first);
  for (const auto& [mine, theirs] : {std::pair{&one, &two}, std::pair{&two, &one}}) {
    for (const Phase phase : {Phase::kFirstHit, Phase::kSecondHit}) {
      const Lines written = common(mine->written(Phase::kSecondHit), theirs->written(phase));
      EXPECT_TRUE(written.empty()) << places(written);
      const Lines read = common(mine->written(Phase::kSecondHit), theirs->read(phase));
      EXPECT_TRUE(read.empty()) << "one reads what the other writes: " << places(read);
      const Lines read_first = common(mine->written(Phase::kFirstHit), theirs->read(phase));
      EXPECT_EQ(read_first, Lines{touched}) << places(read_first);
    }
  }
  // That common lines would be seen: publishing has some, the count of free pages for one.
  EXPECT_FALSE(common(one.written(Phase::kPublish), two.written(Phase::kPublish)).empty());
}

}  // namespace
}  // namespace kvtrie::test
