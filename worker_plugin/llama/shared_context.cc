// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "worker_plugin/llama/kvtrie_llama.h"
#include "worker_plugin/llama/timer.h"

namespace kvtrie::llama {
namespace {

constexpr std::size_t kRunBytesMax = 32U << 20;
// A state's rows are some cache lines then, and it stays in the cache. Pages with so many tokens go one by one, with no
// copy between.
constexpr std::size_t kRunTokensMax = 128;
constexpr std::size_t kPageTokensAlone = 64;
constexpr std::chrono::seconds kAskAgainAfter{10};
constexpr std::uint32_t kAskAgainMs = 500;  // a program's request waits for it
constexpr std::uint32_t kSequencesMax = 256;  // LLAMA_MAX_SEQ, which its public headers do not have

std::string plugin_says(const char* call, kvtrie_code code) {
  return std::string(call) + ": " + kvtrie_code_name(code) + ": " + kvtrie_last_error();
}

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif

// One system call instead of a page fault for every 4 KiB that this process writes for the first time. Best effort.
void map_for_writing(std::span<std::byte* const> pages, std::size_t bytes) {
  static const auto kMask = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE)) - 1;
  for (std::size_t i = 0, end = 0; i < pages.size(); i = end) {
    for (end = i + 1; end < pages.size() && pages[end] > pages[end - 1] && pages[end] <= pages[end - 1] + 2 * bytes;)
      ++end;
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(pages[i]) & ~kMask;
    const std::uintptr_t last = reinterpret_cast<std::uintptr_t>(pages[end - 1]) + bytes;
    (void)::madvise(reinterpret_cast<void*>(first), last - first, MADV_POPULATE_WRITE);
  }
}

std::size_t pages_in_a_run(const StateShape& shape, std::size_t tokens_per_page) {
  if (tokens_per_page >= kPageTokensAlone) return 1;
  const std::size_t by_bytes = kRunBytesMax / shape.bytes(tokens_per_page);
  return std::max<std::size_t>(1, std::min(by_bytes, kRunTokensMax / tokens_per_page));
}

}  // namespace

std::vector<std::pair<const char*, std::uint64_t>> list(const Counters& c) {
  return {{"begins", c.begins},
          {"hits", c.hits},
          {"pages_imported", c.pages_imported},
          {"tokens_imported", c.tokens_imported},
          {"tokens_decoded", c.tokens_decoded},
          {"pages_published", c.pages_published},
          {"pages_private", c.pages_private},
          {"import_failures", c.import_failures},
          {"layout_failures", c.layout_failures},
          {"export_failures", c.export_failures},
          {"no_free_pages", c.no_free_pages},
          {"other_failures", c.other_failures},
          {"caches_lost", c.caches_lost},
          {"diverged", c.diverged},
          {"waits", c.waits},
          {"tokens_awaited", c.tokens_awaited},
          {"speed_tokens", c.speed_tokens},
          {"dumps", c.dumps},
          {"dump_failures", c.dump_failures},
          {"begin_ns", c.begin_ns},
          {"allocate_ns", c.allocate_ns},
          {"import_ns", c.import_ns},
          {"export_ns", c.export_ns},
          {"publish_ns", c.publish_ns},
          {"release_ns", c.release_ns},
          {"wait_ns", c.wait_ns},
          {"dump_ns", c.dump_ns}};
}

Attachment::Attachment(const std::string& cache, const std::string& directory, const std::string& name,
                       std::uint32_t timeout_ms) {
  kvtrie_attach_options options{};
  options.size = sizeof options;
  options.cache = cache.c_str();
  options.directory = directory.empty() ? nullptr : directory.c_str();
  options.name = name.empty() ? nullptr : name.c_str();
  options.timeout_ms = timeout_ms;
  if (const kvtrie_code code = kvtrie_attach(&options, &worker); code != KVTRIE_OK) {
    throw Refused("cache " + cache + ": " + plugin_says("attach", code));
  }
  geometry.size = sizeof geometry;
  if (const kvtrie_code code = kvtrie_get_geometry(worker, &geometry); code != KVTRIE_OK) {
    const std::string text = plugin_says("geometry", code);
    (void)kvtrie_detach(worker);
    throw Refused("cache " + cache + ": " + text);
  }
  if (geometry.planes != 1) {
    (void)kvtrie_detach(worker);
    throw Refused("cache " + cache + " has " + std::to_string(geometry.planes) + " planes; llama.cpp needs 1");
  }
}

SharedCache::SharedCache(const std::string& cache, const std::string& directory, const std::string& name)
    : cache_(cache),
      directory_(directory),
      name_(name),
      attachment_(std::make_shared<const Attachment>(cache, directory, name, 0)) {}

std::shared_ptr<const Attachment> SharedCache::attachment() const {
  const std::lock_guard lock(mutex_);
  return attachment_;
}

