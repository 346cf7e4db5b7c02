// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// llama.cpp's sequences, with their prefixes shared by all processes of the host.
//
//   SharedCache     this process's place in a cache (kvtrie_attach)
//   SharedContext   one llama_context: its namespace, the size of its pages, its counters
//   SharedSequence  one sequence id of it: which tokens its KV is of, and the pages that go with them
//
// The cycle of a request, on an empty sequence:
//
//   done = sequence.import(prompt, prompt.size() - kDecodedAtLeast)   KV of the first `done` tokens is there now
//   llama_decode(prompt[done..])                         the caller's, in as many batches as it likes
//   sequence.decoded(prompt[done..])                     pages that they filled are published
//   loop { llama_decode(token); sequence.decoded(token) }
//   sequence.end()                                       and llama_memory_seq_rm, when the caller wants its KV gone
//
// A context that takes part has a unified KV cache (kv_unified) and one sequence id more than the caller uses: the last
// one, n_seq_max - 1, carries pages in and out and is empty between calls. shareable_params() makes such parameters.
//
// What several processes are given at once is computed by one of them, if they wait (WaitSettings): import() then
// returns when the others' pages are there, or when waiting does not pay (kvtrie_policy.hpp). Decode prompts in batches
// of llama_n_ubatch tokens, so that those who wait can follow, and tell SharedContext::computed() of each: the policy
// judges by the speed.
//
// Never wrong: what does not fit, fails or is gone costs computing it, and is counted; no call throws but those that
// say so, and none fails. KV of a page is imported only when the tokens of its whole path are the sequence's, in a
// namespace of all that fingerprint.h names.
//
// Threads: a SharedContext and its sequences are as a llama_context: one call at a time. A SharedCache may be used by
// several contexts in several threads.
#pragma once

#include <llama.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "worker_plugin/kvtrie.h"
#include "worker_plugin/kvtrie_policy.hpp"
#include "worker_plugin/llama/calls.h"
#include "worker_plugin/llama/fingerprint.h"
#include "worker_plugin/llama/page_state.h"

namespace kvtrie::dump {
class Dumper;
}

namespace kvtrie::llama {

// Of a prompt that is wholly cached, so many tokens are computed all the same: its logits are wanted, and a batch of
// one token goes through other kernels, whose last bits differ, than the batch of several that it stands for.
inline constexpr std::size_t kDecodedAtLeast = 2;

// Nothing can be shared here, and why.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Since the context's start. Times are ns.
struct Counters {
  std::uint64_t begins = 0, hits = 0;  // hits: with at least a page
  std::uint64_t pages_imported = 0, tokens_imported = 0;
  std::uint64_t tokens_decoded = 0;  // computed by llama_decode
  std::uint64_t pages_published = 0, pages_private = 0;
  std::uint64_t import_failures = 0;  // llama.cpp refused a page: its tokens were computed instead
  std::uint64_t layout_failures = 0;  // a page was not what its place says: computed instead
  std::uint64_t export_failures = 0;
  std::uint64_t no_free_pages = 0;   // allocate said not now: not published
  std::uint64_t other_failures = 0;  // of the plugin: its last text is in SharedContext::last_failure
  std::uint64_t caches_lost = 0;     // given up under it; it attaches to the next one when a sequence begins empty
  std::uint64_t diverged = 0;        // context shift and the like: not shared from there on
  std::uint64_t waits = 0;           // for pages that another process computes
  std::uint64_t tokens_awaited = 0;  // that came meanwhile
  std::uint64_t speed_tokens = 0;    // computed only to know the speed
  std::uint64_t dumps = 0, dump_failures = 0;  // written; not written: the disk, say
  std::uint64_t begin_ns = 0, allocate_ns = 0, import_ns = 0, export_ns = 0, publish_ns = 0, release_ns = 0;
  std::uint64_t wait_ns = 0, dump_ns = 0;
};

// {name, value} of each, for reports.
std::vector<std::pair<const char*, std::uint64_t>> list(const Counters& counters);

// What to do about pages that another process is computing.
struct WaitSettings {
  enum class Mode {
    kNever,   // compute them, too; what was second is kept private
    kAuto,    // wait as long as it is likely to cost less than to compute them
    kAlways,  // wait while their owner lives
  };
  Mode mode = Mode::kNever;
  std::uint32_t limit_ms = 120000;  // no import() waits longer
};
// never, auto, always. Anything else throws Refused.
WaitSettings::Mode wait_mode(const std::string& name);

// One kvtrie_attach, detached with the last of its users.
struct Attachment {
  // As of SharedCache.
  Attachment(const std::string& cache, const std::string& directory, const std::string& name, std::uint32_t timeout_ms);
  ~Attachment() { (void)kvtrie_detach(worker); }
  Attachment(const Attachment&) = delete;
  Attachment& operator=(const Attachment&) = delete;

