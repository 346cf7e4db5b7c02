// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Two workers of one process call what there is to call, in an order that the input says, while the segment is
// damaged before and between the calls; or by another thread, all the time. An evictor and a reaper run in between,
// so that pages have several lives.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "coordinator/evictor.h"
#include "shm/page_table.h"
#include "shm/prefix_hash.h"
#include "shm/recovery.h"
#include "shm/worker_table.h"
#include "tests/fuzz/damage.h"
#include "tests/fuzz/finding.h"
#include "tests/fuzz/fuzz_targets.h"
#include "tests/fuzz/world.h"

namespace kvtrie::fuzz {
namespace {

constexpr std::size_t kSequences = 5;
constexpr std::uint32_t kCallsMax = 64;
constexpr std::uint32_t kPagesMaxOfOne = 7;
constexpr std::int64_t kWaitNs = 200'000;

// A sequence and what its engine knows of it.
struct Request {
  Sequence sequence;
  Worker* worker = nullptr;  // null: not open
  std::uint16_t name_space = 0;
  std::vector<std::uint32_t> tokens;
};

class Script {
 public:
  Script(const std::uint8_t* data, std::size_t size)
      : world_(World::get()),
        input_(data, size),
        workers_{Worker(world_.segment(), {1}), Worker(world_.segment(), {3})} {}

  void run() {
    const bool beside = input_.byte() % 8 == 1;
    const std::vector<std::pair<std::uint64_t, std::uint64_t>> words =
        beside ? words_for_thread() : decltype(words)();
    std::atomic<bool> over{false};
    std::thread scribbler;
    if (beside) {
      scribbler = std::thread([&] {
        Damage ignored;
        while (!over.load(std::memory_order_relaxed)) {
          for (const auto& [word, value] : words)
            damage_word(world_.segment(), word, value, ignored);
        }
      });
    }
    for (std::uint32_t i = 0; i < kCallsMax && !input_.ended(); ++i)
      call();
    for (Request& request : requests_) {
      if (request.worker != nullptr) release(request);
    }
    over.store(true);
    if (scribbler.joinable()) scribbler.join();
  }

 private:
  // Any of them may be stored at any time from now on. Not the links and the kind of a lock: nothing can be done
  // against a store within the C library's unlock (README.md).
  std::vector<std::pair<std::uint64_t, std::uint64_t>> words_for_thread() {
    exact_ = false;
    const Segment& segment = world_.segment();
    const auto word_of = [&](const void* field) {
      return static_cast<std::uint64_t>(static_cast<const std::byte*>(field) - segment.data()) / 8;
    };
    const std::uint64_t stripes = word_of(&segment.stripe(0));
    const std::uint64_t stripes_end = stripes + sizeof(StripeRecord) / 8 * segment.geometry().stripes;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> words;
    for (std::uint32_t i = input_.below(8) + 1; i > 0; --i) {
      std::uint64_t word = input_.below(static_cast<std::uint32_t>(segment.size_bytes() / 8));
      if (const std::uint8_t where = input_.byte() % 4; where == 0) {
        word = stripes + word % (stripes_end - stripes);
      } else if (where == 1) {
        word = word_of(&segment.descriptor({0})) + word % (segment.layout().descriptor_stride / 8 * 24);
      }
      const bool lock = word >= stripes && word < stripes_end;
      const std::uint64_t in_lock = (word - stripes) % (sizeof(StripeRecord) / 8);
      if (lock && in_lock >= offsetof(pthread_mutex_t, __data.__kind) / 8 && in_lock < sizeof(pthread_mutex_t) / 8) {
        continue;
      }
      words.emplace_back(word, plausible_word(input_, segment));
    }
    return words;
  }

  Path some_path() {
    Path path;
    for (std::uint32_t i = input_.below(6); i > 0; --i)
      path.push_back(1 + input_.below(6));
    return path;
  }

  Request* some_request(bool open) {
    const std::uint32_t first = input_.below(kSequences);
    for (std::size_t i = 0; i < kSequences; ++i) {
      Request& request = requests_[(first + i) % kSequences];
      if ((request.worker != nullptr) == open) return &request;
    }
    return nullptr;
  }

  SequenceOptions some_options() {
    const std::uint8_t bits = input_.byte();
    SequenceOptions options;
    options.read = (bits & 7) != 1;
    options.publish = (bits & 7) != 2;
    options.partial = (bits & 8) != 0;
    options.retention_ticks = (bits & 16) != 0 ? 3U : 0U;
    options.priority = bits >> 5;
    return options;
  }