std::shared_ptr<const Attachment> SharedCache::attach_again(const std::shared_ptr<const Attachment>& lost) {
  const std::lock_guard lock(mutex_);
  if (attachment_ != lost) return attachment_;
  const auto now = std::chrono::steady_clock::now();
  if (asked_again_ && now - *asked_again_ < kAskAgainAfter) return nullptr;
  asked_again_ = now;
  try {
    attachment_ = std::make_shared<const Attachment>(cache_, directory_, name_, kAskAgainMs);
  } catch (const Refused&) {
    return nullptr;
  }
  return attachment_;
}

llama_context_params shareable_params(llama_context_params params, bool unify) {
  const std::uint32_t sequences = std::max(1U, params.n_seq_max);
  if (sequences > 1 && !params.kv_unified && !unify) {
    throw Refused("it has " + std::to_string(sequences) + " sequences with KV caches of their own (kv_unified is off)");
  }
  if (sequences + 1 > kSequencesMax) throw Refused("no sequence id is free for carrying pages");
  // llama.cpp asserts room for one output of each sequence. llama-server says exactly how many it has.
  if (params.n_outputs_max == 0 && params.n_batch < sequences + 1) {
    throw Refused("its batches are too small for one more sequence id");
  }
  if (params.n_outputs_max != 0) params.n_outputs_max = std::max(params.n_outputs_max, sequences + 1);
  params.n_seq_max = sequences + 1;
  params.kv_unified = true;
  return params;
}

StateShape probe_state(const Calls& calls, llama_context* context) {
  const llama_memory_t memory = calls.llama_get_memory(context);
  if (memory == nullptr || calls.llama_n_seq_max(context) < 2)
    throw Refused("no sequence id is free for carrying pages");
  llama_seq_id scratch = static_cast<llama_seq_id>(calls.llama_n_seq_max(context)) - 1;
  if (calls.llama_memory_seq_pos_max(memory, scratch) >= 0) throw Refused("its last sequence id is in use");

  llama_token token = 0;
  llama_pos position = 0;
  std::int32_t count = 1;
  std::int8_t output = 0;
  llama_seq_id* sequences = &scratch;
  StateShape shape;
  std::string problem = "it computes no token";
  if (calls.llama_decode(context, {1, &token, nullptr, &position, &count, &sequences, &output}) == 0) {
    std::vector<std::byte> state(calls.llama_state_seq_get_size(context, scratch));
    const std::size_t written =
        calls.llama_state_seq_get_data(context, reinterpret_cast<std::uint8_t*>(state.data()), state.size(), scratch);
    problem = written == state.size() ? shape.read(state) : "its KV state cannot be read";
  }
  (void)calls.llama_memory_seq_rm(memory, scratch, -1, -1);
  calls.llama_perf_context_reset(context);
  if (!problem.empty()) throw Refused(problem);
  return shape;
}

SharedContext::SharedContext(SharedCache& cache, const Calls& calls, llama_context* context,
                             const llama_context_params& params, const ModelSource& source,
                             const FingerprintOptions& options)
    : cache_(cache),
      attachment_(cache.attachment()),
      calls_(calls),
      context_(context),
      memory_(calls.llama_get_memory(context)),
      scratch_(static_cast<llama_seq_id>(calls.llama_n_seq_max(context)) - 1) {
  if (const std::string reason = reason_not_to_share(source); !reason.empty()) throw Refused(reason);
  if (memory_ == nullptr) throw Refused("it has no KV cache");
  const llama_model* const model = calls_.llama_get_model(context);
  if (const std::string reason = reason_not_to_share(calls_, model, params); !reason.empty()) throw Refused(reason);
  if (!params.kv_unified) throw Refused("its KV cache is not unified");
  shape_ = probe_state(calls_, context);
  const std::uint64_t bytes = shape_.bytes(tokens_per_page());
  if (bytes > attachment_->geometry.page_bytes) {
    throw Refused("the cache has pages of " + std::to_string(attachment_->geometry.page_bytes) + " bytes, and " +
                  std::to_string(tokens_per_page()) + " tokens of this model have " + std::to_string(bytes) +
                  ": start kvtried with --page-bytes " + std::to_string((bytes + 63) / 64 * 64));
  }
  fields_ = fingerprint(calls_, source, context, params, options);
  if (!open_namespace()) throw Refused(last_failure_);
  warm_up();
}

