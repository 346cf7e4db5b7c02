// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The coordinator's parts on a damaged segment: adopting, reaping, evicting, what its socket asks for, pins, the copy
// queue, a save, the metrics. Damaged before and between.

#include <prometheus/metric_family.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "coordinator/admin.h"
#include "coordinator/admin_calls.h"
#include "coordinator/attach_service.h"
#include "coordinator/copy_engine.h"
#include "coordinator/reaper.h"
#include "coordinator/room_keeper.h"
#include "metrics/segment_collector.h"
#include "save/save_cache.h"
#include "save/save_plan.h"
#include "shm/free_pages.h"
#include "shm/lease_table.h"
#include "shm/page_table.h"
#include "shm/pins.h"
#include "shm/recovery.h"
#include "shm/stripe_index.h"
#include "shm/verify.h"
#include "tests/fuzz/damage.h"
#include "tests/fuzz/finding.h"
#include "tests/fuzz/fuzz_targets.h"
#include "tests/fuzz/world.h"

namespace kvtrie::fuzz {
namespace {

constexpr std::uint32_t kCallsMax = 32;

Options options_of_world() {
  Options options;
  options.cache = "fuzz";
  return options;
}

// All pages by their state words, none twice: nothing is lost by what the coordinator does.
void count_pages(const Segment& segment) {
  const PageStats stats = PageTable(segment).stats();
  std::uint64_t all = stats.impossible;
  for (const std::uint64_t count : stats.by_state)
    all += count;
  require(all == segment.page_count(), "pages are lost");
}

class Script {
 public:
  Script(const std::uint8_t* data, std::size_t size)
      : world_(World::get()),
        input_(data, size),
        reaper_(world_.segment(), world_.device(), log_),
        keeper_(world_.segment(), Watermarks{5, 10}),
        admin_(
            world_.segment(), keeper_, [] { return false; }, log_),
        service_(options_, world_.objects(), reaper_, admin_, log_) {
    require(!reaper_.start(), "reaper");
  }

  void run() {
    for (std::uint32_t i = 0; i < kCallsMax && !input_.ended(); ++i) {
      call();
      count_pages(world_.segment());
    }
  }

 private:
  WorkerId some_slot() { return {static_cast<std::uint16_t>(1 + input_.below(world_.segment().slot_count() - 1))}; }

  void call() {
    const Segment& segment = world_.segment();
    switch (input_.below(20)) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
        damage_some(input_, segment, damage_);
        break;
      case 5:
        damage_queue();
        break;
      case 6:
      case 7:
        (void)keeper_.pass([] { return false; });
        break;
      case 8:
        reap();
        break;
      case 9:
      case 10:
        adopt();
        break;
      case 11:
      case 12:
      case 13:
        ask();
        break;
      case 14:
        admin_.look_after_pins();
        (void)PinTable(segment).drop_ended(segment.now_tick());
        (void)PinTable(segment).list();
        break;
      case 15:
        perform_copies();
        break;
      case 16:
        save();
        break;
      case 17:
        (void)SegmentCollector(segment, pauses_, "fuzz").Collect();
        (void)stats_json(segment);
        break;
      case 18:
        wake();
        break;
      default:
        segment.superblock().driven_tick.fetch_add(input_.byte());
        want_pages();
        break;
    }
  }

  // As a worker's wish, or what stands where one was.
  void want_pages() {
    WorkerRecord& record = world_.segment().worker(some_slot());
    record.wait_ticket.store(input_.take<std::uint32_t>());
    record.pages_wanted.store(input_.byte());
    record.pages_asked.store(input_.byte());
  }

  void damage_queue() {
    const std::span<std::byte> bytes = world_.queue_bytes();
    auto* const words = reinterpret_cast<AtomicU64*>(bytes.data());
    // Header, or the rings' first words.
    const std::uint64_t ring = (bytes.size() - 4096) / (kWorkers + 1U);
    const std::uint64_t first = 4096 + ring * input_.below(kWorkers + 1U);
    words[first / 8 + input_.below(sizeof(CopyRing) / 8)].store(plausible_word(input_, world_.segment()));
  }

