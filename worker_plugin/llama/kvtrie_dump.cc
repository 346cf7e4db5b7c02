// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/kvtrie_dump.h"

#include <algorithm>
#include <exception>
#include <stdexcept>
#include <utility>

#include "dump/dumper.h"
#include "worker_plugin/llama/timer.h"

namespace kvtrie::llama {
namespace {

const char* name_of(kvtrie_page_state state) {
  switch (state) {
    case KVTRIE_PAGE_PRIVATE:
      return "private";
    case KVTRIE_PAGE_ANNOUNCED:
      return "announced";
    case KVTRIE_PAGE_PUBLISHED:
      return "published";
    case KVTRIE_PAGE_INCOMPLETE:
      return "incomplete";
    case KVTRIE_PAGE_BORROWED:
      return "borrowed";
  }
  return "own";
}

}  // namespace

// A sequence's pages, for as long as this lives.
struct DecodeDump::Held {
  std::vector<std::uint32_t> table;
  std::vector<const char*> states;  // of those that have their bytes, the first ones of the table
  std::uint64_t cached_tokens = 0;
  kvtrie_sequence lease{};  // of the dump's own, where the sequence has none

  Held() = default;
  Held(Held&& other) noexcept
      : table(std::move(other.table)),
        states(std::move(other.states)),
        cached_tokens(other.cached_tokens),
        lease(std::exchange(other.lease, {})) {}
  Held& operator=(Held&&) = delete;
  ~Held() {
    if (lease.id != 0) (void)kvtrie_release(lease);
  }
};

void SharedContext::set_dumps(dump::Dumper* dumper, Say say) {
  dumper_ = dumper != nullptr && dumper->on() ? dumper : nullptr;
  say_of_dumps_ = say;
}

DecodeDump::DecodeDump(SharedContext& context, std::span<const ComputedTokens> batch) noexcept : context_(context) {
  if (!context.dumps() || std::ranges::none_of(batch, [&](const ComputedTokens& part) {
        return context.dumper_->wants(part.sequence->tag_, part.sequence->asks_for_dumps_);
      })) {
    return;
  }
  try {
    for (const ComputedTokens& part : batch) add(part);
  } catch (const std::exception& error) {
    batch_.clear();
    failed(error.what());
    return;
  }
  write("before");
  context.pages_stay_ = context.dumper_->options().after;
}

DecodeDump::~DecodeDump() {
  if (batch_.empty() || !context_.pages_stay_) return;
  context_.pages_stay_ = false;
  for (const Request& request : batch_) request.sequence->rest();
}

void DecodeDump::after() noexcept {
  if (!batch_.empty() && context_.dumper_->options().after) write("after");
}

void DecodeDump::add(const ComputedTokens& part) {
  const SharedSequence& sequence = *part.sequence;
  Request request;
  request.sequence = part.sequence;
  request.tokens.assign(sequence.tokens_.begin(),
                        sequence.tokens_.begin() + static_cast<std::ptrdiff_t>(sequence.size_));
  request.count = part.tokens.size();
  if (sequence.diverged_) {  // what lies between is not known
    request.kind = "diverged";
    const llama_pos last = context_.calls_.llama_memory_seq_pos_max(context_.memory_, sequence.id_);
    request.first = static_cast<std::uint64_t>(std::max(last + 1, 0));
  } else {
    request.kind = request.count == 0 ? "spared" : request.count == 1 && sequence.size_ > 0 ? "decode" : "prefill";
    request.first = sequence.size_;
    request.tokens.insert(request.tokens.end(), part.tokens.begin(), part.tokens.end());
  }
  batch_.push_back(std::move(request));
}

DecodeDump::Held DecodeDump::pages_of(const SharedSequence& sequence) const {
  Held held;
  if (sequence.sequence_.id != 0) {
    std::uint32_t count = 0;
    if (kvtrie_page_count(sequence.sequence_, &count) != KVTRIE_OK) return held;
    held.table.resize(count);
    if (count != 0 && kvtrie_get_pages(sequence.sequence_, 0, count, held.table.data()) != KVTRIE_OK) return {};
    held.cached_tokens = std::uint64_t{sequence.cached_} * context_.tokens_per_page();
    held.states.assign(std::min(sequence.written_, count), "cached");
    std::vector<kvtrie_own_page> own(count);
    std::uint32_t owned = 0;
    if (kvtrie_own_pages(sequence.sequence_, own.data(), count, &owned) != KVTRIE_OK) return held;
    for (std::uint32_t i = 0; i < std::min(owned, count); ++i) {
      if (own[i].position < held.states.size()) held.states[own[i].position] = name_of(own[i].state);
    }
    return held;
  }
  const std::size_t whole = sequence.size_ / context_.tokens_per_page() * context_.tokens_per_page();
  if (whole == 0 || context_.lost_) return held;
  kvtrie_begin_options options{};
  options.size = sizeof options;
  options.flags = KVTRIE_NO_PUBLISH;
  options.request_tag = sequence.tag_;
  kvtrie_begin_result found{};
  found.size = sizeof found;
  if (kvtrie_begin(context_.attachment_->worker, context_.namespace_, sequence.tokens_.data(), whole, &options, &found,
                   &held.lease) != KVTRIE_OK) {
    held.lease = {};
    return held;
  }
  held.table.resize(found.cached_pages);
  if (found.cached_pages != 0 &&
      kvtrie_get_pages(held.lease, 0, found.cached_pages, held.table.data()) != KVTRIE_OK) {
    held.table.clear();
  }
  held.states.assign(held.table.size(), "found");
  held.cached_tokens = found.cached_tokens;
  return held;
}

void DecodeDump::write_or_throw(const char* moment) {
  std::string fields;
  for (const auto& [key, value] : context_.fields_) fields += key + "=" + value + "\n";
  // What is behind the state in a page is nobody's.
  const std::size_t bytes = context_.shape_.bytes(context_.tokens_per_page());
  dump::Dump dump{.moment = moment, .engine = "llama.cpp", .requests = {}, .batch = {}, .pages = {}};
  std::vector<Held> all;
  all.reserve(batch_.size());  // the dump names what is in them
  for (const Request& request : batch_) {
    const std::uint64_t index = all.size();
    const Held& held = all.emplace_back(pages_of(*request.sequence));
    dump.requests.push_back({.id = "sequence " + std::to_string(request.sequence->id_),
                             .tag = request.sequence->tag_,
                             .name_space = fields,
                             .tokens = request.tokens,
                             .cached_tokens = held.cached_tokens,
                             .page_table = held.table});
    dump.batch.push_back(
        {.request = index, .kind = request.kind, .first_token = request.first, .token_count = request.count});
    for (std::uint32_t position = 0; position < held.states.size(); ++position) {
      const std::byte* const first = context_.page(held.table[position]);
      if (first == nullptr) continue;
      const std::span<const std::byte> page(first, bytes);
      dump.pages.push_back({.request = index,
                            .position = position,
                            .page = held.table[position],
                            .plane = 0,
                            .state = held.states[position],
                            .bytes = page,
                            .parts = dump::parts_of_page(fields, page)});
    }
  }
  const dump::WrittenDump done = context_.dumper_->write(dump);
  if (done.directory.empty()) throw std::runtime_error(done.error.empty() ? "no memory" : done.error);
  ++context_.counters_.dumps;
}

void DecodeDump::write(const char* moment) noexcept {
  const Timer timer(context_.counters_.dump_ns);
  try {
    write_or_throw(moment);
  } catch (const std::exception& error) {
    failed(error.what());
  }
}

// The engine goes on without.
void DecodeDump::failed(const std::string& why) noexcept {
  const bool first = context_.counters_.dump_failures++ == 0;
  try {
    context_.last_failure_ = "dump: " + why;
    if (first && context_.say_of_dumps_ != nullptr) context_.say_of_dumps_("a dump was not written: " + why);
  } catch (const std::exception&) {  // no memory for the words
  }
}

}  // namespace kvtrie::llama
