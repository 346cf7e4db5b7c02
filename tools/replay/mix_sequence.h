// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a mix knows of a sequence that it has open, and how it compares that with the plugin's answers and with the
// bytes.
//
// Which pages a sequence holds is asked of the plugin after each operation (look); what may have changed, only the
// operation knows. How much of a page is computed is noted beside the page (PageNote), once for all sequences of a
// batch that use it. A page that nobody else may have is registered, so one that is handed out twice to this process
// shows at once, before its bytes do.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tools/replay/mix_calls.h"
#include "tools/replay/mix_content.h"

namespace kvtrie::replay {

class PageRegistry;

// One page as sequences of this process hold it.
class PageNote {
 public:
  // `own`: taken from the free pages, else a hit. Throws PluginError when that cannot be.
  PageNote(PageRegistry& registry, std::uint32_t page, bool own, std::uint32_t computed_tokens);
  PageNote(const PageNote&) = delete;
  PageNote& operator=(const PageNote&) = delete;
  ~PageNote();

  std::uint32_t computed;        // tokens from the page's start that are there
  std::uint32_t incomplete = 0;  // published with so many
  bool published = false;
  [[nodiscard]] std::uint32_t page() const { return page_; }

 private:
  PageRegistry& registry_;
  const std::uint32_t page_;
  const bool own_;
};

class PageRegistry {
 public:
  explicit PageRegistry(std::uint64_t pages) : own_(pages), hits_(pages), stamps_(pages) {}
  // The note of a page that was taken; null: this process has not.
  [[nodiscard]] std::shared_ptr<PageNote> find(std::uint32_t page) const { return own_[page].lock(); }
  void enter(const std::shared_ptr<PageNote>& note) { own_[note->page()] = note; }
  // A number that marks pages as seen in one look.
  [[nodiscard]] std::uint64_t next_stamp() { return ++stamp_; }
  bool mark(std::uint32_t page, std::uint64_t stamp) { return std::exchange(stamps_[page], stamp) != stamp; }

 private:
  friend class PageNote;
  std::vector<std::weak_ptr<PageNote>> own_;
  std::vector<std::uint32_t> hits_;  // holders of the page as a hit
  std::vector<std::uint64_t> stamps_;
  std::uint64_t stamp_ = 0;
};

struct HeldPage {
  std::uint32_t page = KVTRIE_NO_PAGE;
  std::optional<kvtrie_page_state> state;  // none: a hit, or no page
  std::shared_ptr<PageNote> note;          // null: no page

  [[nodiscard]] bool writable() const { return state == KVTRIE_PAGE_PRIVATE || state == KVTRIE_PAGE_ANNOUNCED; }
};

struct MixSequence {
  MixSequence(const PageShape& shape, std::uint32_t of_namespace, std::uint32_t of_weights)
      : name_space(of_namespace), weights(of_weights), content(shape, of_namespace, of_weights) {}

  kvtrie_sequence handle{};
  const std::uint32_t name_space;
  const std::uint32_t weights;
  std::uint32_t request = 0;        // whose prompt it has
  bool owns_request = false;        // it serves the request; else it is there beside others
  std::uint64_t target_tokens = 0;  // with the answer
  std::uint32_t tries = 0;          // preempted so often
  std::uint32_t flags = 0;          // of begin
  MixContent content;
  std::vector<HeldPage> held;   // by position
  std::uint32_t cached = 0;     // hits
  std::uint32_t published = 0;  // pages of the path that are Live for sure
  bool flushed = false;         // it has been told so
  bool in_batch = false;
  bool salted = false;
  // The match inside the next page, as long as it is protected.
  std::shared_ptr<PageNote> partial;

  [[nodiscard]] std::uint64_t known() const { return content.tokens().size(); }
  [[nodiscard]] bool has(std::uint32_t flag) const { return (flags & flag) != 0; }
  [[nodiscard]] std::uint32_t positions() const { return static_cast<std::uint32_t>(held.size()); }
  [[nodiscard]] bool has_own() const { return held.size() > cached; }
};

// All that the operations of a worker have in common.
struct MixContext {
  MixCalls& calls;
  kvtrie_worker worker;
  kvtrie_geometry geometry;
  PageShape shape;
  const std::vector<kvtrie_namespace>& namespaces;
  SharedPlan& plan;
  std::uint32_t worker_number;
  WorkerTally& tally;
  MixBoard board;
  MixTally& mix;
  PageRegistry& pages;
  Random& chance;
  std::uint64_t owner_salt;
  bool drives_clock;

  // `flag` in so many of a hundred cases, else 0.
  [[nodiscard]] std::uint32_t drawn(std::uint32_t flag, std::uint64_t percent) const {
    return chance.percent(percent) ? flag : 0;
  }
  [[nodiscard]] std::uint64_t* address(std::uint32_t page, std::uint32_t plane) const;
  [[nodiscard]] std::uint64_t pages_for(std::uint64_t tokens) const {
    return (tokens + shape.tokens - 1) / shape.tokens;
  }
};

// Asks which pages the sequence holds and compares with what is known: hits stay what they were, pages of its own are
// handed out once. Pages at positions [fresh_first, fresh_end) and behind the known ones may be new; with `hits` those
// are others' pages.
struct Fresh {
  std::uint32_t first = 0;
  std::uint32_t end = 0;
  bool hits = false;
};
void look(const MixContext& context, MixSequence& sequence, Fresh fresh = {});
// Compares all that is computed in the pages that it holds, in all planes.
void check(const MixContext& context, const MixSequence& sequence, const char* when);
// Tokens from the start that are there, without a gap.
[[nodiscard]] std::uint64_t computed_tokens(const MixContext& context, const MixSequence& sequence);
// A hit of page `page`, of which `tokens` count.
[[nodiscard]] std::shared_ptr<PageNote> note_hit(const MixContext& context, std::uint32_t page, std::uint32_t tokens);

}  // namespace kvtrie::replay
