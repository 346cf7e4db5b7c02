// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/mix_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "shm/verify.h"

namespace kvtrie::replay {
namespace {

constexpr auto kVerifyLimit = std::chrono::seconds(5);
constexpr auto kVerifyAgainAfter = std::chrono::milliseconds(20);
constexpr std::size_t kFindingsShown = 10;

// By kvtrie_code.
constexpr const char* kCodeNames[kMixCodes] = {
    "ok",        "invalid", "not now", "never",          "timeout", "stale", "corrupt", "poisoned",
    "not found", "refused", "full",    "no coordinator", "busy",    "?",     "system",  "flushed"};

std::uint64_t used(const MixTally& sum, std::size_t call) {
  std::uint64_t all = 0;
  for (std::size_t code = 0; code < kMixCodes; ++code)
    all += sum.get(static_cast<MixCall>(call), static_cast<kvtrie_code>(code));
  return all;
}

}  // namespace

void add_mix(const SharedPlan& plan, MixTally& sum) {
  const MixBoard board(plan);
  for (std::uint32_t worker = 0; worker < plan.worker_count(); ++worker) {
    const MixTally& tally = board.tally(worker);
    for (std::size_t i = 0; i < kMixEvents; ++i)
      sum.add(static_cast<MixEvent>(i), tally.get(static_cast<MixEvent>(i)));
    for (std::size_t call = 0; call < kMixCalls; ++call) {
      for (std::size_t code = 0; code < kMixCodes; ++code)
        sum.answers[call][code].fetch_add(tally.answers[call][code].load(std::memory_order_relaxed));
    }
  }
}

std::string mix_to_text(const MixTally& sum) {
  std::string text = fmt::format("  {:<20} {:>9}  answers\n", "call", "used");
  for (std::size_t call = 0; call < kMixCalls; ++call) {
    text += fmt::format("  {:<20} {:>9} ", kMixCallNames[call], used(sum, call));
    const char* between = " ";
    for (std::size_t code = 0; code < kMixCodes; ++code) {
      const std::uint64_t count = sum.get(static_cast<MixCall>(call), static_cast<kvtrie_code>(code));
      if (count == 0) continue;
      text += fmt::format("{}{} {}", between, kCodeNames[code], count);
      between = ", ";
    }
    text += "\n";
  }
  text += "  what came of it\n";
  for (std::size_t i = 0; i < kMixEvents; ++i)
    text += fmt::format("  {:>12} {}\n", sum.get(static_cast<MixEvent>(i)), kMixEventNames[i]);
  return text;
}

std::string mix_to_json(const MixTally& sum) {
  nlohmann::ordered_json json;
  for (std::size_t call = 0; call < kMixCalls; ++call) {
    nlohmann::ordered_json& answers = json["calls"][kMixCallNames[call]] = nlohmann::ordered_json::object();
    for (std::size_t code = 0; code < kMixCodes; ++code) {
      const std::uint64_t count = sum.get(static_cast<MixCall>(call), static_cast<kvtrie_code>(code));
      if (count > 0) answers[kCodeNames[code]] = count;
    }
  }
  for (std::size_t i = 0; i < kMixEvents; ++i)
    json["events"][kMixEventNames[i]] = sum.get(static_cast<MixEvent>(i));
  return json.dump();
}

std::string mix_problem(const MixTally& sum) {
  if (sum.get(MixEvent::kOperations) < kMixLongEnough) return {};
  std::string unused;
  for (std::size_t call = 0; call < kMixCalls; ++call) {
    if (used(sum, call) == 0) unused += fmt::format(" {}", kMixCallNames[call]);
  }
  return unused.empty() ? unused : fmt::format("{} operations never used:{}", sum.get(MixEvent::kOperations), unused);
}

std::string verify_problem(const Observer& observer, bool alone) {
  const auto deadline = std::chrono::steady_clock::now() + kVerifyLimit;
  VerifyReport report = verify(observer.segment(), {.at_rest = alone});
  // The slots of those who have left are cleared a little later.
  while (!report.clean() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(kVerifyAgainAfter);
    report = verify(observer.segment(), {.at_rest = alone});
  }
  std::string text;
  for (std::size_t i = 0; i < std::min(report.findings.size(), kFindingsShown); ++i)
    text += fmt::format("\n  {}", to_string(report.findings[i]));
  return text.empty() ? text : fmt::format("verify: {} findings at the end{}", report.findings.size(), text);
}

}  // namespace kvtrie::replay