// The pool's memory is mapped into this process when the context is made, and not by its requests: as much of it as there
// is time for, from its first page on, which is where a coordinator begins to give pages. The rest: map_for_writing().
void SharedContext::map_pool() {
  constexpr std::chrono::milliseconds kTimeMax{100};
  constexpr std::size_t kPieceBytes = 8U << 20;
  std::byte* const first = page(0);
  std::byte* const last = page(static_cast<std::uint32_t>(attachment_->geometry.pages - 1));
  if (first == nullptr || last <= first) return;
  mapped_until_ = first;
  const auto start = std::chrono::steady_clock::now();
  const std::size_t bytes = static_cast<std::size_t>(last - first) + attachment_->geometry.page_bytes;
  for (std::size_t at = 0; at < bytes && std::chrono::steady_clock::now() - start < kTimeMax; at += kPieceBytes) {
    std::byte* const piece = first + at;
    map_for_writing({&piece, 1}, std::min(kPieceBytes, bytes - at));
    mapped_until_ = piece + std::min(kPieceBytes, bytes - at);
  }
}

// What a process does for the first time costs page faults and symbols to be bound: here, and not in its first request.
void SharedContext::warm_up() {
  map_pool();
  const std::span<std::byte> run = buffer(shape_.bytes(pages_in_a_run(shape_, tokens_per_page()) * tokens_per_page()));
  std::ranges::fill(run, std::byte{0});
  const std::vector<std::uint32_t> tokens(tokens_per_page(), UINT32_MAX);  // of nobody
  kvtrie_begin_options options{};
  options.size = sizeof options;
  options.flags = KVTRIE_NO_PUBLISH;
  kvtrie_begin_result found{};
  found.size = sizeof found;
  kvtrie_sequence sequence{};
  for (int i = 0; i < 2; ++i) {
    const kvtrie_worker worker = attachment_->worker;
    if (kvtrie_begin(worker, namespace_, tokens.data(), tokens.size(), &options, &found, &sequence) != KVTRIE_OK) return;
    (void)kvtrie_release(sequence);
  }
}

bool SharedContext::open_namespace() {
  std::vector<kvtrie_field> fields;
  for (const auto& [key, value] : fields_)
    fields.push_back({key.c_str(), value.c_str()});
  std::array<char, 64> label{};
  (void)calls_.llama_model_meta_val_str(calls_.llama_get_model(context_), "general.name", label.data(), label.size());
  const kvtrie_code code =
      kvtrie_open_namespace(attachment_->worker, fields.data(), fields.size(), label.data(), &namespace_);
  if (code != KVTRIE_OK) note_failure(counters_.other_failures, "open namespace", code);
  return code == KVTRIE_OK;
}

void SharedContext::note_failure(std::uint64_t& counter, const char* what, kvtrie_code code) {
  ++counter;
  last_failure_ = plugin_says(what, code);
  if (lost_ || (code != KVTRIE_E_POISONED && code != KVTRIE_E_CORRUPT)) return;
  lost_ = true;
  ++counters_.caches_lost;
  if (say_ != nullptr) say_("the cache was given up (" + last_failure_ + "): from the next one on");
}

std::uint64_t SharedContext::flushes() {
  if (guard_.id != 0) {
    const kvtrie_code code = kvtrie_publish(guard_, 0, nullptr);
    if (code == KVTRIE_OK) return flushes_;
    (void)kvtrie_release(std::exchange(guard_, {}));
    ++flushes_;  // also when that cannot be known
    if (code != KVTRIE_E_FLUSHED) note_failure(counters_.other_failures, "publish", code);
    if (lost_) return flushes_;
  }
  kvtrie_begin_result nothing{};
  nothing.size = sizeof nothing;
  const auto ask = [&] {
    return kvtrie_begin(attachment_->worker, namespace_, nullptr, 0, nullptr, &nothing, &guard_);
  };
  kvtrie_code code = ask();
  if (code == KVTRIE_E_STALE && open_namespace()) code = ask();
  if (code == KVTRIE_OK) return flushes_;
  note_failure(counters_.other_failures, "begin", code);
  return ++flushes_;
}

// For a sequence that is empty. Those that are not have KV that may be what the old cache was given up for: private.
bool SharedContext::attach_again() {
  const std::shared_ptr<const Attachment> next = cache_.attach_again(attachment_);
  if (!next || shape_.bytes(next->geometry.tokens_per_page) > next->geometry.page_bytes) return false;
  for (SharedSequence* const sequence : sequences_)
    sequence->cache_lost();
  (void)kvtrie_release(std::exchange(guard_, {}));
  attachment_ = next;
  mapped_until_ = nullptr;
  if (!open_namespace()) return false;
  lost_ = false;
  return true;
}

std::byte* SharedContext::page(std::uint32_t index) const {
  void* address = nullptr;
  const bool there = kvtrie_page_address(attachment_->worker, index, 0, &address) == KVTRIE_OK;
  return there ? static_cast<std::byte*>(address) : nullptr;
}

std::span<std::byte> SharedContext::buffer(std::size_t bytes) {
  if (bytes > buffer_bytes_) {
    buffer_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
    buffer_bytes_ = bytes;
  }
  return {buffer_.get(), bytes};
}

