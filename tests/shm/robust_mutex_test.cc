// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Every trap that robust_mutex.h lists, with real processes killed while they hold the lock.

#include "shm/robust_mutex.h"

#include <gtest/gtest.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <climits>
#include <thread>
#include <vector>

#include "tests/shm/test_support.h"

namespace kvtrie {
namespace {

// The thread sanitizer reports the very misuse of a lock that some cases show the answer to.
#ifdef KVTRIE_TSAN
constexpr bool kMisuseIsReported = true;
#else
constexpr bool kMisuseIsReported = false;
#endif

using test::Child;
using test::Line;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kBytes = 4096;
constexpr std::int64_t kLongNs = 10'000'000'000;

class RobustMutexTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<FileDescriptor> fd = test::nameless_object(kBytes);
    ASSERT_TRUE(fd) << fd.error().what();
    fd_ = std::move(*fd);
    Result<Mapping> mapping = map();
    ASSERT_TRUE(mapping) << mapping.error().what();
    mapping_.emplace(std::move(*mapping));
    ASSERT_TRUE(RobustMutex::init(mutex()));
    ASSERT_TRUE(RobustMutex::init(mutex(1)));
    ASSERT_TRUE(RobustMutex::init(mutex(2)));
  }

  Result<Mapping> map() const { return Mapping::map(fd_.get(), kBytes, Access::kReadWrite); }
  static pthread_mutex_t& in(const Mapping& mapping, int i = 0) {
    return *reinterpret_cast<pthread_mutex_t*>(mapping.data() + i * 64);
  }
  pthread_mutex_t& mutex(int i = 0) const { return in(*mapping_, i); }

  // Runs in a child: maps, takes lock `i` by whatever way, says its code, and stays until it is
  // killed.
  int hold_for_ever(Line line, int i = 0) const {
    const Result<Mapping> own = map();
    if (!own) return 1;
    const Status status = RobustMutex::acquire(in(*own, i), kLongNs);
    line.say(static_cast<char>('a' + static_cast<int>(status.code())));
    line.hear();
    for (;;)
      ::pause();
  }
  static char spoken(Code code) { return static_cast<char>('a' + static_cast<int>(code)); }

  // Leaves the lock as a killed process leaves it.
  void die_inside(int i = 0) const {
    Child holder([&](Line line) { return hold_for_ever(line, i); });
    const char heard = holder.line().hear();
    ASSERT_TRUE(heard == spoken(Code::kOk) || heard == spoken(Code::kOwnerDied)) << heard;
    holder.kill();
  }
  Code code_of_acquire(std::int64_t wait_ns = RobustMutex::kWaitNs, int i = 0) const {
    return RobustMutex::acquire(mutex(i), wait_ns).code();
  }

  FileDescriptor fd_;
  std::optional<Mapping> mapping_;
};

TEST_F(RobustMutexTest, ExcludesOtherProcesses) {
  constexpr int kRounds = 20'000;
  auto& counter = *reinterpret_cast<volatile std::uint64_t*>(mapping_->data() + 1024);
  auto add = [](pthread_mutex_t& lock, volatile std::uint64_t& word) {
    for (int i = 0; i < kRounds; ++i) {
      if (!RobustMutex::acquire(lock, kLongNs)) return 1;
      word = word + 1;
      if (!RobustMutex::release(lock)) return 2;
    }
    return 0;
  };
  Child child([&](Line) {
    const Result<Mapping> own = map();
    return own ? add(in(*own), *reinterpret_cast<volatile std::uint64_t*>(own->data() + 1024)) : 3;
  });
  EXPECT_EQ(add(mutex(), counter), 0);
  EXPECT_EQ(child.wait(), 0);
  EXPECT_EQ(counter, 2U * kRounds);
}