  kvtrie_worker worker{};
  kvtrie_geometry geometry{};
};

class SharedCache {
 public:
  // `directory` empty: the default one. Throws Refused: nobody serves the cache, or it cannot be used.
  SharedCache(const std::string& cache, const std::string& directory, const std::string& name);

  [[nodiscard]] std::shared_ptr<const Attachment> attachment() const;
  // Another one than `lost`, whose cache was given up. NULL: there is none now; it asks every 10 s at most.
  std::shared_ptr<const Attachment> attach_again(const std::shared_ptr<const Attachment>& lost);

 private:
  const std::string cache_;
  const std::string directory_;
  const std::string name_;
  mutable std::mutex mutex_;  // of these
  std::shared_ptr<const Attachment> attachment_;
  std::optional<std::chrono::steady_clock::time_point> asked_again_;
};

// What the caller wanted, with a unified cache and the sequence id that the adapter needs. Throws Refused: `params` has
// several sequences with caches of their own, which would become one (`unify` allows it), or too small a batch.
llama_context_params shareable_params(llama_context_params params, bool unify);

// What states of this context look like, and so how many bytes a page has. Computes one token in the last sequence id,
// which is empty before and after. Throws Refused.
StateShape probe_state(const Calls& calls, llama_context* context);

// Tells the user, once for the same text.
using Say = void (*)(const std::string& what);

class DecodeDump;
class SharedSequence;

class SharedContext {
 public:
  // Throws Refused, and std::system_error: a file of the model cannot be read. `cache` and `context` outlive it.
  SharedContext(SharedCache& cache, const Calls& calls, llama_context* context, const llama_context_params& params,
                const ModelSource& source, const FingerprintOptions& options);

  ~SharedContext() { (void)kvtrie_release(guard_); }
  SharedContext(const SharedContext&) = delete;
  SharedContext& operator=(const SharedContext&) = delete;

  // Before its sequences are used.
  void set_wait(const WaitSettings& settings) { wait_ = settings; }
  void set_say(Say say) { say_ = say; }
  // Debug dumps (kvtrie_dump.h); NULL, or one that is off: none. `dumper` outlives this. `say` is told of the first
  // one that could not be written, and may be NULL.
  void set_dumps(dump::Dumper* dumper, Say say);
  // Whether there are any: ask before a batch is put together for them.
  [[nodiscard]] bool dumps() const { return dumper_ != nullptr; }
  // llama_decode took so long for so many tokens of prompts.
  void computed(std::size_t tokens, double seconds) {
    speed_.computed(tokens, seconds);
    speed_known_ = true;
  }

  [[nodiscard]] const Counters& counters() const { return counters_; }
  [[nodiscard]] const std::string& last_failure() const { return last_failure_; }
  [[nodiscard]] const StateShape& shape() const { return shape_; }
  [[nodiscard]] std::uint32_t tokens_per_page() const { return attachment_->geometry.tokens_per_page; }
  [[nodiscard]] llama_context* context() const { return context_; }
  [[nodiscard]] bool waits() const { return wait_.mode != WaitSettings::Mode::kNever; }

 private:
  friend class DecodeDump;
  friend class SharedSequence;
  bool open_namespace();
  void warm_up();
  void map_pool();
  [[nodiscard]] client::WaitPolicy wait_policy(std::uint32_t limit_ms) const;
  // Computes some tokens of nothing, unless a speed is known.
  void learn_speed();
  std::byte* page(std::uint32_t index) const;
  // Pages of positions from `first` on. How many were brought in, or written, before something failed. Of those brought
  // in the sequence gets the cells at [from, to).
  std::size_t import_pages(llama_seq_id sequence, std::span<const std::uint32_t> indices, std::size_t first,
                           std::size_t from, std::size_t to);
  std::size_t export_pages(llama_seq_id sequence, std::span<const std::uint32_t> indices, std::size_t first);
  bool import_run(llama_seq_id sequence, std::span<const std::byte* const> pages, std::size_t first, std::size_t from,
                  std::size_t to);
  bool export_run(llama_seq_id sequence, std::span<std::byte* const> pages, std::size_t first);
  std::span<std::byte> buffer(std::size_t bytes);
  void note_failure(std::uint64_t& counter, const char* what, kvtrie_code code);
  bool attach_again();
  // How often the namespace was flushed since the first call.
  std::uint64_t flushes();

