// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/segment.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "shm/robust_mutex.h"
#include "tests/shm/test_support.h"

namespace kvtrie {
namespace {

using test::Child;
using test::Line;
using test::NamedObject;

constexpr std::size_t kConstantEnd = offsetof(Superblock, constant_checksum) + 8;

class SegmentTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<FileDescriptor> fd = test::nameless_object(bytes_);
    ASSERT_TRUE(fd) << fd.error().what();
    fd_ = std::move(*fd);
    Result<Segment> segment = test::build_segment(fd_.get(), geometry_);
    ASSERT_TRUE(segment) << segment.error().what();
    segment_.emplace(std::move(*segment));
  }

  Result<Segment> reopen(Access access = Access::kReadWrite) const {
    const Result<std::uint64_t> bytes = object_bytes(fd_.get());
    if (!bytes) return bytes.error();
    Result<Mapping> mapping = Mapping::map(fd_.get(), *bytes, access);
    if (!mapping) return mapping.error();
    return Segment::open(std::move(*mapping));
  }
  Code code_of_reopen() const { return reopen().error().code(); }
  Superblock& block() const { return segment_->superblock(); }
  void seal() const { block().constant_checksum = constant_checksum(block()); }

  const Geometry geometry_ = test::small_geometry();
  const std::uint64_t bytes_ = layout_of(geometry_).segment_bytes;
  FileDescriptor fd_;
  std::optional<Segment> segment_;
};

TEST_F(SegmentTest, OpensWhatWasBuilt) {
  const Result<Segment> opened = reopen();
  ASSERT_TRUE(opened) << opened.error().what();
  EXPECT_EQ(opened->geometry(), geometry_);
  EXPECT_EQ(opened->size_bytes(), bytes_);
  EXPECT_EQ(opened->page_count(), geometry_.pages);
  EXPECT_EQ(opened->slot_count(), geometry_.workers + 1);
  const SegmentIdentity identity = test::test_identity();
  const Superblock& b = opened->superblock();
  EXPECT_STREQ(b.cache_name, identity.cache_name.c_str());
  EXPECT_EQ(b.cache_id[0], identity.cache_id[0]);
  EXPECT_EQ(b.cache_id[1], identity.cache_id[1]);
  EXPECT_EQ(b.hash_secret, identity.hash_secret);
  EXPECT_EQ(b.pid_namespace, identity.pid_namespace);
  EXPECT_EQ(std::memcmp(b.boot_id, identity.boot_id, sizeof b.boot_id), 0);
  EXPECT_EQ(b.clock_kind, static_cast<std::uint32_t>(identity.clock));
  EXPECT_EQ(b.tick_ns, identity.tick_ns);
  EXPECT_EQ(std::memcmp(&b, "KVTRIE1", 8), 0) << "a person finds the magic in a hex dump";
}

TEST_F(SegmentTest, StartsWithEveryPageFreeAndNothingElse) {
  for (std::uint32_t i = 0; i < segment_->page_count(); ++i) {
    EXPECT_EQ(segment_->descriptor(PageIndex{i}).state.load(), 0U);
  }
  std::uint64_t bits = 0;
  for (std::uint32_t chunk = 0; chunk < segment_->chunk_count(); ++chunk) {
    bits += static_cast<std::uint64_t>(__builtin_popcountll(segment_->free_bits(chunk).load()));
  }
  EXPECT_EQ(bits, geometry_.pages);
  EXPECT_EQ(block().free_hint.load(), static_cast<std::int64_t>(geometry_.pages));
  EXPECT_FALSE(segment_->poisoned());
}

TEST_F(SegmentTest, FreeBitsEndWithTheLastPage) {
  for (const std::uint64_t pages : {64U, 65U, 127U, 129U}) {
    const Geometry g = test::small_geometry(pages);
    const Result<FileDescriptor> fd = test::nameless_object(layout_of(g).segment_bytes);
    ASSERT_TRUE(fd);
    const Result<Segment> segment = test::build_segment(fd->get(), g);
    ASSERT_TRUE(segment);
    EXPECT_EQ(segment->chunk_count(), (pages + 63) / 64);
    std::uint64_t bits = 0;
    for (std::uint32_t chunk = 0; chunk < segment->chunk_count(); ++chunk) {
      bits += static_cast<std::uint64_t>(__builtin_popcountll(segment->free_bits(chunk).load()));
    }
    EXPECT_EQ(bits, pages);
  }
}