  void perform_copies() {
    for (std::uint16_t slot = 1; slot <= kWorkers; ++slot) {
      for (int i = 0; i < 20; ++i) {
        const std::optional<CopyWork> work = world_.queue().next({slot});
        if (!work) break;
        perform_copy(world_.queue(), world_.pool(), kPageBytes, {slot}, *work);
      }
      (void)world_.queue().idle({slot});
    }
  }

  void reap() {
    const WorkerTable table(world_.segment());
    const WorkerId slot = some_slot();
    world_.device().fence_over = input_.byte() % 8 != 0;
    switch (input_.below(4)) {
      case 0:
        (void)reap_slot(world_.segment(), slot, table.word(slot), true);
        break;
      case 1:
        (void)table.leave({slot, table.word(slot).incarnation()});
        (void)reaper_.reap_leaving();
        break;
      case 2:
        reaper_.give_up({slot, table.word(slot).incarnation()});
        break;
      default:
        reaper_.reap_other_images(static_cast<std::uint32_t>(::getpid()), *own_start_time(), 1 + input_.byte());
        break;
    }
    (void)reaper_.reap_dead();
  }

  // As CacheStore and Coordinator do it; sometimes though something was found, as when the damage comes after the
  // look.
  void adopt() {
    const Segment& segment = world_.segment();
    std::string problem = WorkerTable(segment).validate();
    problem += LeaseTable(segment).validate() + NamespaceTable(segment).validate() + PageTable(segment).validate() +
               FreePages(segment).validate() + StripeIndex(segment).validate();
    const bool clean =
        problem.empty() && verify(segment, {.adopting = true, .findings_max = 3, .settle_ms = 0}).clean();
    if (!clean && input_.byte() % 2 == 0) return;
    Reaper::AdoptSlots slots;
    Reaper reaper(segment, world_.device(), log_);
    require(!reaper.start(), "reaper");
    (void)reaper.adopt(slots);
    (void)adopt_pages(segment);
    PinTable(segment).recover();
    NamespaceTable(segment).recover();
    wake();
    for (std::uint32_t i = 0; i < segment.page_count(); ++i) {
      const StateWord word = PageTable(segment).state({i});
      require(!word.well_formed() || (word.state() != PageState::kCondemned && word.state() != PageState::kRetiring),
              "an adopted segment has pages in the middle of an eviction");
    }
    if (!clean) return;
    const VerifyReport after = verify(segment, {.adopting = true, .findings_max = 1, .settle_ms = 0});
    if (!after.clean()) std::fprintf(stderr, "%s\n", to_string(after.findings.front()).c_str());
    require(after.clean(), "adopting broke what was whole");
  }

  void save() {
    if (input_.byte() % 4 != 0) {
      (void)plan_save(world_.segment());
      return;
    }
    const std::string path = "/dev/shm/kvtrie-fuzz-saved-" + std::to_string(::getpid());
    (void)save_cache(world_.segment(), PlaneBytes({world_.pool_fd()}, kPageBytes), path);
    (void)::unlink(path.c_str());
  }

  void wake() {
    wake_pending_waiters(world_.segment());
    (void)keeper_.poll_after_ms();
    (void)admin_.poll_after_ms();
    (void)reaper_.poll_after_ms();
  }

  template <typename Message>
  std::vector<std::byte> message(WireKind kind) {
    auto made = make_message<Message>(kind);
    // Plausible words in it, then perhaps any bytes.
    auto* const bytes = reinterpret_cast<std::byte*>(&made) + sizeof(WireHeader);
    for (std::size_t at = 0; at + 8 <= sizeof made - sizeof(WireHeader) && at < 32; at += 8) {
      const std::uint64_t word = input_.byte() % 4 == 0 ? input_.below(4) : plausible_word(input_, world_.segment());
      std::memcpy(bytes + at, &word, sizeof word);
    }
    const auto view = std::as_bytes(std::span(&made, 1));
    return {view.begin(), view.end()};
  }

