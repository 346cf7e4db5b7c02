// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/worker_plugin/errors/error_world.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <csignal>
#include <string_view>

#include "shm/lease_table.h"
#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/verify.h"
#include "shm/worker_table.h"

namespace kvtrie::test {
namespace {

// Parts in their order, '*' between them.
bool has_parts(std::string_view text, std::string_view parts) {
  while (!parts.empty()) {
    const std::size_t star = std::min(parts.find('*'), parts.size());
    const std::size_t found = text.find(parts.substr(0, star));
    if (found == std::string_view::npos) return false;
    text.remove_prefix(found + star);
    parts.remove_prefix(std::min(star + 1, parts.size()));
  }
  return true;
}

}  // namespace

ErrorWorld::ErrorWorld(std::vector<std::string> more, std::uint32_t timeout)
    : timeout_ms(timeout), more_(std::move(more)) {
  directory = cache_.directory();
  start_daemon();
  Result<Segment> opened = open_segment(cache_.name(), Access::kReadWrite);
  if (!opened) {
    ADD_FAILURE() << "no segment";
    return;
  }
  segment_.emplace(std::move(*opened));
  worker = attach();
  space = open(worker, "model");
  gone_worker = attach();
  EXPECT_EQ(kvtrie_detach(gone_worker), KVTRIE_OK);
  gone_sequence = begin(worker, space, {});
  EXPECT_EQ(kvtrie_release(gone_sequence), KVTRIE_OK);
  sequence = allocated(worker, space, prompt(1, 3), kPageTokens);
  settle();
}

ErrorWorld::~ErrorWorld() {
  if (!segment_) return;
  if (!daemon_) start_daemon();
  for (const kvtrie_worker one : attached_) {
    const kvtrie_code code = kvtrie_detach(one);
    EXPECT_TRUE(code == KVTRIE_OK || code == KVTRIE_E_STALE) << kvtrie_last_error();
  }
  const auto empty = [&] { return WorkerTable(*segment_).stats().slots[0] + 1 == segment_->slot_count(); };
  EXPECT_TRUE(segment_->poisoned() || eventually(empty)) << snapshot().text();
  EXPECT_EQ(daemon_->stop(), 0) << daemon_->err();
  if (segment_->poisoned()) return;  // its successor serves by now
  const Snapshot end = snapshot();
  EXPECT_EQ(end.leases, 0U);
  EXPECT_EQ(
      end.pages[static_cast<std::size_t>(PageState::kFree)] + end.pages[static_cast<std::size_t>(PageState::kLive)],
      segment_->page_count())
      << end.text();
  const VerifyReport report = verify(*segment_, {.at_rest = true});
  EXPECT_TRUE(report.clean()) << to_string(report.findings.at(0));
}

void ErrorWorld::start_daemon() {
  std::vector<std::string> words = {"--metrics", "off"};
  if (!segment_) {
    words.insert(words.end(), {"--pages", std::to_string(kWorldPages), "--page-bytes", "1K", "--planes", "2",
                               "--workers", "6", "--stripes", "8", "--low", "0", "--high", "0"});
    words.insert(words.end(), more_.begin(), more_.end());
  }
  daemon_ = std::make_unique<KvtriedProcess>(cache_, std::move(words));
  EXPECT_TRUE(daemon_->ready()) << daemon_->err();
}

void ErrorWorld::kill_daemon() {
  daemon_->send(SIGKILL);
  (void)daemon_->wait();
  daemon_.reset();
}

kvtrie_attach_options ErrorWorld::options() const {
  auto where = sized<kvtrie_attach_options>();
  where.cache = cache_.name().c_str();
  where.directory = directory.c_str();
  where.timeout_ms = timeout_ms;
  return where;
}

kvtrie_worker ErrorWorld::attach() {
  const kvtrie_attach_options where = options();
  kvtrie_worker attached{0};
  EXPECT_EQ(kvtrie_attach(&where, &attached), KVTRIE_OK) << kvtrie_last_error();
  attached_.push_back(attached);
  return attached;
}

kvtrie_namespace ErrorWorld::open(kvtrie_worker of, const std::string& model) {
  const kvtrie_field field{"model", model.c_str()};
  kvtrie_namespace opened{0};
  EXPECT_EQ(kvtrie_open_namespace(of, &field, 1, model.c_str(), &opened), KVTRIE_OK) << kvtrie_last_error();
  return opened;
}

kvtrie_sequence ErrorWorld::begin(kvtrie_worker of, kvtrie_namespace in, const Tokens& tokens, std::uint32_t flags) {
  auto asked = sized<kvtrie_begin_options>();
  asked.flags = flags;
  auto result = sized<kvtrie_begin_result>();
  kvtrie_sequence begun{0};
  EXPECT_EQ(kvtrie_begin(of, in, tokens.data(), tokens.size(), &asked, &result, &begun), KVTRIE_OK)
      << kvtrie_last_error();
  return begun;
}

kvtrie_sequence ErrorWorld::allocated(kvtrie_worker of, kvtrie_namespace in, const Tokens& tokens,
                                      std::uint64_t published) {
  const kvtrie_sequence begun = begin(of, in, tokens);
  EXPECT_EQ(kvtrie_allocate(begun, tokens.size(), nullptr), KVTRIE_OK) << kvtrie_last_error();
  EXPECT_EQ(kvtrie_publish(begun, published, nullptr), KVTRIE_OK) << kvtrie_last_error();
  return begun;
}

std::uint32_t ErrorWorld::page_of(kvtrie_sequence of, std::uint32_t position) const {
  std::uint32_t page = KVTRIE_NO_PAGE;
  EXPECT_EQ(kvtrie_get_pages(of, position, 1, &page), KVTRIE_OK) << kvtrie_last_error();
  return page;
}

void ErrorWorld::settle() {
  const WorkerTable table(*segment_);
  EXPECT_TRUE(eventually([&] {
    const WorkerTableStats now = table.stats();
    return now.slots[static_cast<int>(SlotState::kFree)] + now.slots[static_cast<int>(SlotState::kActive)] + 1 ==
           segment_->slot_count();
  }));
}

ErrorWorld::Snapshot ErrorWorld::snapshot() const {
  Snapshot now;
  now.pages = PageTable(*segment_).stats().by_state;
  now.leases = LeaseTable(*segment_).stats().all();
  const WorkerTableStats slots = WorkerTable(*segment_).stats();
  std::copy(std::begin(slots.slots), std::end(slots.slots), now.slots.begin());
  now.namespaces = NamespaceTable(*segment_).stats().open;
  auto counters = sized<kvtrie_counters>();
  (void)kvtrie_get_counters(worker, &counters);
  now.counters = {counters.pages_allocated, counters.pages_published,      counters.pages_given_back,
                  counters.forks,           counters.incomplete_published, counters.batches};
  std::array<kvtrie_own_page, kWorldPages> own{};
  std::uint32_t count = 0;
  if (kvtrie_own_pages(sequence, own.data(), kWorldPages, &count) == KVTRIE_OK) {
    for (std::uint32_t i = 0; i < count; ++i)
      now.own_pages.insert(now.own_pages.end(), {own[i].position, own[i].page, own[i].state});
  }
  return now;
}

std::string ErrorWorld::Snapshot::text() const {
  return fmt::format("pages {} leases {} slots {} namespaces {} counters {} own {}", pages, leases, slots, namespaces,
                     counters, own_pages);
}

void ErrorWorld::run(const ErrorCases& cases) {
  EXPECT_FALSE(cases.empty());
  for (const ErrorCase& one : cases)
    run_one(one);
}

void ErrorWorld::run_one(const ErrorCase& one) {
  const std::string label = fmt::format("{} {}", one.call, kvtrie_code_name(one.code));
  const Snapshot before = snapshot();
  const kvtrie_code code = one.provoke(*this);
  const std::string text = kvtrie_last_error();
  EXPECT_EQ(code, one.code) << label << " answered " << kvtrie_code_name(code) << ": " << text;
  if (code == KVTRIE_OK) return;
  EXPECT_TRUE(text.starts_with(std::string(one.call) + ": ")) << label << ": " << text;
  EXPECT_TRUE(has_parts(text, one.says)) << label << "\n  is: " << text << "\n  not: " << one.says;
  // What a failed attach left goes when the coordinator has seen its connection end.
  Snapshot after = snapshot();
  const bool as_before =
      eventually([&] { return (after = snapshot()) == before; }, std::chrono::milliseconds(daemon_ ? 5000 : 0));
  EXPECT_TRUE(as_before) << label << " changed something\n  before: " << before.text()
                         << "\n  after:  " << after.text();
}

}  // namespace kvtrie::test
