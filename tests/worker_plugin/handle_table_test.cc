// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/handle_table.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include "tests/shm/test_support.h"

namespace kvtrie {
namespace {

// In static storage, as fork's zeroing wants it; each test begins with nothing open.
constinit HandleTable table;

// The table only passes it on.
AttachedCache* some_cache(std::uintptr_t n = 1) { return reinterpret_cast<AttachedCache*>(n * 64); }

PoolView pools() {
  static std::byte bytes[2][4 * 64];
  PoolView view;
  view.pages = 4;
  view.page_bytes = 64;
  view.planes = 2;
  view.plane[0] = bytes[0];
  view.plane[1] = bytes[1];
  return view;
}

std::uint64_t attach(AttachedCache* cache = some_cache()) {
  const Result<std::uint32_t> index = table.reserve();
  EXPECT_TRUE(index);
  return table.open(*index, cache, pools());
}

std::vector<Sequence*> detach(std::uint64_t id) {
  std::vector<Sequence*> released;
  AttachedCache* cache = nullptr;
  EXPECT_EQ(
      table.close(id, cache, [&](AttachedCache&, Sequence& open) { released.push_back(&open); }),
      Code::kOk);
  EXPECT_NE(cache, nullptr);
  return released;
}

std::uint64_t begin(std::uint64_t attachment) {
  const Inside inside = table.enter(attachment);
  EXPECT_EQ(inside.code, Code::kOk);
  table.sequence(inside.slot);
  return table.leave(inside.slot);
}

TEST(HandleTableTest, IdsNeverComeBack) {
  std::set<std::uint64_t> attachments, sequences;
  for (int i = 0; i < 100; ++i) {
    const std::uint64_t id = attach();
    EXPECT_TRUE(attachments.insert(id).second);
    for (int j = 0; j < 3; ++j) {
      const std::uint64_t sequence = begin(id);
      EXPECT_TRUE(sequences.insert(sequence).second);
      const Inside inside = table.enter_sequence(sequence);
      ASSERT_EQ(inside.code, Code::kOk);
      table.end(inside.slot);
      EXPECT_EQ(table.enter_sequence(sequence).code, Code::kStale);
    }
    detach(id);
    EXPECT_EQ(table.enter(id).code, Code::kStale);
  }
  for (const std::uint64_t sequence : sequences) {
    EXPECT_EQ(table.enter_sequence(sequence).code, Code::kStale);
  }
}

TEST(HandleTableTest, SlotsAreUsedAgain) {
  const std::uint64_t id = attach();
  std::set<std::uint32_t> slots;
  for (int i = 0; i < 1000; ++i) {
    const Inside inside = table.enter_sequence(begin(id));
    slots.insert(inside.slot);
    table.end(inside.slot);
  }
  EXPECT_LE(slots.size(), 2U);
  detach(id);
}

TEST(HandleTableTest, SecondCallOnASequenceIsBusy) {
  const std::uint64_t id = attach();
  const std::uint64_t sequence = begin(id);
  const Inside first = table.enter_sequence(sequence);
  EXPECT_EQ(first.cache, some_cache());
  EXPECT_EQ(table.enter_sequence(sequence).code, Code::kBusy);
  table.leave(first.slot);
  const Inside second = table.enter_sequence(sequence);
  EXPECT_EQ(second.code, Code::kOk);
  table.end(second.slot);
  detach(id);
}

TEST(HandleTableTest, CloseWhileInsideIsBusyAndChangesNothing) {
  const std::uint64_t id = attach();
  const std::uint64_t one = begin(id), two = begin(id);
  AttachedCache* cache = nullptr;
  const auto release = [](AttachedCache&, Sequence&) { ADD_FAILURE() << "released"; };
  const Inside inside = table.enter_sequence(two);
  EXPECT_EQ(table.close(id, cache, release), Code::kBusy);
  const Inside other = table.enter_sequence(one);  // claimed meanwhile, and given back
  EXPECT_EQ(other.code, Code::kOk);
  table.leave(other.slot);
  table.leave(inside.slot);
  const Inside spare = table.enter(id);
  EXPECT_EQ(table.close(id, cache, release), Code::kBusy);
  table.end(spare.slot);
  EXPECT_EQ(detach(id).size(), 2U);
}

TEST(HandleTableTest, CloseReleasesItsOwnSequencesOnly) {
  const std::uint64_t one = attach(some_cache(1)), two = attach(some_cache(2));
  begin(one);
  const std::uint64_t kept = begin(two);
  begin(one);
  EXPECT_EQ(detach(one).size(), 2U);
  const Inside inside = table.enter_sequence(kept);
  EXPECT_EQ(inside.code, Code::kOk);
  EXPECT_EQ(inside.cache, some_cache(2));
  table.leave(inside.slot);
  EXPECT_EQ(detach(two).size(), 1U);
}

TEST(HandleTableTest, PageAddresses) {
  const std::uint64_t id = attach();
  EXPECT_EQ(table.page_address(id, 3, 1).address, pools().plane[1] + 3 * 64);
  EXPECT_EQ(table.page_address(id, 4, 1).code, Code::kInvalid);
  EXPECT_EQ(table.page_address(id, 3, 2).code, Code::kInvalid);
  EXPECT_EQ(table.page_address(id, 3, kPlanesMax).code, Code::kInvalid);
  detach(id);
  EXPECT_EQ(table.page_address(id, 3, 1).code, Code::kStale);
}

TEST(HandleTableTest, AllSlotsTakenAnswersFullAndRecovers) {
  const std::uint64_t id = attach();
  std::vector<std::uint64_t> open;
  for (;;) {
    const Inside inside = table.enter(id);
    if (inside.code != Code::kOk) {
      EXPECT_EQ(inside.code, Code::kFull);
      break;
    }
    table.sequence(inside.slot);
    open.push_back(table.leave(inside.slot));
  }
  EXPECT_GE(open.size(), HandleTable::kSlotsMax - 8);  // some are another index's for good (H4)
  const Inside inside = table.enter_sequence(open.back());
  table.end(inside.slot);
  EXPECT_EQ(table.enter(id).code, Code::kOk);
  table.end(inside.slot);
  EXPECT_EQ(detach(id).size(), open.size() - 1);
}

// What an attachment is here: it knows who is inside and whether it is over.
struct Watched {
  std::atomic<int> inside{0};
  std::atomic<bool> over{false};
};

TEST(HandleTableTest, NobodyIsInsideAfterClose) {
  std::vector<Watched> caches(400);
  std::atomic<std::uint64_t> current{0}, sequence{0};
  std::atomic<unsigned> wrong{0};
  std::atomic<bool> stop{false};
  std::vector<std::jthread> threads;
  for (unsigned t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      while (!stop.load()) {
        const Inside inside =
            t == 0 ? table.enter(current.load()) : table.enter_sequence(sequence.load());
        if (inside.code != Code::kOk) continue;
        auto& cache = *reinterpret_cast<Watched*>(inside.cache);
        ++cache.inside;
        if (cache.over.load()) ++wrong;
        --cache.inside;
        if (t == 0) {
          table.end(inside.slot);
        } else {
          table.leave(inside.slot);
        }
      }
    });
  }
  for (Watched& cache : caches) {
    const std::uint64_t id = attach(reinterpret_cast<AttachedCache*>(&cache));
    sequence = begin(id);
    current = id;
    Code code = Code::kBusy;
    AttachedCache* closed = nullptr;
    while (code == Code::kBusy)
      code = table.close(id, closed, [](AttachedCache&, Sequence&) {});
    EXPECT_EQ(code, Code::kOk);
    EXPECT_EQ(closed, reinterpret_cast<AttachedCache*>(&cache));
    cache.over = true;
    if (cache.inside.load() != 0) ++wrong;
  }
  stop = true;
  threads.clear();
  EXPECT_EQ(wrong.load(), 0U);
}