  SharedCache& cache_;
  std::shared_ptr<const Attachment> attachment_;
  bool lost_ = false;  // its cache was given up
  kvtrie_sequence guard_{};  // of no tokens: sequences come and go, and this one knows of flushes between them
  std::uint64_t flushes_ = 0;
  Say say_ = nullptr;
  std::vector<SharedSequence*> sequences_;
  const Calls calls_;
  llama_context* const context_;
  const llama_memory_t memory_;
  const llama_seq_id scratch_;
  Fields fields_;
  StateShape shape_;
  kvtrie_namespace namespace_{};
  std::unique_ptr<std::byte[]> buffer_;  // of states of several pages
  std::size_t buffer_bytes_ = 0;
  const std::byte* mapped_until_ = nullptr;  // the pool's first pages, as far as they are mapped; NULL: none
  std::chrono::steady_clock::time_point no_room_until_{};  // until then nobody waits for free pages
  Counters counters_;
  std::string last_failure_;
  WaitSettings wait_;
  client::PrefillSpeed speed_;
  bool speed_known_ = false;
  std::size_t announcing_ = 0;  // sequences with pages that others may be waiting for
  dump::Dumper* dumper_ = nullptr;
  Say say_of_dumps_ = nullptr;
  bool pages_stay_ = false;  // a dump reads them when all sequences of the batch have published
};

class SharedSequence {
  friend class DecodeDump;
  friend class SharedContext;

 public:
  SharedSequence(SharedContext& context, llama_seq_id id) : context_(context), id_(id) {
    context.sequences_.push_back(this);
  }
  ~SharedSequence() {
    end();
    std::erase(context_.sequences_, this);
  }
  SharedSequence(const SharedSequence&) = delete;
  SharedSequence& operator=(const SharedSequence&) = delete;

  // Tokens whose KV the llama_context has at positions 0 .. size() - 1. Behind them it has nothing, or, once it
  // diverged, KV that is not shared.
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] bool diverged() const { return diverged_; }

  // The request that it is of from now on, in `kvtrie workers --leases` and in dumps. The sequence id before.
  void set_tag(std::uint32_t tag) { tag_ = tag; }
  // Dumps of what it computes from now on, whatever its tag, where dumps are on; or no longer.
  void ask_for_dumps(bool on) { asks_for_dumps_ = on; }

  // `next` are tokens that the caller is about to decode at positions size() and up. Brings the KV of the first ones in
  // from the cache, up to `most` of them, and says of how many; announces pages for the others. `may_wait`: as the
  // context's settings say. It never waits while another sequence of the context has announced pages: nobody else
  // computes those.
  std::size_t import(std::span<const llama_token> next, std::size_t most, bool may_wait = true);
  // The caller decoded these at positions size() and up. Publishes pages that are full.
  void decoded(std::span<const llama_token> tokens);
  // The caller took the KV of the last `tokens` that import() brought out again: they are to be computed after all.
  void undo_import(std::size_t tokens);
  // KV at positions from `size` on was removed; with 0 the sequence is as new.
  void truncated(std::size_t size);
  // KV at positions from `size` on was changed, moved, or is of something else than tokens.
  void diverged_at(std::size_t size);
  // It got a copy of the other's KV at positions below `size`, and had none.
  void copied_from(const SharedSequence& other, std::size_t size);
  // Gives lease and pages back; KV in the llama_context is the caller's to remove.
  void end();

 private:
  void take_in(std::span<const llama_token> next);
  bool begin(std::size_t total, bool again = false);
  void match(const kvtrie_begin_result& found);
  bool wait(bool was_second, std::uint32_t limit_ms);
  bool was_second() const;
  void announce_rest();
  void announce(bool on);
  void import_pages(std::size_t limit);
  bool allocate(std::size_t whole);
  bool write_pages(std::uint32_t full);
  void publish();
  void rest();
  void release();
  void cache_lost();

  SharedContext& context_;
  const llama_seq_id id_;
  std::uint32_t tag_ = static_cast<std::uint32_t>(id_);
  bool asks_for_dumps_ = false;
  // The first size_ are as size() says. Behind them are tokens that sequence_ knows and that are not, or no longer, in
  // the llama_context: the same ones may come again.
  std::vector<std::uint32_t> tokens_;
  std::size_t size_ = 0;
  bool diverged_ = false;
  bool keep_private_ = false;   // the namespace was flushed since: what it has may not be published again
  std::uint64_t flushes_ = 0;   // of the namespace, when this was empty
  kvtrie_sequence sequence_{};  // id 0: none
  std::size_t handed_ = 0;      // tokens that sequence_ knows: whole pages
  std::uint32_t cached_ = 0;    // pages of it that were others' when it began
  std::uint32_t written_ = 0;   // pages that have their bytes, those included
  std::uint32_t private_ = 0;   // pages that the last publish kept private
  kvtrie_begin_result begun_{};  // what is under way behind the matched pages
  bool announcing_ = false;
};

}  // namespace kvtrie::llama