// Each element of each area is written through its accessor with a value of its own; all are read
// back.
TEST_F(SegmentTest, AccessorsNeverOverlap) {
  std::uint64_t next = 1;
  std::vector<std::function<bool()>> checks;
  auto put = [&](auto& word) {
    using Value = typename std::remove_reference_t<decltype(word)>::value_type;
    const auto value = static_cast<Value>(next++);
    word.store(value);
    checks.push_back([&word, value] { return word.load() == value; });
  };
  for (std::uint32_t i = 0; i < segment_->page_count(); ++i) {
    put(segment_->descriptor(PageIndex{i}).state);
    put(segment_->descriptor(PageIndex{i}).checksum);
    for (unsigned w = 0; w < (geometry_.tokens_per_page + 1) / 2; ++w) {
      put(segment_->token_words(PageIndex{i})[w]);
    }
    put(segment_->announce_counter(PageIndex{i}));
  }
  for (std::uint16_t s = 0; s < segment_->slot_count(); ++s) {
    put(segment_->worker(WorkerId{s}).slot_state);
    put(segment_->worker(WorkerId{s}).counters[kCounters - 1]);
    for (LeaseSlot& lease : segment_->leases(WorkerId{s})) {
      put(lease.handle);
      put(lease.request_tag);
    }
    for (std::uint32_t c = 0; c < segment_->chunk_count(); ++c)
      put(segment_->held_count(WorkerId{s}, c));
  }
  for (std::uint32_t c = 0; c < segment_->chunk_count(); ++c)
    put(segment_->free_bits(c));
  for (std::uint16_t n = 0; n < segment_->namespace_count(); ++n) {
    put(segment_->name_space(NamespaceId{n}).root_generation);
  }
  for (PinRecord& pin : segment_->pins())
    put(pin.expiry_tick);
  for (std::uint32_t s = 0; s < geometry_.stripes; ++s)
    put(segment_->stripe(s).recoveries);
  for (std::uint64_t b = 0; b < segment_->layout().bucket_count; ++b) {
    for (AtomicU64& entry : segment_->bucket(b).entries)
      put(entry);
  }
  std::size_t wrong = 0;
  for (const auto& check : checks)
    wrong += check() ? 0 : 1;
  EXPECT_EQ(wrong, 0U);
  EXPECT_TRUE(reopen()) << "no element lies in the superblock";
}

TEST_F(SegmentTest, EveryStripeLockIsReady) {
  for (std::uint32_t s = 0; s < geometry_.stripes; ++s) {
    ASSERT_TRUE(RobustMutex::acquire(segment_->stripe(s).mutex));
    ASSERT_TRUE(RobustMutex::release(segment_->stripe(s).mutex));
  }
}

TEST_F(SegmentTest, AnyDamagedConstantByteIsRefused) {
  auto* bytes = reinterpret_cast<unsigned char*>(segment_->data());
  for (std::size_t i = 0; i < kConstantEnd; ++i) {
    for (const unsigned flip : {0x01U, 0x80U}) {
      bytes[i] = static_cast<unsigned char>(bytes[i] ^ flip);
      const Code code = code_of_reopen();
      EXPECT_TRUE(code == Code::kCorrupt || code == Code::kRefused) << "offset " << i;
      bytes[i] = static_cast<unsigned char>(bytes[i] ^ flip);
    }
  }
  EXPECT_TRUE(reopen());
}

struct Damage {
  const char* what;
  Code code;
  std::function<void(Superblock&)> make;
};

