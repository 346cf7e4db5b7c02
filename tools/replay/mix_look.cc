// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <algorithm>
#include <chrono>
#include <thread>

#include "tools/replay/mix_operations.h"

namespace kvtrie::replay {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kEvictMax = 8;
constexpr auto kFlushLimit = std::chrono::seconds(30);
constexpr auto kFlushAgainAfter = std::chrono::milliseconds(5);

// An estimate may be too low or too high, with one exception: a prefix under this worker's lease is there.
void check_estimate(const MixContext& context, MixCall call, const MixSequence& sequence,
                    const kvtrie_probe_result& result, bool current) {
  const std::uint32_t page_tokens = context.shape.tokens;
  context.calls.require(result.cached_tokens == std::uint64_t{result.cached_pages} * page_tokens &&
                            result.cached_tokens <= sequence.known(),
                        call, "{} tokens, {} pages", result.cached_tokens, result.cached_pages);
  if (!current || sequence.published == 0) return;
  context.calls.require(result.cached_pages >= sequence.published, call, "found {} pages where {} are under a lease",
                        result.cached_pages, sequence.published);
  context.mix.add(MixEvent::kProtectedFound);
}

// Also while a dead worker's flush may come, nothing is certain.
bool surely_current(const MixContext& context, const MixSequence& sequence) {
  return weights_are_current(context, sequence) && context.board.weights(sequence.name_space).uncertain.load() == 0;
}

// The namespace is this worker's to flush; asks until the coordinator has answered.
void ask_for_flush(const MixContext& context, std::uint32_t name_space) {
  NamespaceWeights& weights = context.board.weights(name_space);
  const auto deadline = Clock::now() + kFlushLimit;
  for (;;) {
    const bool last = Clock::now() > deadline;
    const kvtrie_code code = context.calls.make<MixCall::flush>(
        Codes{KVTRIE_OK}.add(KVTRIE_E_NO_COORDINATOR, !last).add(KVTRIE_E_TIMEOUT, !last), context.worker,
        context.namespaces[name_space]);
    if (code == KVTRIE_OK) break;
    weights.uncertain.store(1);
    std::this_thread::sleep_for(kFlushAgainAfter);
  }
  weights.done.store(weights.asked.load());
  context.mix.add(MixEvent::kFlushes);
}

}  // namespace

void probe_prefix(const MixContext& context, const MixSequence& sequence) {
  const kvtrie_namespace name_space = context.namespaces[sequence.name_space];
  kvtrie_probe_result result{};
  result.size = sizeof result;
  context.calls.make<MixCall::probe>({KVTRIE_OK}, context.worker, name_space, sequence.content.tokens().data(),
                                     sequence.known(), &result);
  check_estimate(context, MixCall::probe, sequence, result, surely_current(context, sequence));
}

void probe_by_hashes(const MixContext& context, const MixSequence& sequence) {
  const MixCalls& calls = context.calls;
  const kvtrie_namespace name_space = context.namespaces[sequence.name_space];
  const std::vector<std::uint32_t>& tokens = sequence.content.tokens();
  const std::size_t pages = tokens.size() / context.shape.tokens;
  std::vector<std::uint64_t> hashes(pages);
  std::size_t count = 0;
  calls.make<MixCall::hash_tokens>({KVTRIE_OK}, context.worker, name_space, tokens.data(), tokens.size(), hashes.data(),
                                   hashes.size(), &count);
  calls.require(count == pages, MixCall::hash_tokens, "{} hashes of {} pages", count, pages);
  // Of a shorter prompt they are the same, as far as there is room.
  const std::size_t fewer = context.chance.below(pages + 1);
  std::vector<std::uint64_t> again(fewer);
  calls.make<MixCall::hash_tokens>({KVTRIE_OK}, context.worker, name_space, tokens.data(), tokens.size(), again.data(),
                                   again.size(), &count);
  calls.require(count == pages && std::equal(again.begin(), again.end(), hashes.begin()), MixCall::hash_tokens,
                "the first {} hashes are others", fewer);
  kvtrie_probe_result result{};
  result.size = sizeof result;
  calls.make<MixCall::probe_hashes>({KVTRIE_OK}, context.worker, name_space, hashes.data(), hashes.size(), &result);
  calls.require(result.pending_pages == 0, MixCall::probe_hashes, "{} pages pending", result.pending_pages);
  check_estimate(context, MixCall::probe_hashes, sequence, result, surely_current(context, sequence));
}

CounterMemory remember_counters(const MixContext& context) {
  CounterMemory memory;
  memory.forks = context.mix.get(MixCall::fork_sequence, KVTRIE_OK);
  memory.batches = context.mix.get(MixCall::prepare_batch, KVTRIE_OK);
  return memory;
}