bool SharedContext::import_run(llama_seq_id sequence, std::span<const std::byte* const> pages, std::size_t first,
                               std::size_t from, std::size_t to) {
  const std::uint32_t tokens = tokens_per_page();
  const std::size_t bytes = shape_.bytes(to - from);
  const std::byte* state = pages[0];
  // Cells that are not wanted would leave a hole, and what is computed behind it other last bits.
  if (pages.size() > 1 || to - from < tokens) {
    const std::span<std::byte> all = buffer(bytes);
    shape_.gather(pages, static_cast<std::int32_t>(first), tokens, static_cast<std::int32_t>(from), to - from, all);
    state = all.data();
  }
  if (calls_.llama_state_seq_set_data(context_, reinterpret_cast<const std::uint8_t*>(state), bytes, scratch_) !=
      bytes) {
    ++counters_.import_failures;
    last_failure_ = "llama.cpp did not take the state of pages";
    return false;
  }
  calls_.llama_memory_seq_cp(memory_, scratch_, sequence, static_cast<llama_pos>(from), static_cast<llama_pos>(to));
  counters_.pages_imported += pages.size();
  counters_.tokens_imported += to - from;
  return true;
}

std::size_t SharedContext::import_pages(llama_seq_id sequence, std::span<const std::uint32_t> indices,
                                        std::size_t first, std::size_t from, std::size_t to) {
  const Timer timer(counters_.import_ns);
  const std::size_t tokens = tokens_per_page();
  const std::size_t run_max = pages_in_a_run(shape_, tokens);
  std::vector<const std::byte*> pages;
  std::size_t done = 0;
  bool good = true;
  while (good && done < indices.size()) {
    pages.clear();
    const std::size_t begin = first + done * tokens;
    while (good && pages.size() < run_max && done + pages.size() < indices.size()) {
      const std::byte* const bytes = page(indices[done + pages.size()]);
      const auto position = static_cast<std::int32_t>(begin + pages.size() * tokens);
      good = bytes != nullptr && shape_.fits({bytes, shape_.bytes(tokens)}, position, tokens_per_page());
      if (good) pages.push_back(bytes);
    }
    if (!good) {
      ++counters_.layout_failures;
      last_failure_ = "a page is not what its place says";
    }
    if (pages.empty()) break;
    const std::size_t end = std::min(to, begin + pages.size() * tokens);
    if (!import_run(sequence, pages, begin, std::max(from, begin), end)) break;
    done += pages.size();
  }
  (void)calls_.llama_memory_seq_rm(memory_, scratch_, -1, -1);
  return done;
}

bool SharedContext::export_run(llama_seq_id sequence, std::span<std::byte* const> pages, std::size_t first) {
  const std::uint32_t tokens = tokens_per_page();
  const std::size_t bytes = shape_.bytes(pages.size() * tokens);
  const auto begin = static_cast<llama_pos>(first);
  const std::size_t page_bytes = shape_.bytes(tokens);
  if (*std::ranges::max_element(pages) + page_bytes > mapped_until_) map_for_writing(pages, page_bytes);
  const auto get = [&](std::byte* to) {
    return calls_.llama_state_seq_get_data(context_, reinterpret_cast<std::uint8_t*>(to), bytes, scratch_) == bytes;
  };
  calls_.llama_memory_seq_cp(memory_, sequence, scratch_, begin, begin + static_cast<llama_pos>(pages.size() * tokens));
  // One page goes straight to its place, unless its cells do not lie in order.
  bool good = pages.size() == 1 && get(pages[0]) && shape_.fits({pages[0], bytes}, begin, tokens);
  if (good) {
    StateShape::clear_ids({pages[0], bytes}, tokens);
  } else {
    const std::span<std::byte> all = buffer(bytes);
    good = get(all.data()) && shape_.split(all, begin, tokens, pages);
  }
  (void)calls_.llama_memory_seq_rm(memory_, scratch_, -1, -1);
  if (!good) {
    ++counters_.export_failures;
    last_failure_ = "llama.cpp did not give the state of pages";
  }
  return good;
}

std::size_t SharedContext::export_pages(llama_seq_id sequence, std::span<const std::uint32_t> indices,
                                        std::size_t first) {
  const Timer timer(counters_.export_ns);
  const std::size_t tokens = tokens_per_page();
  const std::size_t run_max = pages_in_a_run(shape_, tokens);
  std::vector<std::byte*> pages;
  std::size_t done = 0;
  while (done < indices.size()) {
    pages.clear();
    for (std::size_t i = done; i < std::min(done + run_max, indices.size()); ++i)
      pages.push_back(page(indices[i]));
    if (std::ranges::find(pages, nullptr) != pages.end() || !export_run(sequence, pages, first + done * tokens)) break;
    done += pages.size();
  }
  return done;
}

}  // namespace kvtrie::llama
