// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The hot operations, each some times between two requests to callgrind, which writes a file for
// each (count_instructions reads them):
//
//   valgrind --tool=callgrind --instr-atstart=no --collect-atstart=no count_operations PLUGIN
//
// One process, one thread, no coordinator; hash secret, clock and prompts are always the same, so
// the counts are, too. First it prints what they depend on.

#include <fmt/format.h>
#include <gnu/libc-version.h>
#include <sys/mman.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "coordinator/evictor.h"
#include "shm/namespace_table.h"
#include "shm/segment.h"
#include "shm/worker_table.h"
#include "tests/hot_path/counted_door.h"
#include "tests/hot_path/plugin_calls.h"

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kPages = 16384;
constexpr std::uint32_t kLongPages = 2048;
constexpr std::uint32_t kShortPages = 256;
constexpr std::uint32_t kBranchedPages = 512;
constexpr std::uint64_t kEvicted = 4096;

FileDescriptor nameless(std::uint64_t bytes) {
  FileDescriptor fd(::memfd_create("kvtrie-counted", MFD_CLOEXEC));
  if (!fd.open() || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    throw std::runtime_error("no memory");
  return fd;
}

// What a coordinator makes, in nameless memory.
class CountedCache {
 public:
  CountedCache() {
    geometry_.pages = kPages;
    geometry_.tokens_per_page = kTokensPerPage;
    geometry_.page_bytes = 64;
    geometry_.workers = 2;
    const std::uint64_t bytes = layout_of(geometry_).segment_bytes;
    segment_fd_ = nameless(bytes);
    pool_fd_ = nameless(pool_bytes(geometry_));
    SegmentIdentity identity;
    identity.cache_name = "counted";
    identity.cache_id[0] = 1;
    identity.hash_secret = 0x1234'5678'9ABC'DEF0ULL;
    identity.clock = ClockKind::kDriven;
    identity.tick_ns = 1'000'000;
    Result<Mapping> mapping = Mapping::map(segment_fd_.get(), bytes, Access::kReadWrite);
    if (!mapping) throw std::runtime_error("mapping");
    Result<Segment> built = Segment::build(std::move(*mapping), geometry_, identity);
    if (!built) throw std::runtime_error("segment");
    segment_ = std::make_unique<Segment>(std::move(*built));
    const NamespaceField field{"model", "hot path"};
    const Result<std::string> text = canonical_fields({&field, 1});
    if (!text || !NamespaceTable(*segment_).open(*text, "hot path"))
      throw std::runtime_error("namespace");
  }

  const Segment& segment() const { return *segment_; }
  kvtrie_worker attach(const PluginLibrary& library) const {
    Attachment grant;
    WorkerIdentity identity;
    identity.pid = static_cast<std::uint32_t>(::getpid());
    identity.start_time = 1;
    const Result<SlotGrant> given = WorkerTable(*segment_).give(identity);
    if (!given) throw std::runtime_error("no slot");
    grant.grant = *given;
    grant.segment = FileDescriptor(::dup(segment_fd_.get()));
    grant.pools.emplace_back(::dup(pool_fd_.get()));
    grant.segment_bytes = segment_->size_bytes();
    grant.pool_bytes = pool_bytes(geometry_);
    grant.cache_id[0] = segment_->superblock().cache_id[0];
    kvtrie_worker worker{};
    if (library.find<decltype(kvtrie_attach_counted)>("kvtrie_attach_counted")(grant, &worker) !=
        KVTRIE_OK) {
      throw std::runtime_error(library.api().last_error());
    }
    return worker;
  }

 private:
  Geometry geometry_;
  FileDescriptor segment_fd_;
  FileDescriptor pool_fd_;
  std::unique_ptr<Segment> segment_;
};

// `once` is done `times` times; each is `units` pages or calls. It has been done before, so nothing
// is first.
void count(const std::string& name, const char* unit, unsigned times, double units,
           const std::function<void()>& once) {
  once();
  once();
  CALLGRIND_START_INSTRUMENTATION;
  once();  // instrumented code is made anew
  CALLGRIND_ZERO_STATS;
  CALLGRIND_TOGGLE_COLLECT;
  for (unsigned i = 0; i < times; ++i)
    once();
  CALLGRIND_TOGGLE_COLLECT;
  const std::string label = fmt::format("{} {} {}", name, unit, times * units);
  CALLGRIND_DUMP_STATS_AT(label.c_str());
  CALLGRIND_STOP_INSTRUMENTATION;
}

// Caches the prompt in pages that stand in no order: all free pages are somebody's, and one after
// the other is given back.
void cache_scattered(const PluginCalls& calls, const Tokens& tokens) {
  kvtrie_sequence hoarder{};
  (void)calls.begin({}, hoarder);
  const auto pages = static_cast<std::uint32_t>(tokens.size() / kTokensPerPage);
  calls.allocate(hoarder, std::size_t{pages} * 2 * kTokensPerPage);
  kvtrie_sequence others{};  // has all others
  (void)calls.begin({}, others);
  for (std::uint32_t step = kPages; step > 0; step /= 2) {
    std::uint32_t have = 0;
    calls.must(calls.api().page_count(others, &have), "page_count");
    while (calls.api().allocate(others, std::size_t{have + step} * kTokensPerPage, nullptr) ==
           KVTRIE_OK)
      have += step;
  }
  kvtrie_sequence sequence{};
  (void)calls.begin(tokens, sequence);
  for (std::uint32_t i = 0; i < pages; ++i) {
    const std::uint32_t position =
        (i * 1597 % pages) * 2;  // 1597 and a power of two have no divisor in common
    calls.must(calls.api().give_back(hoarder, position, 1), "give_back");
    calls.allocate(sequence, std::size_t{i + 1} * kTokensPerPage);
  }
  calls.publish(sequence, tokens.size());
  std::vector<std::uint32_t> at(pages);
  calls.must(calls.api().get_pages(sequence, 0, pages, at.data()), "get_pages");
  for (std::uint32_t i = 1; i < pages; ++i) {
    if (at[i] == at[i - 1] + 1) throw std::runtime_error("scattered pages stand in a row");
  }
  for (const kvtrie_sequence each : {sequence, hoarder, others})
    calls.release(each);
}

// Behind each page a second one is cached later, so that neither neighbours nor hints lead on.
void branch_everywhere(const PluginCalls& calls, const Tokens& tokens) {
  for (std::size_t end = 0; end < tokens.size(); end += kTokensPerPage) {
    Tokens other(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(end));
    other.insert(other.end(), kTokensPerPage, static_cast<std::uint32_t>(end));
    calls.cache(other);
  }
}

void run(const char* plugin) {
  const PluginLibrary library(plugin);
  const CountedCache cache;
  const PluginCalls calls(library.api(), cache.attach(library));
  const auto prompt = &PluginCalls::prompt;

  const Tokens scattered = prompt(1, kLongPages);
  cache_scattered(calls, scattered);
  const Tokens branched = prompt(2, kBranchedPages);
  cache_scattered(calls, branched);
  branch_everywhere(calls, branched);
  const Tokens fresh = prompt(3, kLongPages);
  calls.cache(fresh);
  const Tokens shorter = prompt(4, kShortPages);
  calls.cache(shorter);
  const Tokens one(fresh.begin(), fresh.begin() + kTokensPerPage);
  const Tokens missed = prompt(5, kLongPages);

  count("begin_fresh", "page", 8, kLongPages, [&] { calls.hit(fresh); });
  count("begin_scattered", "page", 8, kLongPages, [&] { calls.hit(scattered); });
  count("begin_by_index", "page", 8, kBranchedPages, [&] { calls.hit(branched); });
  count("begin_miss", "call", 256, 1, [&] { calls.look_up(missed, 0); });
  count("lease_and_release", "call", 256, 1, [&] { calls.hit(one); });
  count("probe", "page", 8, kLongPages, [&] { calls.probe(fresh, kLongPages); });
  std::vector<std::uint64_t> hashes(kLongPages);
  count("hash_tokens", "page", 8, kLongPages, [&] { calls.hash(fresh, hashes); });
  count("probe_hashes", "call", 256, 1, [&] { calls.probe_hashes(hashes, kLongPages); });
  kvtrie_sequence parent{};
  (void)calls.begin(shorter, parent);
  count("fork_and_release", "call", 64, 1, [&] { calls.fork_and_release(parent); });
  calls.release(parent);

  std::vector<Tokens> prompts;
  for (std::uint32_t i = 0; i < 16; ++i)
    prompts.push_back(prompt(100 + i, kShortPages));
  std::size_t next = 0;
  count("allocate_publish_release", "page", 8, kShortPages,
        [&] { calls.cache(prompts.at(next++)); });

  for (std::uint32_t i = 0; i < 16; ++i)
    calls.cache(prompt(200 + i, kShortPages));
  Evictor evictor(cache.segment());
  const auto evict = [&](std::uint64_t wanted) {
    const EvictReport report = evictor.evict(
        wanted, [] { return false; }, [](double) {});
    if (report.evicted != wanted) throw std::runtime_error("evict: not as many as there are");
  };
  std::uint64_t wanted = 64;  // twice, then once to make the code, then what is counted
  unsigned turn = 0;
  count("evict", "page", 1, kEvicted, [&] { evict(++turn <= 3 ? wanted : kEvicted); });
}

}  // namespace
}  // namespace kvtrie::test

int main(int argc, char** argv) try {
  if (argc != 2) throw std::runtime_error("usage: count_operations PLUGIN");
  std::printf("compiler gcc %s\nlibc glibc %s\n", __VERSION__, ::gnu_get_libc_version());
  std::fflush(stdout);
  kvtrie::test::run(argv[1]);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "count_operations: %s\n", error.what());
  return 1;
}