  std::vector<std::byte> some_message() {
    const std::uint64_t hash = world_.name_space(input_.byte() % 2).fields_hash;
    switch (input_.below(10)) {
      case 0: {
        EvictRequest request = make_message<EvictRequest>(WireKind::kEvict);
        request.pages_max = input_.byte();
        request.one_namespace = input_.byte() % 2;
        request.name_space = input_.below(3);
        request.fields_hash = hash;
        return bytes_of(request);
      }
      case 1: {
        FlushRequest request = make_message<FlushRequest>(WireKind::kFlush);
        request.name_space = input_.below(3);
        request.fields_hash = hash;
        return bytes_of(request);
      }
      case 2: {
        PinRequest request = make_message<PinRequest>(WireKind::kPin);
        const PageIndex page{input_.below(kPages)};
        request.page = Handle::page(page, PageTable(world_.segment()).state(page)).raw;
        request.expires_s = input_.byte();
        return bytes_of(request);
      }
      case 3:
        return message<UnpinRequest>(WireKind::kUnpin);
      case 4:
        return message<PinRequest>(WireKind::kPin);
      case 5:
        return message<EvictRequest>(WireKind::kEvict);
      case 6:
        return message<NamespaceRequest>(WireKind::kNamespace);
      case 7: {
        NamespaceRequest request = make_message<NamespaceRequest>(WireKind::kNamespace);
        const std::string fields = "model=" + std::string(1, static_cast<char>('a' + input_.byte() % 26)) + "\n";
        std::ranges::copy(fields, request.fields);
        request.fields_bytes = static_cast<std::uint32_t>(fields.size());
        return bytes_of(request);
      }
      case 8: {
        AttachRequest request = make_message<AttachRequest>(WireKind::kAttach);
        put_text(request.cache, "fuzz");
        request.layout_version = kLayoutVersion;
        request.struct_fingerprint = struct_fingerprint();
        request.role = input_.below(4);
        request.start_time = *own_start_time();
        request.pid_namespace = *own_pid_namespace();
        request.plane_mask = input_.byte() % 2;
        request.scheduler = plausible_word(input_, world_.segment());
        return bytes_of(request);
      }
      default: {
        const std::span<const std::uint8_t> any = input_.bytes(input_.byte());
        std::vector<std::byte> packet;
        std::ranges::transform(any, std::back_inserter(packet), [](std::uint8_t byte) { return std::byte{byte}; });
        if (packet.size() >= sizeof(WireHeader) && input_.byte() % 8 != 0) {
          const WireHeader header = wire_header(static_cast<WireKind>(input_.below(12)), packet.size());
          std::memcpy(packet.data(), &header, sizeof header);
        }
        return packet;
      }
    }
  }

  template <typename Message>
  static std::vector<std::byte> bytes_of(const Message& made) {
    const auto view = std::as_bytes(std::span(&made, 1));
    return {view.begin(), view.end()};
  }

  void ask() {
    const Peer peer{static_cast<std::uint32_t>(::getpid()), input_.byte() % 4 == 0 ? 12345U : ::geteuid(), 0, {}};
    (void)service_.greet(peer);
    const Answer answer = service_.answer(peer, some_message());
    require(answer.packet.size() >= sizeof(ReplyHead), "an answer is shorter than its head");
    if (answer.unconfirmed && input_.byte() % 2 == 0) service_.closed(*answer.unconfirmed);
  }

  World& world_;
  Input input_;
  const LogSink log_ = [](std::string_view) {};
  const Options options_ = options_of_world();
  Reaper reaper_;
  RoomKeeper keeper_;
  AdminCalls admin_;
  AttachService service_;
  PauseHistogram pauses_;
  Damage damage_;
};

}  // namespace

void fuzz_coordinator(const std::uint8_t* data, std::size_t size) {
  World::get().reset();
  Script(data, size).run();
}

}  // namespace kvtrie::fuzz