  void call() {
    switch (input_.below(24)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return damage_some(input_, world_.segment(), damage_);
      case 4:
      case 5:
      case 6:
        return begin();
      case 7:
      case 8:
        return with_open([&](Request& r) { allocate(r, input_.below(kPagesMaxOfOne * kTokens)); });
      case 9:
      case 10:
        return with_open([&](Request& r) { publish(r); });
      case 11:
        return with_open([&](Request& r) { publish_incomplete(r); });
      case 12:
        return with_open(
            [&](Request& r) { (void)r.worker->give_back(r.sequence, input_.below(8), input_.below(4)); });
      case 13:
        return with_open([&](Request& r) { release(r); });
      case 14:
        return with_open([&](Request& r) { fork(r); });
      case 15:
        return with_open([&](Request& r) { wait(r); });
      case 16:
        return batch();
      case 17:
        return probe();
      case 18:
        return with_open([&](Request& r) { append(r); });
      case 19:
        return with_open([&](Request& r) { copy_due(r); });
      case 20:
      case 21:
        world_.segment().superblock().driven_tick.fetch_add(1);
        (void)evictor_.evict(
            input_.below(20), [] { return false; }, [](double) {},
            {static_cast<EvictChoice::Of>(input_.below(3)), {static_cast<std::uint16_t>(input_.below(4))}});
        return;
      case 22: {
        const WorkerTable table(world_.segment());
        (void)reap_slot(world_.segment(), {2}, table.word({2}), true);
        return;
      }
      default:
        return with_open([&](Request& r) { r.worker->leave_copy_to_caller(r.sequence); });
    }
  }

  template <typename Work>
  void with_open(Work work) {
    if (Request* const request = some_request(true)) work(*request);
  }

  // What a match must be, called at once after it. `first`: positions that were matched before, and damaged since
  // perhaps.
  void check_match(const Request& request, std::uint32_t first, std::uint32_t cached, std::uint32_t partial) const {
    const Sequence& sequence = request.sequence;
    require(cached == sequence.shared.size() && cached * kTokens <= request.tokens.size(),
            "more was matched than there is");
    require(sequence.published == cached && sequence.linked == cached, "what was matched is not published");
    std::vector<std::uint32_t> pages;
    for (std::uint32_t p = 0; p < cached; ++p) {
      const Handle page = sequence.shared[p];
      require(page.is_page() && world_.segment().has(page.page_index()), "a matched page is out of range");
      pages.push_back(page.page_index().value);
      if (!exact_ || !damage_.leaves_hits_true() || (p < first && !damage_.leaves_leases_true())) continue;
      require(PageTable(world_.segment()).state(page.page_index()).readable(), "a matched page is not Live");
      require(world_.has_bytes(request.name_space, request.tokens, p, kTokens, page.page_index()),
              "wrong bytes in a hit");
    }
    std::ranges::sort(pages);
    const bool links_bend = damage_.parents && damage_.depths;
    if (exact_ && damage_.leaves_owners_true() && !links_bend)
      require(std::ranges::adjacent_find(pages) == pages.end(), "a page twice in one match");
    require(partial <= kTokens, "more than a page was matched in part");
    if (!sequence.source.any()) return;
    require(world_.segment().has(sequence.source.page.page_index()), "a source is out of range");
    if (exact_ && damage_.leaves_hits_true() && (first == 0 || damage_.leaves_leases_true())) {
      require(
          world_.has_bytes(request.name_space, request.tokens, cached, partial, sequence.source.page.page_index()),
          "wrong bytes in a partial hit");
    }
  }

  // What an engine may write into: in range, its own, nobody else's. Then it writes.
  void compute(const Request& request) {
    const Sequence& sequence = request.sequence;
    for (auto p = static_cast<std::uint32_t>(sequence.shared.size()); p < sequence.positions(); ++p) {
      const OwnPage& own = sequence.own_at(p);
      if (own.state == OwnState::kGone || own.borrowed) continue;
      require(world_.segment().has(own.page), "an own page is out of range");
      if (p < sequence.published || own.state == OwnState::kIncomplete || own.state == OwnState::kLive) continue;
      if (exact_ && damage_.leaves_owners_true()) {
        const StateWord word = PageTable(world_.segment()).state(own.page);
        require(!word.well_formed() || (word.owned() && word.owner() == request.worker->slot()),
                "an own page is somebody else's");
        for (const Request& other : requests_) {
          if (other.worker == nullptr || &other == &request) continue;
          for (std::uint32_t q = 0; q < other.sequence.positions(); ++q) {
            if (other.sequence.page_at(q) != own.page) continue;
            const bool batch = other.sequence.batch && other.sequence.batch == sequence.batch;
            const bool leased = q < other.sequence.published;
            require(batch || (leased && !damage_.leaves_leases_true()), "a page of two sequences");
          }
        }
      }
      world_.compute(request.name_space, request.tokens, p, own.page);
    }
  }

  void begin() {
    Request* const request = some_request(false);
    if (request == nullptr) return;
    Worker& worker = workers_[input_.byte() % 2];
    request->name_space = static_cast<std::uint16_t>(input_.byte() % 4 == 0 ? 1 : 0);
    request->tokens = tokens_of(some_path());
    BeginReport report;
    if (!worker.begin(world_.name_space(request->name_space), request->tokens, some_options(), request->sequence,
                      report)) {
      require(request->sequence.shared.empty() && request->sequence.lease_slot == kNoSlot,
              "a failed begin holds something");
      return;
    }
    request->worker = &worker;
    check_match(*request, 0, report.cached_pages, report.partial_tokens);
    require(report.pending_pages <= kPages, "more is pending than there are pages");
  }