TEST_F(SegmentTest, EachConstantFieldGivesItsError) {
  const Damage kDamages[] = {
      {"magic", Code::kCorrupt, [](Superblock& b) { ++b.magic; }},
      {"other layout version", Code::kRefused, [](Superblock& b) { ++b.layout_version; }},
      {"constant bytes", Code::kCorrupt, [](Superblock& b) { b.constant_bytes -= 8; }},
      {"feature that is not known", Code::kRefused,
       [](Superblock& b) { b.incompatible_features = 4; }},
      {"other fingerprint", Code::kRefused, [](Superblock& b) { ++b.struct_fingerprint; }},
      {"segment bytes, more", Code::kCorrupt, [](Superblock& b) { b.segment_bytes += 4096; }},
      {"segment bytes, fewer", Code::kCorrupt, [](Superblock& b) { b.segment_bytes -= 4096; }},
      {"pages 0", Code::kCorrupt, [](Superblock& b) { b.page_count = 0; }},
      {"pages, more", Code::kCorrupt, [](Superblock& b) { b.page_count += 64; }},
      {"pages, 2^32 more", Code::kCorrupt,
       [](Superblock& b) { b.page_count += std::uint64_t{1} << 32; }},
      {"pages, huge", Code::kCorrupt, [](Superblock& b) { b.page_count = ~std::uint64_t{0}; }},
      {"page bytes 0", Code::kCorrupt, [](Superblock& b) { b.page_bytes = 0; }},
      {"page bytes, huge", Code::kCorrupt, [](Superblock& b) { b.page_bytes = ~std::uint64_t{7}; }},
      {"tokens 0", Code::kCorrupt, [](Superblock& b) { b.tokens_per_page = 0; }},
      {"tokens, more", Code::kCorrupt, [](Superblock& b) { b.tokens_per_page = 1024; }},
      {"planes 0", Code::kCorrupt, [](Superblock& b) { b.plane_count = 0; }},
      {"planes 65", Code::kCorrupt, [](Superblock& b) { b.plane_count = 65; }},
      {"workers 0", Code::kCorrupt, [](Superblock& b) { b.worker_count = 0; }},
      {"workers 1: no slot but the coordinator's", Code::kCorrupt,
       [](Superblock& b) { b.worker_count = 1; }},
      {"workers, more", Code::kCorrupt, [](Superblock& b) { b.worker_count = 1025; }},
      {"leases 0", Code::kCorrupt, [](Superblock& b) { b.leases_per_worker = 0; }},
      {"leases, more", Code::kCorrupt, [](Superblock& b) { b.leases_per_worker = 4096; }},
      {"namespaces 0", Code::kCorrupt, [](Superblock& b) { b.namespace_count = 0; }},
      {"namespaces, more", Code::kCorrupt, [](Superblock& b) { b.namespace_count = 65536; }},
      {"stripes 0", Code::kCorrupt, [](Superblock& b) { b.stripe_count = 0; }},
      {"stripes, more", Code::kCorrupt, [](Superblock& b) { b.stripe_count = 65536; }},
      {"buckets", Code::kCorrupt, [](Superblock& b) { b.bucket_count *= 2; }},
      {"clock kind", Code::kCorrupt, [](Superblock& b) { b.clock_kind = 2; }},
      {"tick 0", Code::kCorrupt, [](Superblock& b) { b.tick_ns = 0; }},
      {"areas, more", Code::kCorrupt, [](Superblock& b) { b.area_count += 1; }},
      {"areas, huge", Code::kCorrupt, [](Superblock& b) { b.area_count = ~0U; }},
      {"area offset", Code::kCorrupt,
       [](Superblock& b) { b.areas[3].offset = ~std::uint64_t{4095}; }},
      {"area stride", Code::kCorrupt, [](Superblock& b) { b.areas[1].stride *= 2; }},
      {"area count", Code::kCorrupt, [](Superblock& b) { b.areas[2].count += 1; }},
      {"area kind", Code::kCorrupt, [](Superblock& b) { b.areas[0].kind = 77; }},
      {"area that is not in use", Code::kCorrupt,
       [](Superblock& b) { b.areas[kAreasMax - 1].count = 1; }},
  };
  const std::vector<std::byte> good(segment_->data(), segment_->data() + sizeof(Superblock));
  for (const Damage& damage : kDamages) {
    for (const bool sealed : {false, true}) {
      damage.make(block());
      if (sealed) seal();  // whoever damaged it also made the checksum fit
      const Code code = code_of_reopen();
      EXPECT_EQ(code, damage.code) << damage.what << (sealed ? ", sealed" : "");
      std::memcpy(segment_->data(), good.data(), good.size());
    }
  }
  EXPECT_TRUE(reopen());
}

TEST_F(SegmentTest, CompatibleFeaturesAreNoReasonToRefuse) {
  block().compatible_features = 0xFF00;
  seal();
  EXPECT_TRUE(reopen());
}