TEST_F(RobustMutexTest, SurvivorOfAKilledHolderGetsOwnerDied) {
  die_inside();
  ASSERT_EQ(code_of_acquire(), Code::kOwnerDied);
  EXPECT_EQ(RobustMutex::held_by_this_thread(), 1U);
  ASSERT_TRUE(RobustMutex::mark_consistent(mutex()));
  ASSERT_TRUE(RobustMutex::release(mutex()));
  ASSERT_EQ(code_of_acquire(), Code::kOk);
  ASSERT_TRUE(RobustMutex::release(mutex()));
  EXPECT_EQ(RobustMutex::held_by_this_thread(), 0U);
}

TEST_F(RobustMutexTest, WaiterIsWokenByTheHoldersDeath) {
  Child holder([&](Line line) { return hold_for_ever(line); });
  ASSERT_EQ(holder.line().hear(), spoken(Code::kOk));
  Child waiter([&](Line line) { return hold_for_ever(line); });  // sleeps up to 10 s for it
  holder.kill();
  EXPECT_EQ(waiter.line().hear(), spoken(Code::kOwnerDied));
}

TEST_F(RobustMutexTest, RecovererThatDiesBeforeMarkingLeavesTheSameTask) {
  die_inside();
  for (int i = 0; i < 3; ++i)
    die_inside();  // takes it as OwnerDied, is killed before it marks
  ASSERT_EQ(code_of_acquire(), Code::kOwnerDied);
  ASSERT_TRUE(RobustMutex::mark_consistent(mutex()));
  ASSERT_TRUE(RobustMutex::release(mutex()));
}

TEST_F(RobustMutexTest, RecovererThatDiesAfterMarkingStillHoldingLeavesTheSameTask) {
  die_inside();
  Child recoverer([&](Line line) {
    const Result<Mapping> own = map();
    if (!own || RobustMutex::acquire(in(*own)).code() != Code::kOwnerDied) return 1;
    if (!RobustMutex::mark_consistent(in(*own))) return 2;
    line.say();
    line.hear();
    return 3;
  });
  ASSERT_EQ(recoverer.line().hear(), '+');
  recoverer.kill();
  ASSERT_EQ(code_of_acquire(), Code::kOwnerDied);
  ASSERT_TRUE(RobustMutex::mark_consistent(mutex()));
  ASSERT_TRUE(RobustMutex::release(mutex()));
}

TEST_F(RobustMutexTest, RecovererThatDiesAfterMarkingAndReleasingLeavesAGoodLock) {
  die_inside();
  Child recoverer([&](Line line) {
    const Result<Mapping> own = map();
    if (!own || RobustMutex::acquire(in(*own)).code() != Code::kOwnerDied) return 1;
    if (!RobustMutex::mark_consistent(in(*own)) || !RobustMutex::release(in(*own))) return 2;
    line.say();
    line.hear();
    return 3;
  });
  ASSERT_EQ(recoverer.line().hear(), '+');
  recoverer.kill();
  ASSERT_EQ(code_of_acquire(), Code::kOk);
  ASSERT_TRUE(RobustMutex::release(mutex()));
}

TEST_F(RobustMutexTest, ReleasedWithoutMarkingIsPoisonedForEveryone) {
  die_inside();
  ASSERT_EQ(code_of_acquire(), Code::kOwnerDied);
  ASSERT_TRUE(RobustMutex::release(mutex()));
  EXPECT_EQ(RobustMutex::held_by_this_thread(), 0U);
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(code_of_acquire(), Code::kPoisoned);
  EXPECT_EQ(code_of_acquire(0), Code::kPoisoned);
  EXPECT_EQ(RobustMutex::held_by_this_thread(), 0U) << "a refused lock is not held";
  Child other([&](Line) {
    const Result<Mapping> own = map();
    return own ? static_cast<int>(RobustMutex::acquire(in(*own)).code()) : 200;
  });
  EXPECT_EQ(other.wait(), static_cast<int>(Code::kPoisoned));
}