void compare_counters(const MixContext& context, CounterMemory& memory) {
  kvtrie_counters& last = memory.last;
  kvtrie_counters now{};
  now.size = sizeof now;
  context.calls.make<MixCall::get_counters>({KVTRIE_OK}, context.worker, &now);
  const auto grew = [&](std::uint64_t kvtrie_counters::*counter, const char* name) {
    context.calls.require(now.*counter >= last.*counter, MixCall::get_counters, "{} fell from {} to {}", name,
                          last.*counter, now.*counter);
  };
  grew(&kvtrie_counters::lookups, "lookups");
  grew(&kvtrie_counters::pages_hit, "pages_hit");
  grew(&kvtrie_counters::pages_allocated, "pages_allocated");
  grew(&kvtrie_counters::pages_published, "pages_published");
  grew(&kvtrie_counters::releases, "releases");
  grew(&kvtrie_counters::forks, "forks");
  grew(&kvtrie_counters::batches, "batches");
  context.calls.require(now.corrupt_seen == 0, MixCall::get_counters, "corrupt_seen {}", now.corrupt_seen);
  const std::uint64_t forks = context.mix.get(MixCall::fork_sequence, KVTRIE_OK) - memory.forks;
  const std::uint64_t batches = context.mix.get(MixCall::prepare_batch, KVTRIE_OK) - memory.batches;
  context.calls.require(now.forks == forks && now.batches == batches, MixCall::get_counters,
                        "{} forks of {}, {} batches of {}", now.forks, forks, now.batches, batches);
  last = now;
}

void evict_some(const MixContext& context) {
  const std::uint64_t most = context.chance.between(1, kEvictMax);
  const auto name_space = context.chance.percent(50)
                              ? kvtrie_namespace{}
                              : context.namespaces[context.chance.below(context.namespaces.size())];
  std::uint64_t evicted = 0;
  context.calls.make<MixCall::evict>({KVTRIE_OK, KVTRIE_E_NO_COORDINATOR, KVTRIE_E_TIMEOUT}, context.worker, name_space,
                                     most, &evicted);
  context.calls.require(evicted <= most, MixCall::evict, "{} pages of at most {}", evicted, most);
  context.mix.add(MixEvent::kEvicted, evicted);
}

bool flush_namespace(const MixContext& context, std::uint32_t name_space) {
  NamespaceWeights& weights = context.board.weights(name_space);
  std::uint32_t nobody = 0;
  if (!weights.flusher.compare_exchange_strong(nobody, context.worker_number + 1)) return false;
  weights.asked.fetch_add(1);
  ask_for_flush(context, name_space);
  weights.flusher.store(0);
  return true;
}

void finish_flushes(const MixContext& context) {
  for (std::uint32_t name_space = 0; name_space < context.namespaces.size(); ++name_space) {
    NamespaceWeights& weights = context.board.weights(name_space);
    if (weights.flusher.load() != context.worker_number + 1) continue;
    if (weights.asked.load() != weights.done.load()) {
      weights.uncertain.store(1);
      ask_for_flush(context, name_space);
    }
    weights.flusher.store(0);
  }
}

// A second attachment of the process: its handles end with it.
void visit_beside(const MixContext& context) {
  const MixCalls& calls = context.calls;
  const PlanSettings& settings = context.plan.settings();
  kvtrie_attach_options options{};
  options.size = sizeof options;
  options.cache = settings.cache;
  options.directory = settings.directory;
  options.name = "kvtrie-replay visitor";
  kvtrie_worker visitor{};
  const kvtrie_code code = calls.make<MixCall::attach>(
      {KVTRIE_OK, KVTRIE_E_FULL, KVTRIE_E_NO_COORDINATOR, KVTRIE_E_TIMEOUT}, &options, &visitor);
  calls.require((visitor.id != 0) == (code == KVTRIE_OK), MixCall::attach, "handle {:#x}", visitor.id);
  if (code != KVTRIE_OK) return;
  kvtrie_geometry geometry{};
  geometry.size = sizeof geometry;
  calls.make<MixCall::get_geometry>({KVTRIE_OK}, visitor, &geometry);
  calls.require(geometry.pages == context.geometry.pages && geometry.page_bytes == context.geometry.page_bytes,
                MixCall::get_geometry, "{} pages of {} bytes", geometry.pages, geometry.page_bytes);
  const kvtrie_field fields[] = {{"model", "kvtrie-replay-visitor"}};
  kvtrie_namespace name_space{};
  // The table may be full of others' namespaces.
  const kvtrie_code opened = calls.make<MixCall::open_namespace>(
      {KVTRIE_OK, KVTRIE_E_FULL, KVTRIE_E_NO_COORDINATOR, KVTRIE_E_TIMEOUT}, visitor, fields, std::size(fields),
      static_cast<const char*>(nullptr), &name_space);
  kvtrie_sequence sequence{};
  if (opened == KVTRIE_OK) {
    const std::uint32_t tokens[] = {1, 2, 3};
    kvtrie_begin_result result{};
    result.size = sizeof result;
    calls.make<MixCall::begin>({KVTRIE_OK}, visitor, name_space, tokens, std::size(tokens),
                               static_cast<const kvtrie_begin_options*>(nullptr), &result, &sequence);
    calls.require(result.cached_tokens == 0, MixCall::begin, "the visitor matched {} tokens", result.cached_tokens);
    calls.make<MixCall::allocate>({KVTRIE_OK, KVTRIE_E_NOT_NOW}, sequence, std::uint64_t{1},
                                  static_cast<const kvtrie_allocate_options*>(nullptr));
  }
  calls.make<MixCall::detach>({KVTRIE_OK}, visitor);
  calls.make<MixCall::release>({KVTRIE_E_STALE}, sequence);
}