  void allocate(Request& request, std::uint32_t tokens) {
    (void)request.worker->allocate(request.sequence, request.tokens.size() + tokens,
                                   input_.byte() % 8 == 0 ? kWaitNs : 0);
    copy_due(request);
    compute(request);
  }

  void publish(Request& request) {
    PublishReport report;
    compute(request);
    (void)request.worker->publish(request.sequence, input_.below(8 * kTokens), report);
    require(report.published <= request.sequence.positions(), "more was published than there is");
  }

  void publish_incomplete(Request& request) {
    PublishReport report;
    compute(request);
    (void)request.worker->publish_incomplete(request.sequence, input_.below(8 * kTokens), report);
    require(report.incomplete_tokens <= kTokens, "more tokens than a page has");
  }

  void release(Request& request) {
    request.worker->release(request.sequence);
    request.worker = nullptr;
  }

  void fork(Request& parent) {
    Request* const child = some_request(false);
    if (child == nullptr) return;
    std::vector<PageCopy> copies;
    copy_due(parent);
    if (!parent.worker->fork(parent.sequence, 1, input_.byte() % 8 == 0 ? kWaitNs : 0, child->sequence, copies))
      return;
    child->worker = parent.worker;
    child->name_space = parent.name_space;
    child->tokens = parent.tokens;
    for (const PageCopy& one : copies)
      copy(one);
  }

  void copy(const PageCopy& one) {
    require(world_.segment().has(one.from) && world_.segment().has(one.to), "a copy is out of range");
    std::memmove(world_.page_bytes(one.to).data(), world_.page_bytes(one.from).data(), kPageBytes);
  }

  void copy_due(Request& request) {
    const std::optional<PageCopy> due = request.worker->copy_due(request.sequence);
    if (!due) return;
    copy(*due);
    request.worker->copied(request.sequence);
  }

  void wait(Request& request) {
    if (!request.sequence.own.empty()) return;
    BeginReport report;
    const auto before = request.sequence.shared.size();
    (void)request.worker->wait_for_pending(request.sequence, input_.byte() % 4 == 0 ? kWaitNs : 0, report);
    require(request.sequence.shared.size() >= before, "a wait lost pages");
    check_match(request, static_cast<std::uint32_t>(before),
                static_cast<std::uint32_t>(request.sequence.shared.size()), report.partial_tokens);
  }

  void append(Request& request) {
    const std::vector<std::uint32_t> more = tokens_of({1 + input_.below(6)});
    const std::size_t count = 1 + input_.below(kTokens);
    request.tokens.insert(request.tokens.end(), more.begin(), more.begin() + static_cast<std::ptrdiff_t>(count));
    request.worker->append(request.sequence, std::span(more).first(count));
  }

  void batch() {
    std::array<BatchItem, 3> items;
    std::array<Request*, 3> of{};
    std::size_t count = 0;
    Worker& worker = workers_[input_.byte() % 2];
    for (Request& request : requests_) {
      if (request.worker != nullptr || count == items.size()) continue;
      request.name_space = 0;
      request.tokens = tokens_of(some_path());
      items[count].name_space = world_.name_space(0);
      items[count].tokens = request.tokens;
      items[count].options = some_options();
      items[count].total_tokens = request.tokens.size() + input_.below(2 * kTokens);
      items[count].sequence = &request.sequence;
      of[count++] = &request;
    }
    if (!worker.prepare_batch(std::span(items).first(count), input_.byte() % 8 == 0 ? kWaitNs : 0)) return;
    for (std::size_t i = 0; i < count; ++i) {
      of[i]->worker = &worker;
      copy_due(*of[i]);
    }
    for (std::size_t i = 0; i < count; ++i)
      compute(*of[i]);
  }

  void probe() {
    const std::vector<std::uint32_t> tokens = tokens_of(some_path());
    const NamespaceRef name_space = world_.name_space(input_.byte() % 2);
    const Worker& worker = workers_[input_.byte() % 2];
    BeginReport report;
    (void)worker.probe(name_space, tokens, report);
    require(report.cached_pages * kTokens <= tokens.size(), "a probe found more than there is");
    std::vector<std::uint64_t> hashes(tokens.size() / kTokens);
    if (!worker.hash_tokens(name_space, tokens, hashes)) return;
    std::uint32_t cached = 0;
    (void)worker.probe_hashes(name_space, hashes, cached);
    require(cached <= hashes.size(), "a probe by hashes found more than there is");
  }

  World& world_;
  Input input_;
  std::array<Worker, 2> workers_;
  Evictor evictor_{world_.segment()};
  std::array<Request, kSequences> requests_;
  Damage damage_;
  bool exact_ = true;  // nobody writes beside
};

}  // namespace

void fuzz_plugin(const std::uint8_t* data, std::size_t size) {
  World::get().reset();
  Script(data, size).run();
}

}  // namespace kvtrie::fuzz