TEST_F(RobustMutexTest, WaiterIsWokenByAReleaseWithoutMarking) {
  die_inside();
  ASSERT_EQ(code_of_acquire(), Code::kOwnerDied);
  Child waiter([&](Line line) {
    const Result<Mapping> own = map();
    line.say();
    return own ? static_cast<int>(RobustMutex::acquire(in(*own), kLongNs).code()) : 200;
  });
  ASSERT_EQ(waiter.line().hear(), '+');
  ASSERT_TRUE(RobustMutex::release(mutex()));
  EXPECT_EQ(waiter.wait(), static_cast<int>(Code::kPoisoned));
}

TEST_F(RobustMutexTest, StoppedHolderIsPassedByWithinTheBound) {
  Child holder([&](Line line) {
    const Result<Mapping> own = map();
    if (!own || !RobustMutex::acquire(in(*own))) return 1;
    line.say();
    line.hear();
    return RobustMutex::release(in(*own)) ? 0 : 2;
  });
  ASSERT_EQ(holder.line().hear(), '+');
  ASSERT_TRUE(holder.stop());
  auto shortest = Clock::duration::max();
  for (int i = 0; i < 5; ++i) {
    const auto start = Clock::now();
    ASSERT_EQ(code_of_acquire(), Code::kBusy);
    const auto took = Clock::now() - start;
    EXPECT_GE(took, std::chrono::nanoseconds(RobustMutex::kWaitNs)) << "gave up early";
    shortest = std::min(shortest, took);
  }
  EXPECT_LE(shortest, std::chrono::milliseconds(50));
  EXPECT_EQ(RobustMutex::held_by_this_thread(), 0U);
  holder.line().say();
  holder.send(SIGCONT);  // it lost nothing
  ASSERT_EQ(code_of_acquire(kLongNs), Code::kOk);
  ASSERT_TRUE(RobustMutex::release(mutex()));
  EXPECT_EQ(holder.wait(), 0);
}

TEST_F(RobustMutexTest, StoppedHolderThatIsKilledIsOwnerDied) {
  Child holder([&](Line line) { return hold_for_ever(line); });
  ASSERT_EQ(holder.line().hear(), spoken(Code::kOk));
  ASSERT_TRUE(holder.stop());
  ASSERT_EQ(code_of_acquire(0), Code::kBusy);
  holder.kill();
  ASSERT_EQ(code_of_acquire(), Code::kOwnerDied);
  ASSERT_TRUE(RobustMutex::mark_consistent(mutex()));
  ASSERT_TRUE(RobustMutex::release(mutex()));
}

TEST_F(RobustMutexTest, ThreadThatEndsInsideReportsOwnerDiedWhileItsProcessLives) {
  std::thread([&] { EXPECT_TRUE(RobustMutex::acquire(mutex())); }).join();
  EXPECT_EQ(RobustMutex::held_by_this_thread(), 0U);
  ASSERT_EQ(code_of_acquire(kLongNs), Code::kOwnerDied);
  ASSERT_TRUE(RobustMutex::mark_consistent(mutex()));
  ASSERT_TRUE(RobustMutex::release(mutex()));
}

TEST_F(RobustMutexTest, ExecveInsideReportsOwnerDiedWhileItsProcessLives) {
  Child holder([&](Line line) {
    const Result<Mapping> own = map();
    if (!own || !RobustMutex::acquire(in(*own))) return 1;
    line.say();
    ::execl("/bin/sleep", "sleep", "60", static_cast<char*>(nullptr));
    return 2;
  });
  ASSERT_EQ(holder.line().hear(), '+');
  ASSERT_EQ(code_of_acquire(kLongNs), Code::kOwnerDied);
  EXPECT_TRUE(holder.alive());
  ASSERT_TRUE(RobustMutex::mark_consistent(mutex()));
  ASSERT_TRUE(RobustMutex::release(mutex()));
}

