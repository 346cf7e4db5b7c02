// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/support/crash_world.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <limits>
#include <utility>

#include "coordinator/evictor.h"
#include "shm/namespace_table.h"
#include "shm/prefix_hash.h"
#include "shm/robust_mutex.h"
#include "shm/worker_table.h"

namespace kvtrie::test {
namespace {

constexpr std::uint64_t kPoolBytes = std::uint64_t{kWorldPages} * kWorldPageWords * 8;

FileDescriptor make_memory(const char* name, std::uint64_t bytes) {
  FileDescriptor fd(::memfd_create(name, MFD_CLOEXEC));
  if (!fd.open() || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    throw std::runtime_error("memfd_create");
  }
  return fd;
}

Mapping map_all(int fd, std::uint64_t bytes) {
  Result<Mapping> mapping = Mapping::map(fd, bytes, Access::kReadWrite);
  if (!mapping) throw std::runtime_error(mapping.error().what());
  return std::move(*mapping);
}

std::uint64_t word_of(std::uint64_t path_hash, std::size_t word) {
  return hash_bytes(path_hash, &word, sizeof word);
}

std::uint64_t path_hash(const Path& path, std::size_t pages) {
  return hash_bytes(0, path.data(), pages * sizeof path[0]);
}

}  // namespace

Paths prefixes_of(const Paths& paths) {
  Paths closed;
  for (const Path& path : paths) {
    for (std::size_t n = 1; n <= path.size(); ++n)
      closed.insert(Path(path.begin(), path.begin() + static_cast<std::ptrdiff_t>(n)));
  }
  return closed;
}

std::vector<std::uint32_t> tokens_of(const Path& path) {
  std::vector<std::uint32_t> tokens;
  tokens.reserve(path.size() * kWorldTokens);
  for (const std::uint32_t page : path) {
    const std::uint32_t number = is_half(page) ? page - half(0) : page;
    for (std::uint32_t i = 0; i < (is_half(page) ? kWorldTokens / 2 : kWorldTokens); ++i)
      tokens.push_back(number * 1000 + i);
  }
  return tokens;
}

void compute_page(std::span<std::uint64_t> words, const Path& path, std::size_t pages) {
  const std::uint64_t hash = path_hash(path, pages);
  for (std::size_t w = 0; w < words.size(); ++w) words[w] = word_of(hash, w);
}

std::string to_text(const Path& path) { return fmt::format("{{{}}}", fmt::join(path, ",")); }

View::View(int segment_fd, int pool_fd) {
  const Result<std::uint64_t> bytes = object_bytes(segment_fd);
  if (!bytes) throw std::runtime_error(bytes.error().what());
  Result<Segment> opened = Segment::open(map_all(segment_fd, *bytes));
  if (!opened) throw Violation(opened.error().what());
  segment_ = std::make_unique<Segment>(std::move(*opened));
  pool_ = std::make_unique<Mapping>(map_all(pool_fd, kPoolBytes));
}

View::View(Segment segment, int pool_fd)
    : segment_(std::make_unique<Segment>(std::move(segment))),
      pool_(std::make_unique<Mapping>(map_all(pool_fd, kPoolBytes))) {}

std::span<std::uint64_t> View::page_words(PageIndex page) const {
  return {reinterpret_cast<std::uint64_t*>(pool_->data()) + page.value * kWorldPageWords,
          kWorldPageWords};
}

std::span<std::byte> View::pool_bytes() const { return {pool_->data(), kPoolBytes}; }

NamespaceRef View::name_space() const {
  return {{0}, segment_->name_space({0}).fields_hash.load()};
}

std::uint32_t Engine::begin(Sequence& sequence, const Path& path, const SequenceOptions& options) {
  BeginReport report;
  const Status status = worker_.begin(view_.name_space(), tokens_of(path), options, sequence, report);
  if (!status) throw Violation(fmt::format("begin {}: {}", to_text(path), status.what()));
  return report.cached_pages;
}

Status Engine::allocate(Sequence& sequence, std::size_t pages, std::int64_t wait_ns) {
  return worker_.allocate(sequence, pages * kWorldTokens, wait_ns);
}

void Engine::compute(Sequence& sequence, const Path& path) {
  const std::size_t shared = sequence.shared.size();
  for (std::size_t i = 0; i < sequence.own.size() && shared + i < path.size(); ++i) {
    const OwnPage& own = sequence.own[i];
    if (own.borrowed || (own.state != OwnState::kPrivate && own.state != OwnState::kPending)) continue;
    compute_page(view_.page_words(own.page), path, shared + i + 1);
  }
}

PublishReport Engine::publish(Sequence& sequence, std::size_t pages) {
  PublishReport report;
  const Status status = worker_.publish(sequence, pages * kWorldTokens, report);
  if (!status) throw Violation(fmt::format("publish: {}", status.what()));
  return report;
}

PublishReport Engine::publish_incomplete(Sequence& sequence, const Path& path) {
  PublishReport report;
  const Status status = worker_.publish_incomplete(sequence, tokens_of(path).size(), report);
  if (!status) throw Violation(fmt::format("publish_incomplete: {}", status.what()));
  return report;
}

void Engine::copy(const PageCopy& copy) {
  std::ranges::copy(view_.page_words(copy.from), view_.page_words(copy.to).begin());
}

Status Engine::fork(Sequence& parent, Sequence& child) {
  std::vector<PageCopy> copies;
  const Status status = worker_.fork(parent, 0, 0, child, copies);
  for (const PageCopy& each : copies) copy(each);
  return status;
}

Status Engine::prepare_batch(std::span<Sequence> sequences, std::span<const Path> paths, std::int64_t wait_ns) {
  std::vector<std::vector<std::uint32_t>> tokens;
  for (const Path& path : paths) tokens.push_back(tokens_of(path));
  std::vector<BatchItem> items(paths.size());
  for (std::size_t i = 0; i < items.size(); ++i) {
    items[i].name_space = view_.name_space();
    items[i].tokens = tokens[i];
    items[i].total_tokens = tokens[i].size();
    items[i].sequence = &sequences[i];
  }
  return worker_.prepare_batch(items, wait_ns);
}

void Engine::copy_due(Sequence& sequence) {
  const std::optional<PageCopy> due = worker_.copy_due(sequence);
  if (!due) return;
  copy(*due);
  worker_.copied(sequence);
}

std::uint32_t Engine::prepare(Sequence& sequence, const Path& path, std::size_t spare) {
  const std::uint32_t hit = begin(sequence, path);
  if (const Status status = allocate(sequence, path.size() + spare); !status) {
    throw Violation(fmt::format("allocate {}: {}", to_text(path), status.what()));
  }
  compute(sequence, path);
  return hit;
}

void Engine::cache(const Path& path) {
  Sequence sequence;
  prepare(sequence, path);
  const PublishReport report =
      is_half(path.back()) ? publish_incomplete(sequence, path) : publish(sequence, path.size());
  if (report.pages_private != 0) {
    throw Violation(fmt::format("publish {}: a page stayed private", to_text(path)));
  }
  release(sequence);
}

CrashWorld::CrashWorld() {
  Geometry geometry;
  geometry.pages = kWorldPages;
  geometry.tokens_per_page = kWorldTokens;
  geometry.page_bytes = kWorldPageWords * 8;
  geometry.workers = kWorldWorkers;
  geometry.leases_per_worker = 48;
  geometry.namespaces = 2;
  geometry.stripes = 2;
  const std::uint64_t bytes = layout_of(geometry).segment_bytes;
  segment_fd_ = make_memory("kvtrie-crash-segment", bytes);
  pool_fd_ = make_memory("kvtrie-crash-pool", kPoolBytes);
  queue_fd_ = make_memory("kvtrie-crash-queue", CopyQueue::size_bytes(geometry));
  SegmentIdentity identity;
  identity.cache_name = "crash";
  identity.hash_secret = 0x1234'5678'9ABC'DEF0ULL;
  identity.cache_id[0] = 1;
  identity.clock = ClockKind::kDriven;
  identity.device = DeviceKind::kQueued;
  identity.tick_ns = 1'000'000;
  Result<Segment> built = Segment::build(map_all(segment_fd_.get(), bytes), geometry, identity);
  if (!built) throw std::runtime_error(built.error().what());
  view_ = std::make_unique<View>(std::move(*built), pool_fd_.get());
  if (!NamespaceTable(segment()).open("model=test\n", "test"))
    throw std::runtime_error("namespace");
  const WorkerTable table(segment());
  for (std::uint16_t i = 1; i < kWorldWorkers; ++i) {  // the last slot stays free
    const Result<SlotGrant> grant =
        table.give({static_cast<std::uint32_t>(::getpid()), 1, 0, WorkerRole::kWorker, "test", 0});
    if (!grant || !table.confirm(*grant)) throw std::runtime_error("worker slot");
  }
  Mapping queue = map_all(queue_fd_.get(), CopyQueue::size_bytes(geometry));
  queue_bytes_ = {queue.data(), queue.size_bytes()};
  queue_ = std::make_unique<CopyQueue>(CopyQueue::build(std::move(queue), geometry, identity.cache_id));
  blank_ = copy_bytes();
}

void CrashWorld::reset() {
  opened_.clear();
  engines_.clear();
  put_bytes(blank_);
}

std::array<std::span<std::byte>, 3> CrashWorld::bytes() const {
  return {std::span(segment().data(), segment().size_bytes()), view_->pool_bytes(), queue_bytes_};
}

WorldBytes CrashWorld::copy_bytes() const {
  WorldBytes copy;
  for (std::size_t i = 0; i < copy.size(); ++i) copy[i].assign(bytes()[i].begin(), bytes()[i].end());
  return copy;
}

void CrashWorld::put_bytes(const WorldBytes& copy) {
  for (std::size_t i = 0; i < copy.size(); ++i) std::memcpy(bytes()[i].data(), copy[i].data(), copy[i].size());
}

std::uint64_t CrashWorld::hash_of_bytes() const {
  constexpr int kFirstOfMarks = std::numeric_limits<int>::max() - 1;  // glibc's: inconsistent, not recoverable
  std::vector<std::pair<int*, int>> owners;
  for (std::uint32_t i = 0; i < segment().geometry().stripes; ++i) {
    auto& mutex = segment().stripe(i).mutex.__data;
    const bool had = (static_cast<std::uint32_t>(mutex.__lock) & FUTEX_TID_MASK) != 0;
    if (had || mutex.__owner <= 0 || mutex.__owner >= kFirstOfMarks) continue;
    owners.emplace_back(&mutex.__owner, std::exchange(mutex.__owner, 1));
  }
  std::vector<std::pair<std::uint32_t, std::uint64_t>> processes;
  for (std::uint32_t i = 0; i < segment().slot_count(); ++i) {
    WorkerRecord& record = segment().worker({static_cast<std::uint16_t>(i)});
    processes.emplace_back(record.pid.exchange(0), record.start_time.exchange(0));
  }
  std::uint64_t hash = 0;
  for (const std::span<const std::byte> object : bytes()) hash = hash_bytes(hash, object.data(), object.size());
  for (const auto& [owner, thread] : owners) *owner = thread;
  for (std::uint32_t i = 0; i < segment().slot_count(); ++i) {
    WorkerRecord& record = segment().worker({static_cast<std::uint16_t>(i)});
    record.pid.store(processes[i].first);
    record.start_time.store(processes[i].second);
  }
  return hash;
}

Engine& CrashWorld::engine(std::uint16_t slot) {
  std::unique_ptr<Engine>& engine = engines_[slot];
  if (!engine) engine = std::make_unique<Engine>(*view_, WorkerId{slot});
  return *engine;
}

void CrashWorld::tick() { segment().superblock().driven_tick.fetch_add(1); }

void CrashWorld::cache(std::uint16_t slot, const Path& path) {
  tick();
  engine(slot).cache(path);
}

OpenSequence& CrashWorld::open(std::uint16_t slot, const Path& path, std::size_t spare) {
  tick();
  OpenSequence& open = opened_.emplace_back(OpenSequence{WorkerId{slot}, path, {}});
  engine(slot).prepare(open.sequence, path, spare);
  return open;
}

PageIndex CrashWorld::page_of(const Path& path) {
  Sequence sequence;
  if (engine(2).begin(sequence, path) != path.size()) {
    throw Violation(fmt::format("{} is not cached", to_text(path)));
  }
  const PageIndex page = sequence.shared.back().page_index();
  engine(2).release(sequence);
  return page;
}

Handle CrashWorld::handle_of(const Path& path) {
  const PageIndex page = page_of(path);
  return Handle::page(page, PageTable(segment()).state(page));
}

void CrashWorld::die_holding_stripes() {
  const pid_t pid = ::fork();
  if (pid == 0) {
    const View mine(segment_fd(), pool_fd());
    for (std::uint32_t i = 0; i < mine.segment().geometry().stripes; ++i) {
      if (!RobustMutex::acquire(mine.segment().stripe(i).mutex)) ::_exit(1);
    }
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status)) {
    throw std::runtime_error("the child did not die with the locks");
  }
}

std::uint64_t CrashWorld::evict(std::uint64_t wanted) {
  Evictor evictor(segment());
  return evictor
      .evict(
          wanted, [] { return false; }, [](double) {})
      .evicted;
}

void visit_stripes(const Segment& segment, WorkerId me) {
  const StripeIndex index(segment);
  for (std::uint32_t i = 0; i < segment.geometry().stripes; ++i) {
    IndexPlace place{};
    place.stripe = i;
    if (const Status status = index.lock(me, place); !status) {
      throw Violation(fmt::format("stripe {}: {}", i, status.what()));
    }
    index.unlock(place);
  }
}

}  // namespace kvtrie::test