TEST(HandleTableTest, OneThreadAtATimeIsInsideASequence) {
  const std::uint64_t id = attach();
  const std::uint64_t sequence = begin(id);
  std::atomic<int> inside_now{0};
  std::atomic<unsigned> wrong{0};
  {
    std::vector<std::jthread> threads;
    for (unsigned t = 0; t < 3; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 200'000; ++i) {
          const Inside inside = table.enter_sequence(sequence);
          if (inside.code == Code::kBusy) continue;
          if (inside.code != Code::kOk || inside_now.fetch_add(1) != 0) ++wrong;
          inside_now.fetch_sub(1);
          table.leave(inside.slot);
        }
      });
    }
  }
  EXPECT_EQ(wrong.load(), 0U);
  detach(id);
}

TEST(HandleTableTest, ForkedChildHasNoneOfTheParentsAndNumbersGoOn) {
  const std::uint64_t id = attach();
  const std::uint64_t idle = begin(id), inside_one = begin(id);
  ASSERT_EQ(table.enter_sequence(inside_one).code, Code::kOk);
  test::Child child([&](const test::Line&) {
    if (table.enter(id).code != Code::kStale || !table.inherited(id)) return 1;
    if (table.enter_sequence(idle).code != Code::kStale) return 2;
    if (!table.inherited_sequence(idle) || !table.inherited_sequence(inside_one)) return 3;
    if (table.enter_sequence(inside_one).code != Code::kStale) return 4;
    const std::uint64_t mine = attach(some_cache(3));
    if (mine == id || table.enter(id).code != Code::kStale) return 5;
    bool used_again = false;
    for (int i = 0; i < 10; ++i) {
      const std::uint64_t sequence = begin(mine);
      if (sequence == idle || sequence == inside_one) return 6;
      used_again |= (sequence & 0xFFFF) == (idle & 0xFFFF);
    }
    if (!used_again) return 9;  // each generation of children would lose its parent's slots
    if (table.enter_sequence(idle).code != Code::kStale) return 7;
    return detach(mine).size() == 10 ? 0 : 8;
  });
  EXPECT_EQ(child.wait(), 0);
  const Inside inside = table.enter_sequence(idle);
  EXPECT_EQ(inside.code, Code::kOk);
  table.leave(inside.slot);
  table.leave(static_cast<std::uint32_t>(inside_one & 0xFFFF));
  EXPECT_FALSE(table.inherited(id));
  EXPECT_EQ(detach(id).size(), 2U);
}

}  // namespace
}  // namespace kvtrie