TEST_F(RobustMutexTest, ForkedChildDoesNotOwnItsParentsLock) {
  ASSERT_TRUE(RobustMutex::acquire(mutex()));
  Child gone([&](Line) {
    unsigned char resident = 0;
    return ::mincore(mapping_->data(), kBytes, &resident) == 0 ? 1 : 0;
  });
  EXPECT_EQ(gone.wait(), 0) << "the parent's lock is mapped in the child";
  Child touches([&](Line) { return RobustMutex::release(mutex()) ? 1 : 2; });
  EXPECT_EQ(touches.wait(), -SIGSEGV);
  Child remaps([&](Line) {
    const Result<Mapping> own = map();
    if (!own || RobustMutex::acquire(in(*own)).code() != Code::kBusy) return 1;
    return RobustMutex::release(in(*own)).system_errno() == EPERM ? 0 : 2;
  });
  EXPECT_EQ(remaps.wait(), 0) << "the child was taken for the owner";
  EXPECT_TRUE(RobustMutex::release(mutex())) << "the parent owns it still";
}

TEST_F(RobustMutexTest, DeathOfAForkedChildDoesNotFreeItsParentsLock) {
  ASSERT_TRUE(RobustMutex::acquire(mutex()));
  Child child([&](Line) { return 0; });
  ASSERT_EQ(child.wait(), 0);
  Child other([&](Line) {
    const Result<Mapping> own = map();
    return own ? static_cast<int>(RobustMutex::acquire(in(*own)).code()) : 200;
  });
  EXPECT_EQ(other.wait(), static_cast<int>(Code::kBusy));
  EXPECT_TRUE(RobustMutex::release(mutex()));
}

// What the kernel does, and so why a segment is never unmapped while a thread is inside.
TEST_F(RobustMutexTest, LockWhoseHolderUnmappedItIsLostForEver) {
  Child holder([&](Line line) {
    Result<Mapping> own = map();
    if (!own || !RobustMutex::acquire(in(*own))) return 1;
    if (::munmap(own->data(), kBytes) != 0) return 2;
    line.say();
    for (;;)
      ::pause();
  });
  ASSERT_EQ(holder.line().hear(), '+');
  holder.kill();
  for (int i = 0; i < 5; ++i)
    EXPECT_EQ(code_of_acquire(), Code::kBusy);
}

TEST_F(RobustMutexTest, LockWhoseHolderMadeItReadOnlyIsLostForEver) {
  Child holder([&](Line line) {
    Result<Mapping> own = map();
    if (!own || !RobustMutex::acquire(in(*own))) return 1;
    if (::mprotect(own->data(), kBytes, PROT_READ) != 0) return 2;
    line.say();
    for (;;)
      ::pause();
  });
  ASSERT_EQ(holder.line().hear(), '+');
  holder.kill();
  for (int i = 0; i < 5; ++i)
    EXPECT_EQ(code_of_acquire(), Code::kBusy);
}

TEST_F(RobustMutexTest, UnmappedLockTakesTheHoldersOtherLocksWithIt) {
  const Result<FileDescriptor> other_fd = test::nameless_object(kBytes);
  ASSERT_TRUE(other_fd);
  const Result<Mapping> other = Mapping::map(other_fd->get(), kBytes, Access::kReadWrite);
  ASSERT_TRUE(other);
  ASSERT_TRUE(RobustMutex::init(in(*other)));
  Child holder([&](Line line) {
    const Result<Mapping> first = map();
    Result<Mapping> second = Mapping::map(other_fd->get(), kBytes, Access::kReadWrite);
    if (!first || !second || !RobustMutex::acquire(in(*first)) ||
        !RobustMutex::acquire(in(*second)))
      return 1;
    if (::munmap(second->data(), kBytes) != 0) return 2;
    line.say();
    for (;;)
      ::pause();
  });
  ASSERT_EQ(holder.line().hear(), '+');
  holder.kill();
  EXPECT_EQ(code_of_acquire(), Code::kBusy)
      << "mapped to the end, but behind the unmapped one in the list";
}

TEST_F(RobustMutexTest, LocksHeldAtDeathAreAllReported) {
  Child holder([&](Line line) {
    const Result<Mapping> own = map();
    if (!own || !RobustMutex::acquire(in(*own, 0)) || !RobustMutex::acquire(in(*own, 1))) return 1;
    line.say();
    for (;;)
      ::pause();
  });
  ASSERT_EQ(holder.line().hear(), '+');
  holder.kill();
  for (const int i : {0, 1}) {
    ASSERT_EQ(code_of_acquire(RobustMutex::kWaitNs, i), Code::kOwnerDied);
    ASSERT_TRUE(RobustMutex::mark_consistent(mutex(i)));
    ASSERT_TRUE(RobustMutex::release(mutex(i)));
  }
}