void use_device_calls(const MixContext& context) {
  const MixCalls& calls = context.calls;
  std::uint64_t id = 0;
  calls.make<MixCall::worker_id>({KVTRIE_OK}, context.worker, &id);
  calls.require(id != 0, MixCall::worker_id, "is 0");
  calls.make<MixCall::writer_over>({KVTRIE_E_BUSY}, context.worker, id);  // it is here
  // Planes in host memory have an address instead of these two.
  int descriptor = -1;
  calls.make<MixCall::plane_descriptor>({KVTRIE_E_INVALID}, context.worker, 0U, &descriptor);
  const std::uint64_t word = 0;
  calls.make<MixCall::queue_copy>({KVTRIE_E_INVALID}, context.worker, 0U, 0U, std::uint64_t{0},
                                  static_cast<const void*>(&word), sizeof word);
  calls.make<MixCall::wait_copies>({KVTRIE_OK}, context.worker, 1000U);
  const std::string version = calls.text<MixCall::version_string>();
  calls.require(version.starts_with("kvtrie "), MixCall::version_string, "'{}'", version);
  const std::string name = calls.text<MixCall::code_name>(KVTRIE_E_BUSY);
  calls.require(!name.empty() && name != calls.text<MixCall::code_name>(KVTRIE_OK), MixCall::code_name, "'{}'", name);
}

// What the header forbids is refused, and nothing changes.
void misuse(const MixContext& context, MixSequence& sequence) {
  const MixCalls& calls = context.calls;
  std::uint32_t page = 0;
  calls.make<MixCall::get_pages>({KVTRIE_E_INVALID}, sequence.handle, sequence.positions(), 1U, &page);
  const std::string text = calls.text<MixCall::last_error>();
  calls.require(!text.empty(), MixCall::last_error, "says nothing of a failure");
  if (sequence.cached > 0) {  // others read it
    const std::vector<std::uint64_t> zeros(context.geometry.page_bytes / sizeof(std::uint64_t));
    calls.make<MixCall::copy_in>(
        {KVTRIE_E_INVALID}, sequence.handle, std::uint64_t{sequence.cached - 1} * context.shape.tokens,
        std::uint64_t{context.shape.tokens}, 0U, static_cast<const kvtrie_layout*>(nullptr), zeros.data());
    calls.make<MixCall::give_back>({KVTRIE_E_INVALID}, sequence.handle, sequence.cached - 1, 1U);
  }
  if (sequence.has_own()) {
    kvtrie_begin_result result{};
    result.size = sizeof result;
    calls.make<MixCall::wait_pending>({KVTRIE_E_INVALID}, sequence.handle, 1U, &result);
  }
  calls.make<MixCall::allocate>({KVTRIE_E_NEVER}, sequence.handle, (context.geometry.pages + 1) * context.shape.tokens,
                                static_cast<const kvtrie_allocate_options*>(nullptr));
  kvtrie_begin_options options{};
  options.size = sizeof options;
  options.flags = KVTRIE_NO_COPY;  // not a flag of begin
  kvtrie_begin_result result{};
  result.size = sizeof result;
  kvtrie_sequence none{1};
  calls.make<MixCall::begin>({KVTRIE_E_INVALID}, context.worker, context.namespaces[sequence.name_space],
                             sequence.content.tokens().data(), std::size_t{1}, &options, &result, &none);
  calls.require(none.id == 0, MixCall::begin, "gave a handle with its refusal");
  context.mix.add(MixEvent::kRefusals, 3U + (sequence.cached > 0 ? 2U : 0U) + (sequence.has_own() ? 1U : 0U));
  look(context, sequence);
  check(context, sequence, "misuse");
}

}  // namespace kvtrie::replay