TEST_F(SegmentTest, ChangingWordsDoNotBreakTheChecksum) {
  block().poison_state.store(1);
  block().driven_tick.store(~0U);
  block().coordinator_epoch.store(~std::uint64_t{0});
  block().doorbell.word.store(5);
  EXPECT_TRUE(reopen());
}

TEST_F(SegmentTest, TruncatedObjectIsRefused) {
  segment_.reset();
  for (std::uint64_t bytes = bytes_ - 1; bytes >= sizeof(Superblock); bytes /= 2) {
    ASSERT_EQ(::ftruncate(fd_.get(), static_cast<off_t>(bytes)), 0);
    EXPECT_EQ(code_of_reopen(), Code::kCorrupt) << bytes;
  }
}

TEST_F(SegmentTest, ObjectSmallerThanASuperblockIsRefused) {
  segment_.reset();
  for (const off_t bytes : {4095, 64, 8, 1, 0}) {
    ASSERT_EQ(::ftruncate(fd_.get(), bytes), 0);
    EXPECT_EQ(code_of_reopen(), Code::kCorrupt) << bytes;
  }
}

TEST_F(SegmentTest, ObjectLargerThanTheSegmentIsTaken) {
  ASSERT_EQ(::ftruncate(fd_.get(), static_cast<off_t>(bytes_ + 8192)), 0);
  const Result<Segment> opened = reopen();
  ASSERT_TRUE(opened);
  EXPECT_EQ(opened->size_bytes(), bytes_);
}

TEST_F(SegmentTest, ZeroObjectIsNotASegment) {
  const Result<FileDescriptor> fd = test::nameless_object(bytes_);
  ASSERT_TRUE(fd);
  Result<Mapping> mapping = Mapping::map(fd->get(), bytes_, Access::kReadWrite);
  ASSERT_TRUE(mapping);
  EXPECT_EQ(Segment::open(std::move(*mapping)).error().code(), Code::kCorrupt);
}

TEST_F(SegmentTest, ReadOnlyMappingOpensAndRefusesStores) {
  segment_->descriptor(PageIndex{5}).touch.store(99);
  Child child([&](Line) {
    const Result<Segment> opened = reopen(Access::kReadOnly);
    if (!opened || opened->descriptor(PageIndex{5}).touch.load() != 99) return 1;
    opened->descriptor(PageIndex{5}).touch.store(1);
    return 2;
  });
  EXPECT_EQ(child.wait(), -SIGSEGV);
  EXPECT_EQ(segment_->descriptor(PageIndex{5}).touch.load(), 99U);
}

TEST_F(SegmentTest, BuildRefusesWhatOpenWouldRefuse) {
  auto build = [&](const Geometry& geometry, const SegmentIdentity& identity) {
    Result<Mapping> mapping = Mapping::map(fd_.get(), bytes_, Access::kReadWrite);
    return Segment::build(std::move(*mapping), geometry, identity).error().code();
  };
  Geometry impossible = geometry_;
  impossible.pages = 63;
  EXPECT_EQ(build(impossible, test::test_identity()), Code::kInvalid);
  Geometry larger = geometry_;
  larger.pages = 1024;
  EXPECT_EQ(build(larger, test::test_identity()), Code::kInvalid);
  SegmentIdentity no_tick = test::test_identity();
  no_tick.tick_ns = 0;
  EXPECT_EQ(build(geometry_, no_tick), Code::kInvalid) << "now_tick divides by it";
  SegmentIdentity long_name = test::test_identity();
  long_name.cache_name.assign(64, 'n');
  EXPECT_EQ(build(geometry_, long_name), Code::kInvalid) << "the name would be cut";
}

TEST_F(SegmentTest, NameWithoutAnEndIsRefused) {
  std::memset(block().cache_name, 'x', sizeof block().cache_name);
  seal();
  EXPECT_EQ(code_of_reopen(), Code::kCorrupt);
}