TEST_F(RobustMutexTest, MoreLocksThanTheLimitAreRefused) {
  static_assert(RobustMutex::kHeldMax < 2048, "the kernel recovers no more");
  for (unsigned i = 0; i < RobustMutex::kHeldMax; ++i) {
    ASSERT_EQ(code_of_acquire(0, static_cast<int>(i)), Code::kOk);
  }
  EXPECT_EQ(RobustMutex::held_by_this_thread(), RobustMutex::kHeldMax);
  EXPECT_EQ(code_of_acquire(0, RobustMutex::kHeldMax), Code::kSystem);
  std::thread([&] {  // the limit is a thread's, and the refused lock was not touched
    EXPECT_EQ(code_of_acquire(0, RobustMutex::kHeldMax), Code::kOk);
    EXPECT_TRUE(RobustMutex::release(mutex(RobustMutex::kHeldMax)));
  })
      .join();
  for (unsigned i = 0; i < RobustMutex::kHeldMax; ++i) {
    ASSERT_TRUE(RobustMutex::release(mutex(static_cast<int>(i))));
  }
  EXPECT_EQ(code_of_acquire(0, RobustMutex::kHeldMax), Code::kOk);
  EXPECT_TRUE(RobustMutex::release(mutex(RobustMutex::kHeldMax)));
}

TEST_F(RobustMutexTest, ThreadsOfTheCLibraryHaveARobustList) {
  EXPECT_TRUE(RobustMutex::has_robust_list());
  std::thread([] { EXPECT_TRUE(RobustMutex::has_robust_list()); }).join();
  Child forked([](Line) { return RobustMutex::has_robust_list() ? 0 : 1; });
  EXPECT_EQ(forked.wait(), 0);
}

int raw_clone_answer = -1;

int raw_clone_body(void*) {
  raw_clone_answer = RobustMutex::has_robust_list() ? 1 : 0;
  ::syscall(SYS_exit, 0);
  return 0;
}

TEST_F(RobustMutexTest, ThreadOfARawCloneHasNoRobustList) {
#ifdef KVTRIE_TSAN
  GTEST_SKIP() << "the thread sanitizer does not know threads of a raw clone";
#endif
  // In a process of its own: a thread that the C library does not know shares its creator's thread
  // data.
  Child child([](Line) {
    std::vector<std::byte> stack(256 * 1024);
    pid_t tid = -1;
    constexpr int kThread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
                            CLONE_SYSVSEM | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
    auto* top = reinterpret_cast<std::byte*>(
        (reinterpret_cast<std::uintptr_t>(stack.data()) + stack.size()) & ~std::uintptr_t{63});
    if (::clone(raw_clone_body, top, kThread, nullptr, &tid, nullptr, &tid) < 0) return 100;
    for (pid_t seen = __atomic_load_n(&tid, __ATOMIC_ACQUIRE); seen != 0;
         seen = __atomic_load_n(&tid, __ATOMIC_ACQUIRE)) {
      const timespec limit{1, 0};
      ::syscall(SYS_futex, &tid, FUTEX_WAIT, seen, &limit, nullptr, 0);
    }
    return raw_clone_answer;
  });
  EXPECT_EQ(child.wait(), 0);
}

TEST_F(RobustMutexTest, ReleaseByOneWhoDoesNotHoldItIsAnError) {
  if (kMisuseIsReported) GTEST_SKIP() << "misuse on purpose";
  const Status free_lock = RobustMutex::release(mutex());
  EXPECT_EQ(free_lock.code(), Code::kSystem);
  EXPECT_EQ(RobustMutex::held_by_this_thread(), 0U) << "the count must not wrap";
  ASSERT_TRUE(RobustMutex::acquire(mutex()));
  std::thread([&] { EXPECT_EQ(RobustMutex::release(mutex()).system_errno(), EPERM); }).join();
  EXPECT_TRUE(RobustMutex::release(mutex()));
}

