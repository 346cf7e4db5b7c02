// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The commands of kvtrie that look, in text and as JSON, on an object in /dev/shm that is damaged before and between
// them.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "shm/shared_object.h"
#include "shm/verify.h"
#include "tests/fuzz/damage.h"
#include "tests/fuzz/finding.h"
#include "tests/fuzz/fuzz_targets.h"
#include "tests/fuzz/world.h"
#include "tools/kvtrie/cli.h"

namespace kvtrie::fuzz {
namespace {

constexpr std::uint32_t kCallsMax = 8;

// The world's segment under a name, as long as an input runs: what a crash leaves goes with the next run of its
// process id.
class NamedCopy {
 public:
  NamedCopy() : name_("fuzz-" + std::to_string(::getpid())), path_("/dev/shm/" + segment_object_name(name_)) {
    fd_ = FileDescriptor(::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    const Segment& segment = World::get().segment();
    const auto bytes = static_cast<std::size_t>(segment.size_bytes());
    require(fd_.open() && ::pwrite(fd_.get(), segment.data(), bytes, 0) == static_cast<ssize_t>(bytes), "a copy");
  }
  ~NamedCopy() { ::unlink(path_.c_str()); }
  NamedCopy(const NamedCopy&) = delete;
  NamedCopy& operator=(const NamedCopy&) = delete;

  const std::string& name() const { return name_; }
  int fd() const { return fd_.get(); }

 private:
  std::string name_;
  std::string path_;
  FileDescriptor fd_;
};

std::vector<std::string> some_command(Input& input) {
  const std::string page = std::to_string(input.byte() % 2 == 0 ? input.below(24) : input.below(kPages + 2));
  switch (input.below(14)) {
    case 0:
      return {"status"};
    case 1:
      return {"workers"};
    case 2:
      return {"workers", "--leases"};
    case 3:
      return {"workers", "--worker", std::to_string(input.below(7)), "--leases"};
    case 4:
      return {"namespaces"};
    case 5:
      return {"tree"};
    case 6:
      return {"tree", "--depth", "100", "--limit", "100000"};
    case 7:
      return {"tree", "--prefix", "17,18,19,20,33,34", "--min-pages", "1"};
    case 8:
      return {"tree", "--below", page, "--leased"};
    case 9:
      return {"tree", "--namespace", "fuzz", "--worker", "2", "--state", "live"};
    case 10:
      return {"page", page};
    case 11:
      return {"page", page, "--tokens"};
    case 12:
      return {"pins"};
    default:
      return {"verify", "--at-rest"};
  }
}

void run_command(std::vector<std::string> words, const std::string& cache, bool json) {
  words.insert(words.begin(), "kvtrie");
  words.insert(words.end(), {"--cache", cache, "--dir", "/nonexistent"});
  if (json) words.emplace_back("--json");
  std::vector<const char*> argv;
  for (const std::string& word : words)
    argv.push_back(word.c_str());
  const inspect::Outcome outcome = inspect::run_cli(static_cast<int>(argv.size()), argv.data(), {});
  require(!outcome.out.empty() || !outcome.err.empty(), "a command says nothing");
  if (json) require(nlohmann::json::accept(outcome.out), "what says to be JSON is none");
}

}  // namespace

void fuzz_kvtrie(const std::uint8_t* data, std::size_t size) {
  World& world = World::get();
  world.reset();
  Input input(data, size);
  Damage damage;
  const NamedCopy copy;
  Result<Mapping> mapping = Mapping::map(copy.fd(), world.segment().size_bytes(), Access::kReadWrite);
  require(mapping.has_value(), "map");
  Result<Segment> opened = Segment::open(std::move(*mapping));
  require(opened.has_value(), "open");
  for (std::uint32_t i = 0; i < kCallsMax && !input.ended(); ++i) {
    for (std::uint32_t n = input.below(6); n > 0; --n)
      damage_some(input, *opened, damage);
    if (input.byte() % 32 == 0) {  // the superblock, sealed or not
      auto* const words = reinterpret_cast<std::uint64_t*>(opened->data());
      words[input.below(offsetof(Superblock, constant_checksum) / 8)] = plausible_word(input, *opened);
      Superblock& block = opened->superblock();
      if (input.byte() % 2 == 0) block.constant_checksum = constant_checksum(block);
    }
    if (input.byte() % 64 == 0) {
      require(::ftruncate(copy.fd(), input.below(65536)) == 0, "truncate");
      return run_command(some_command(input), copy.name(),
                         input.byte() % 2 == 0);  // the rest would be a SIGBUS of ours
    }
    run_command(some_command(input), copy.name(), input.byte() % 2 == 0);
  }
}

}  // namespace kvtrie::fuzz