// A superblock that is rewritten while it is checked must not lead outside: what was checked is
// what is used.
TEST_F(SegmentTest, SuperblockThatChangesWhileItIsReadLeadsNowhere) {
  Child writer([&](Line line) {
    const Result<Segment> own = reopen();
    if (!own) return 1;
    Superblock small{};
    std::memcpy(static_cast<void*>(&small), own->data(), sizeof small);
    Superblock large{};
    std::memcpy(static_cast<void*>(&large), own->data(), sizeof large);
    large.page_count = kPagesMax;
    large.tokens_per_page = 1024;
    line.say();
    for (;;) {
      std::memcpy(own->data(), static_cast<const void*>(&large), 128);
      std::memcpy(own->data(), static_cast<const void*>(&small), 128);
    }
  });
  ASSERT_EQ(writer.line().hear(), '+');
  unsigned opened_count = 0;
  for (unsigned i = 0; i < 20'000 && writer.alive(); ++i) {
    const Result<Segment> opened = reopen();
    if (!opened) continue;
    ++opened_count;
    ASSERT_EQ(opened->geometry(), geometry_) << "round " << i;
    ASSERT_EQ(opened->size_bytes(), bytes_);
  }
  EXPECT_TRUE(writer.alive());
  EXPECT_GT(opened_count, 0U) << "nothing was tried";
}

TEST_F(SegmentTest, FirstPoisonReasonStands) {
  segment_->poison(PoisonReason::kLockNotRecoverable);
  segment_->poison(PoisonReason::kOperator);
  EXPECT_TRUE(segment_->poisoned());
  EXPECT_EQ(block().poison_reason.load(),
            static_cast<std::uint32_t>(PoisonReason::kLockNotRecoverable));
}

TEST_F(SegmentTest, TotalsSumOverAllSlots) {
  segment_->count(WorkerId{1}, Counter::kLookups);
  segment_->count(WorkerId{3}, Counter::kLookups, 5);
  segment_->count(kCoordinatorSlot, Counter::kLookups, 10);
  segment_->count(WorkerId{3}, Counter::kPagesHit, 100);
  EXPECT_EQ(segment_->total(Counter::kLookups), 16U);
  EXPECT_EQ(segment_->total(Counter::kPagesHit), 100U);
}

TEST_F(SegmentTest, DrivenClockIsWhatTheSuperblockSays) {
  block().driven_tick.store(1234);
  EXPECT_EQ(segment_->now_tick(), 1234U);
  const Result<Segment> opened = reopen();
  ASSERT_TRUE(opened);
  EXPECT_EQ(opened->now_tick(), 1234U);
}

TEST_F(SegmentTest, SystemClockGoesOnWithoutACoordinator) {
  block().clock_kind = static_cast<std::uint32_t>(ClockKind::kSystem);
  block().tick_ns = 1'000'000'000;
  seal();
  const Result<Segment> opened = reopen();
  ASSERT_TRUE(opened);
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  EXPECT_LE(opened->now_tick() - static_cast<std::uint32_t>(now.tv_sec), 1U);
}

TEST(SegmentOpenTest, FindsACacheByName) {
  const std::string cache = test::unique_name("seg");
  const NamedObject object(segment_object_name(cache), 0);
  const Geometry g = test::small_geometry();
  const Result<FileDescriptor> fd = create_object(object.name(), layout_of(g).segment_bytes, 0600);
  ASSERT_TRUE(fd);
  ASSERT_TRUE(test::build_segment(fd->get(), g));
  EXPECT_EQ(open_segment(cache, Access::kReadOnly).error().code(), Code::kNotFound);
  ASSERT_TRUE(publish_object(object.name()));
  const Result<Segment> opened = open_segment(cache, Access::kReadOnly);
  ASSERT_TRUE(opened) << opened.error().what();
  EXPECT_EQ(opened->geometry(), g);
}

TEST(SegmentOpenTest, NoSuchCacheIsNotFound) {
  EXPECT_EQ(open_segment(test::unique_name("none"), Access::kReadOnly).error().code(),
            Code::kNotFound);
}

TEST(SegmentOpenTest, EmptyObjectIsCorrupt) {
  const std::string cache = test::unique_name("empty");
  const NamedObject object(segment_object_name(cache), 0);
  const Result<FileDescriptor> fd = create_object(object.name(), 4096, 0600);
  ASSERT_TRUE(fd);
  ASSERT_EQ(::ftruncate(fd->get(), 0), 0);
  ASSERT_TRUE(publish_object(object.name()));
  EXPECT_EQ(open_segment(cache, Access::kReadOnly).error().code(), Code::kCorrupt);
}

}  // namespace
}  // namespace kvtrie