TEST_F(RobustMutexTest, TakenAgainByItsHolderIsOurBugAndDoesNotHang) {
  if (kMisuseIsReported) GTEST_SKIP() << "misuse on purpose";
  ASSERT_TRUE(RobustMutex::acquire(mutex()));
  const Status again = RobustMutex::acquire(mutex());
  EXPECT_EQ(again.code(), Code::kSystem);
  EXPECT_EQ(again.system_errno(), EDEADLK);
  EXPECT_EQ(RobustMutex::held_by_this_thread(), 1U);
  EXPECT_TRUE(RobustMutex::release(mutex()));
}

TEST_F(RobustMutexTest, MarkingAGoodLockIsAnError) {
  ASSERT_TRUE(RobustMutex::acquire(mutex()));
  EXPECT_EQ(RobustMutex::mark_consistent(mutex()).code(), Code::kSystem);
  EXPECT_TRUE(RobustMutex::release(mutex()));
}

// C7: another process may have written anything over it. In a child, since a C library that asserts
// would end this one.
TEST_F(RobustMutexTest, LockOfWrongBytesIsAnErrorNeverACrash) {
  if (kMisuseIsReported) GTEST_SKIP() << "misuse on purpose";
  const std::vector<std::byte> good(mapping_->data(), mapping_->data() + sizeof(pthread_mutex_t));
  std::uint64_t seed = 12345;
  auto next = [&seed] {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
  };
  for (int round = 0; round < 400; ++round) {
    std::copy(good.begin(), good.end(), mapping_->data());
    const int kind = mutex().__data.__kind;
    if (round < 256) {
      // The kind as every value of a byte; the lock free, or held by nobody.
      mutex().__data.__kind = round;
      mutex().__data.__lock = (round & 1) != 0 ? 0x3FFF'FFFF : 0;
    } else {
      for (std::size_t i = 0; i < sizeof(pthread_mutex_t); ++i) {
        mapping_->data()[i] = static_cast<std::byte>(next());
      }
      if (round % 4 != 0) mutex().__data.__kind = kind;
    }
    Child child([&](Line) {
      const Result<Mapping> own = map();
      ::alarm(10);
      const Status status = RobustMutex::acquire(in(*own));
      if (status.ok() || status.code() == Code::kOwnerDied) {
        if (status.code() == Code::kOwnerDied) (void)RobustMutex::mark_consistent(in(*own));
        (void)RobustMutex::release(in(*own));
      }
      return 0;
    });
    ASSERT_EQ(child.wait(), 0) << "round " << round;
  }
}

// An unlock writes to where these point.
TEST_F(RobustMutexTest, LinksWrittenOverWhileItIsHeldAreAnErrorNeverACrash) {
  for (int round = 0; round < 8; ++round) {
    Child child([&](Line) {
      const Result<Mapping> own = map();
      const bool wrong[] = {(round & 1) != 0, (round & 2) != 0};
      const int first = round >> 2;
      for (int again = 0; again < 3; ++again) {
        for (const int i : {0, 1}) {
          if (!RobustMutex::acquire(in(*own, i))) return 1;
        }
        for (const int i : {0, 1}) {
          auto& links = in(*own, i).__data.__list;
          if (wrong[i]) std::memset(static_cast<void*>(&links), 0x5A, sizeof links);
        }
        for (const int i : {first, 1 - first}) {
          if (RobustMutex::release(in(*own, i)).code() != (wrong[i] ? Code::kCorrupt : Code::kOk)) return 2;
        }
      }
      return 0;
    });
    ASSERT_EQ(child.wait(), 0) << "round " << round;
    EXPECT_EQ(code_of_acquire(), Code::kOk);
    EXPECT_TRUE(RobustMutex::release(mutex()));
  }
}

}  // namespace
}  // namespace kvtrie
