// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/llama_replay.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <exception>
#include <filesystem>
#include <iterator>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "tools/engine/llama_engine.h"
#include "tools/engine/schedule.h"

namespace kvtrie::engine {
namespace {

constexpr auto kLook = std::chrono::milliseconds(20);

class Replay {
 public:
  Replay(const LlamaModel& model, const RunSettings& settings, std::uint32_t tokens_per_page, double page_bound)
      : session_(model, settings), tokens_per_page_(tokens_per_page), page_bound_(page_bound) {}

  // Until its end, or `stop`.
  Replayed run(ScheduleReader& schedule, const std::atomic<bool>& stop);

 private:
  void compute_imported(const ScheduledImport& import);
  void compare_page(const ScheduledImport& import, const ImportedPage& page, std::uint32_t position,
                    std::uint32_t count);
  void compare_choice(const ScheduledChoice& choice);

  LlamaSession session_;
  const std::uint32_t tokens_per_page_;
  const double page_bound_;
  Replayed out_;
  std::vector<std::byte> state_;
};

// The same tokens' KV, but computed.
void Replay::compute_imported(const ScheduledImport& import) {
  const auto end = static_cast<std::uint32_t>(import.tokens.size());
  for (std::uint32_t at = 0; at < end;) {
    std::vector<BatchToken> tokens;
    for (; at < end && tokens.size() < session_.batch_tokens(); ++at)
      tokens.push_back({import.slot, import.first + at, import.tokens[at], false});
    session_.decode(tokens);
  }
  LlamaResult& result = out_.result;
  result.pages += import.pages.size();
  result.page_tokens += end;
  for (std::uint32_t i = 0; i < import.pages.size(); ++i) {
    const std::uint32_t done = i * tokens_per_page_;
    compare_page(import, import.pages[i], import.first + done, std::min(tokens_per_page_, end - done));
  }
}

void Replay::compare_page(const ScheduledImport& import, const ImportedPage& page, std::uint32_t position,
                          std::uint32_t count) {
  state_.resize(session_.shape().bytes(count));
  session_.export_to(import.slot, position, count, state_.data());
  const double off = deviation(page.sample, sample_of(state_, count));
  out_.result.page_most = std::max(out_.result.page_most, off);
  if (off == 0) ++out_.result.pages_equal_bits;
  if (off > page_bound_) out_.result.wrong_pages.push_back({import.request, position, page.page, import.time_us, off});
}

void Replay::compare_choice(const ScheduledChoice& choice) {
  LlamaResult& result = out_.result;
  const std::span<const float> logits = session_.logits(choice.index);
  const auto wanted = static_cast<std::uint32_t>(choice.tokens.size());
  const std::vector<ChosenToken> plain = best_of(logits, std::max(2U, wanted));
  out_.gaps.push_back(plain[0].logit - plain[1].logit);
  ++result.choices;
  bool same = true;
  for (std::size_t i = 0; i < choice.tokens.size(); ++i) {
    const auto [token, logit] = choice.tokens[i];
    out_.choices.emplace_back(choice.request, choice.position, token);
    const double by = std::abs(static_cast<double>(logit) - static_cast<double>(logits[token]));
    if (!(by <= result.logit.by)) result.logit = {choice.request, choice.position, by};
    if (i == 0 && by == 0) ++result.choices_equal_bits;
    if (!same || token == plain[i].token) continue;
    same = false;  // of beam search, those behind it are others' neighbours
    const double gap = std::abs(static_cast<double>(plain[i].logit) - static_cast<double>(logits[token]));
    result.differences.push_back({choice.request, choice.position, token, plain[i].token, gap});
  }
}

Replayed Replay::run(ScheduleReader& schedule, const std::atomic<bool>& stop) {
  LlamaResult& result = out_.result;
  while (const std::optional<ScheduleRecord> record = schedule.next()) {
    if (stop) break;
    switch (*record) {
      case ScheduleRecord::kRemove: {
        std::uint32_t slot = 0;
        std::uint32_t first = 0;
        schedule.remove(slot, first);
        session_.remove(slot, first);
        break;
      }
      case ScheduleRecord::kImport:
        compute_imported(schedule.import_pages());
        break;
      case ScheduleRecord::kBatch: {
        const std::vector<BatchToken> tokens = schedule.batch();
        session_.decode(tokens);
        ++result.batches;
        result.tokens += tokens.size();
        break;
      }
      case ScheduleRecord::kChoice:
        compare_choice(schedule.choice());
        break;
      default:
        throw std::runtime_error("a schedule has a record that is not known");
    }
  }
  return std::move(out_);
}

template <typename T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

void merge(Replayed& all, const Replayed& one) {
  LlamaResult& to = all.result;
  const LlamaResult& from = one.result;
  to.batches += from.batches;
  to.tokens += from.tokens;
  to.pages += from.pages;
  to.pages_equal_bits += from.pages_equal_bits;
  to.page_tokens += from.page_tokens;
  to.choices += from.choices;
  to.choices_equal_bits += from.choices_equal_bits;
  if (!(from.logit.by <= to.logit.by)) to.logit = from.logit;
  to.page_most = std::max(to.page_most, from.page_most);
  append(to.differences, from.differences);
  append(to.wrong_pages, from.wrong_pages);
  append(all.gaps, one.gaps);
  append(all.choices, one.choices);
}

}  // namespace

Replayed replay_all(const std::string& directory, const LlamaModel& model, const RunSettings& settings,
                    std::uint32_t tokens_per_page, double page_bound, const std::function<bool()>& asked_to_end) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    paths.push_back(entry.path().string());
  std::ranges::sort(paths);
  Replayed all;
  std::exception_ptr failure;
  std::mutex mutex;
  std::atomic<std::size_t> next = 0;
  std::atomic<std::size_t> running = 0;
  std::atomic<bool> stop = false;
  const auto work = [&] {
    try {
      for (std::size_t i = next++; i < paths.size(); i = next++) {
        ScheduleReader schedule(paths[i]);
        const Replayed one = Replay(model, settings, tokens_per_page, page_bound).run(schedule, stop);
        const std::lock_guard lock(mutex);
        merge(all, one);
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
    --running;
  };
  {
    std::vector<std::jthread> threads;
    const std::size_t count = std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, 16);
    running = std::min(count, paths.size());
    for (std::size_t i = running; i > 0; --i)
      threads.emplace_back(work);
    while (running > 0 && !stop) {
      std::this_thread::sleep_for(kLook);
      stop = asked_to_end();
    }
  }
  if (stop) throw std::runtime_error("stopped by a signal");
  if (failure) std::rethrow_exception(failure);
  std::ranges::sort(all.choices);
  std::ranges::sort(all.result.differences, {},
                    [](const TokenDifference& one) { return std::tuple(one.request, one.position); });
  std::ranges::sort(all.result.wrong_pages, {},
                    [](const WrongPage& one) { return std::tuple(one.time_us, one.position); });
  return all;
}

}  // namespace kvtrie::engine
