// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A small cache for tests that kill: segment, pool and copy queue in shared memory without a name, so that a
// forked victim maps them itself (a mapping is not inherited) and the survivors go on in this
// process. reset() puts their bytes back to those of a new cache, which takes microseconds,
// so every instruction of an operation can have a new one.
//
// What is cached is told by numbers: path {1, 2} is the page of number 2 below that of number 1, and {1, half(2)} an
// incomplete page with the first tokens of that. Tokens and bytes of a page are functions of its path, so a wrong page is
// always seen.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "shm/copy_queue.h"
#include "shm/segment.h"
#include "worker_plugin/worker.h"

namespace kvtrie::test {

using Path = std::vector<std::uint32_t>;
using Paths = std::set<Path>;

inline constexpr std::uint32_t kWorldPages = 80;  // more than one chunk of the free bitmap
inline constexpr std::uint32_t kWorldTokens = 4;
inline constexpr std::uint32_t kWorldPageWords = 4;
inline constexpr std::uint32_t kWorldPageBytes = kWorldPageWords * 8;
inline constexpr std::uint16_t kWorldWorkers = 4;

// Only as the last of a path.
constexpr std::uint32_t half(std::uint32_t number) { return number + 10'000; }
constexpr bool is_half(std::uint32_t number) { return number >= 10'000; }

// What must not be. In a victim it ends the process, which is reported as such.
class Violation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// All prefixes of the paths, themselves too.
Paths prefixes_of(const Paths& paths);
std::vector<std::uint32_t> tokens_of(const Path& path);
std::string to_text(const Path& path);
// What an engine computes for the last of the first `pages` pages of the path.
void compute_page(std::span<std::uint64_t> words, const Path& path, std::size_t pages);

// One process's mapping.
class View {
 public:
  View(int segment_fd, int pool_fd);
  explicit View(Segment segment, int pool_fd);

  const Segment& segment() const { return *segment_; }
  std::span<std::uint64_t> page_words(PageIndex page) const;
  std::span<std::byte> pool_bytes() const;
  // Namespace 0, which the world has open.
  NamespaceRef name_space() const;

 private:
  std::unique_ptr<Segment> segment_;
  std::unique_ptr<Mapping> pool_;
};

// One worker of a process: calls, and the bytes that an engine would compute. Throws Violation
// where a call answers what it must not.
class Engine {
 public:
  Engine(const View& view, WorkerId slot) : view_(view), worker_(view.segment(), slot) {}

  Worker& worker() { return worker_; }
  std::uint32_t begin(Sequence& sequence, const Path& path,
                      const SequenceOptions& options = {});  // pages hit
  Status allocate(Sequence& sequence, std::size_t pages, std::int64_t wait_ns = 0);
  void compute(Sequence& sequence, const Path& path);
  PublishReport publish(Sequence& sequence, std::size_t pages);
  // Of a path that ends with a half page.
  PublishReport publish_incomplete(Sequence& sequence, const Path& path);
  Status fork(Sequence& parent, Sequence& child);  // with the copies
  // Begins and allocates the paths in one call.
  Status prepare_batch(std::span<Sequence> sequences, std::span<const Path> paths, std::int64_t wait_ns = 0);
  // What the sequence copies before it writes on.
  void copy_due(Sequence& sequence);
  void release(Sequence& sequence) { worker_.release(sequence); }
  // Begins, allocates and computes `path`, with `spare` pages whose tokens are unknown. Returns
  // pages hit.
  std::uint32_t prepare(Sequence& sequence, const Path& path, std::size_t spare = 0);
  // The whole life of a request.
  void cache(const Path& path);

 private:
  void copy(const PageCopy& copy);

  const View& view_;
  Worker worker_;
};

// A sequence that a survivor has open.
struct OpenSequence {
  WorkerId slot;
  Path path;
  Sequence sequence;
};

// All that processes share of a world: segment, pool, copy queue.
using WorldBytes = std::array<std::vector<std::byte>, 3>;

class CrashWorld {
 public:
  CrashWorld();
  void reset();
  // The bytes as they are, and back to them; the survivors of this process stay as they are.
  WorldBytes copy_bytes() const;
  void put_bytes(const WorldBytes& bytes);
  // Equal for equal bytes, and for no others that a test will meet. Which thread had a lock that nobody has any more
  // makes no difference: whoever takes it is told by the lock's word, which the kernel marked. Nor does which process has
  // a slot: it is dead by then.
  std::uint64_t hash_of_bytes() const;
  std::array<std::span<std::byte>, 3> bytes() const;

  const View& view() const { return *view_; }
  const Segment& segment() const { return view_->segment(); }
  int segment_fd() const { return segment_fd_.get(); }
  int pool_fd() const { return pool_fd_.get(); }
  int queue_fd() const { return queue_fd_.get(); }
  // The device is a queued one, though engines write their pages themselves, too, but where a story says otherwise.
  const CopyQueue& queue() const { return *queue_; }

  Engine& engine(std::uint16_t slot);
  // A tick later, `slot` caches the path.
  void cache(std::uint16_t slot, const Path& path);
  // Begun, allocated and computed, kept open.
  OpenSequence& open(std::uint16_t slot, const Path& path, std::size_t spare = 0);
  std::deque<OpenSequence>& opened() { return opened_; }
  void tick();
  // Of a path that is cached.
  PageIndex page_of(const Path& path);
  Handle handle_of(const Path& path);
  // A child that takes the locks of all stripes and dies with them.
  void die_holding_stripes();
  std::uint64_t evict(std::uint64_t wanted);

 private:
  FileDescriptor segment_fd_;
  FileDescriptor pool_fd_;
  FileDescriptor queue_fd_;
  std::unique_ptr<View> view_;
  std::unique_ptr<CopyQueue> queue_;
  std::span<std::byte> queue_bytes_;
  WorldBytes blank_;
  std::map<std::uint16_t, std::unique_ptr<Engine>> engines_;
  std::deque<OpenSequence> opened_;
};

// Locks, and repairs where the last owner died, every stripe, as an announcing worker does.
void visit_stripes(const Segment& segment, WorkerId me);

}  // namespace kvtrie::test
