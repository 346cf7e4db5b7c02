// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A thread that ends inside a call while its process lives: the kernel gives its stripe to the next (EOWNERDEAD), the
// reaper does nothing, and another thread of the process releases the sequence. What stands in the state words then
// decides, not what the call did not come to note down.

#include <gtest/gtest.h>
#include <pthread.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "shm/crash_point.h"
#include "tests/support/local_cache.h"

#ifdef KVTRIE_DEV

namespace kvtrie {
namespace {

using test::LocalCache;
using test::LocalCacheOptions;
using test::path;

const char* ends_at = nullptr;
thread_local bool may_end = false;

void end_thread(const char* place) {
  if (!may_end || std::strcmp(place, ends_at) != 0) return;
  may_end = false;
  pthread_exit(nullptr);
}

struct Call {
  Worker& worker;
  Sequence& sequence;
  bool publish;
};

void* make_call(void* argument) {
  Call& call = *static_cast<Call*>(argument);
  may_end = true;
  if (call.publish) {
    PublishReport report;
    (void)call.worker.publish(call.sequence, 8, report);
  } else {
    (void)call.worker.allocate(call.sequence, 8, 0);
  }
  return nullptr;
}

class ThreadEndTest : public ::testing::Test {
 protected:
  ~ThreadEndTest() override { crash_hook.store(nullptr); }

  void begin(Worker& worker, Sequence& sequence) {
    BeginReport report;
    ASSERT_TRUE(worker.begin(LocalCache::name_space(), path(4, {1, 2}), {}, sequence, report));
  }
  void call_that_ends(const char* place, Sequence& sequence, bool publish) {
    ends_at = place;
    Call call{*worker_, sequence, publish};
    crash_hook.store(end_thread);
    pthread_t thread{};
    ASSERT_EQ(pthread_create(&thread, nullptr, make_call, &call), 0);
    ASSERT_EQ(pthread_join(thread, nullptr), 0);
    crash_hook.store(nullptr);
  }
  void expect_no_free_page_in_the_index() const {
    const Segment& segment = cache_.segment();
    for (std::uint32_t i = 0; i < segment.page_count(); ++i) {
      const Descriptor& descriptor = segment.descriptor({i});
      if (StateWord{descriptor.state.load()}.state() != PageState::kFree) continue;
      EXPECT_EQ(StripeIndex(segment).occurrences(descriptor.prefix_hash.load(), {i}), 0U) << i;
    }
  }

  LocalCache cache_{LocalCacheOptions{}};
  std::unique_ptr<Worker> worker_ = cache_.worker(1);
};

TEST_F(ThreadEndTest, APageThatWasAnnouncedMeanwhileIsTakenOutOfTheIndex) {
  for (const char* place : {"announce.after_pending", "announce.after_index_store", "announce.after_unlock"}) {
    Sequence sequence;
    begin(*worker_, sequence);
    call_that_ends(place, sequence, false);
    worker_->release(sequence);
    EXPECT_EQ(cache_.count_state(PageState::kFree), 64U) << place;
    expect_no_free_page_in_the_index();
  }
}

TEST_F(ThreadEndTest, APageThatIsLiveMeanwhileStaysWithItsReaders) {
  const auto other = cache_.worker(2);
  Sequence sequence;
  Sequence reader;
  begin(*worker_, sequence);
  ASSERT_TRUE(worker_->allocate(sequence, 8, 0));
  call_that_ends("publish.after_live", sequence, true);
  begin(*other, reader);
  ASSERT_EQ(reader.shared.size(), 1U);
  worker_->release(sequence);
  const StateWord word{cache_.segment().descriptor(reader.shared[0].page_index()).state.load()};
  EXPECT_TRUE(reader.shared[0].same_life(word) && word.readable()) << "freed under a lease";
  other->release(reader);
  expect_no_free_page_in_the_index();
}

}  // namespace
}  // namespace kvtrie

#endif
