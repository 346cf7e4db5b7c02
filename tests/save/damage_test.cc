// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A damaged or short file gives misses, never wrong pages: each byte flipped, each length cut to,
// blocks of other files, and records that are intact and cannot be.

#include <algorithm>
#include <cstring>
#include <random>

#include "save/load_cache.h"
#include "tests/save/memory_cache.h"
#include "tests/save/temporary_file.h"

namespace kvtrie {
namespace {

using test::MemoryCache;
using test::PageKey;

class DamageTest : public testing::Test {
 protected:
  void SetUp() override {
    const NamespaceId a = cache_.open_namespace("a");
    const NamespaceId b = cache_.open_namespace("b");
    cache_.publish(a, {1, 2, 3});
    cache_.publish(a, {1, 2, 4}, 2);
    cache_.publish(b, {1, 2});
    cache_.publish(a, {5});
    intact_ = saved(cache_);
    expected_ = cache_.contents();
    ASSERT_EQ(expected_.size(), 7U);
  }

  std::string saved(const MemoryCache& cache) {
    const Result<SaveReport> report = save_cache(cache.segment(), cache.planes(), path_);
    EXPECT_TRUE(report);
    return test::read_file(path_);
  }

  // Loads these bytes and looks at every page that is there: right bytes (contents()), one of the
  // saved ones, nothing that verify finds. Without a value: the head is damaged.
  std::optional<LoadReport> load(const std::string& bytes) {
    test::write_file(path_, bytes);
    MemoryCache loaded;
    const auto report = test::load_into(loaded, path_);
    const std::map<PageKey, PageIndex> found = loaded.contents();
    for (const auto& [key, page] : found)
      EXPECT_TRUE(expected_.contains(key)) << key;
    EXPECT_EQ(found.size(), report ? report->pages : 0);
    EXPECT_EQ(loaded.findings(), "");
    return report;
  }

  // Of the namespaces, which are mostly zeros, some bytes stand for the others.
  std::size_t after(std::size_t at) const {
    const bool in_namespaces = at >= kSaveHeadBytes && at + 16 < first_record();
    return at + (in_namespaces ? 16 : 1);
  }
  std::uint64_t record_bytes() const { return saved_record_bytes(cache_.segment().geometry()); }
  std::uint64_t first_record() const { return kSaveHeadBytes + 2 * sizeof(SavedNamespace); }

  // One record's fields, changed as a hostile writer would: with the checksum that fits.
  std::string forge(std::uint32_t number, const std::function<void(SavedPage&)>& change) const {
    std::string bytes = intact_;
    char* at = bytes.data() + first_record() + number * record_bytes();
    SavedPage record{};
    std::memcpy(&record, at, sizeof record);
    change(record);
    std::memcpy(at, &record, sizeof record);
    seal(bytes, number);
    return bytes;
  }
  void seal(std::string& bytes, std::uint32_t number) const {
    SaveHead head{};
    std::memcpy(&head, bytes.data() + sizeof(SavePrefix), sizeof head);
    char* at = bytes.data() + first_record() + number * record_bytes();
    const std::uint64_t checksum = hash_bytes(head.file_id, at, record_bytes() - 8);
    std::memcpy(at + record_bytes() - 8, &checksum, sizeof checksum);
  }

  MemoryCache cache_;
  test::TemporaryFolder folder_;
  const std::string path_ = folder_.file("cache.save");
  std::string intact_;
  std::map<PageKey, PageIndex> expected_;
};

TEST_F(DamageTest, IntactItIsWhole) {
  const auto report = load(intact_);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->pages, 7U);
  EXPECT_TRUE(report->whole);
}

TEST_F(DamageTest, EveryFlippedByteIsFoundAndCostsOnlyPages) {
  std::mt19937 random(3);
  for (std::size_t i = 0; i < intact_.size(); i = after(i)) {
    std::string bytes = intact_;
    bytes[i] = static_cast<char>(bytes[i] ^ (1 + random() % 255));
    SCOPED_TRACE("byte " + std::to_string(i));
    const auto report = load(bytes);
    if (i < kSaveHeadBytes) {
      EXPECT_FALSE(report) << "nothing of a file with a damaged head is believed";
    } else if (i < first_record()) {
      ASSERT_TRUE(report);
      EXPECT_EQ(report->namespaces_left_out, 1U);
    } else if (i < first_record() + 7 * record_bytes()) {
      ASSERT_TRUE(report);
      EXPECT_EQ(report->damaged, 1U);
      EXPECT_EQ(report->pages + report->damaged + report->below_left_out, 7U);
    } else {
      ASSERT_TRUE(report);
      EXPECT_FALSE(report->whole);
      EXPECT_EQ(report->pages, 7U);
    }
    if (HasFailure()) return;
  }
}

TEST_F(DamageTest, EveryLengthGivesWhatCameBefore) {
  for (std::size_t length = 0; length < intact_.size(); length = after(length)) {
    SCOPED_TRACE("length " + std::to_string(length));
    const auto report = load(intact_.substr(0, length));
    ASSERT_EQ(report.has_value(), length >= kSaveHeadBytes);
    if (!report) continue;
    EXPECT_FALSE(report->whole);
    const std::uint64_t records =
        length < first_record() ? 0 : (length - first_record()) / record_bytes();
    EXPECT_EQ(report->pages, std::min<std::uint64_t>(records, 7));
    if (HasFailure()) return;
  }
}

TEST_F(DamageTest, RandomDamageNeverGivesAWrongPage) {
  std::mt19937 random(20261124);
  for (int round = 0; round < 300; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    std::string bytes = intact_;
    const std::size_t at = random() % bytes.size();
    const std::size_t count = std::min<std::size_t>(1 + random() % 300, bytes.size() - at);
    switch (random() % 5) {
      case 0:
        std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), count, '\0');
        break;
      case 1:
        bytes.erase(at, count);
        break;
      case 2:
        bytes.insert(at, std::string(count, static_cast<char>(random())));
        break;
      case 3:  // a piece of itself elsewhere
        bytes.replace(random() % (bytes.size() - count + 1), count, intact_.substr(at, count));
        break;
      default:
        for (std::size_t i = 0; i < count; ++i)
          bytes[at + i] = static_cast<char>(random());
    }
    (void)load(bytes);
    if (HasFailure()) return;
  }
}

// As after a crash of a file system: some blocks are the last save's.
TEST_F(DamageTest, RecordsOfAnotherSaveAreDamage) {
  std::string bytes = saved(cache_);
  ASSERT_EQ(bytes.size(), intact_.size());
  bytes.replace(first_record() + 2 * record_bytes(), record_bytes(), intact_,
                first_record() + 2 * record_bytes(), record_bytes());
  const auto report = load(bytes);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->damaged, 1U);
}

TEST_F(DamageTest, RecordsThatChangedPlacesAreDamage) {
  std::string bytes = intact_;
  bytes.replace(first_record(), record_bytes(), intact_, first_record() + record_bytes(),
                record_bytes());
  const auto report = load(bytes);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->damaged, 1U);
}

TEST_F(DamageTest, IntactRecordsThatCannotBeAreLeftOut) {
  const std::function<void(SavedPage&)> changes[] = {
      [](SavedPage& r) { r.parent = r.number; },      // itself
      [](SavedPage& r) { r.parent = 1000; },          // not yet
      [](SavedPage& r) { r.parent = kRootBit - 1; },
      [](SavedPage& r) { r.parent = kRootBit | 2; },  // no such namespace
      [](SavedPage& r) { r.parent = ~0U; },
      [](SavedPage& r) { r.token_count = 0; },
      [](SavedPage& r) { r.token_count = 6; },
      [](SavedPage& r) { r.token_count = 0xFFFF; },
      [](SavedPage& r) { r.priority = 16; },
  };
  for (const auto& change : changes) {
    const auto report = load(forge(0, change));
    ASSERT_TRUE(report);
    EXPECT_EQ(report->impossible, 1U);
  }
}

// The same page twice would break I2 (stripe_index.h).
TEST_F(DamageTest, TheSamePageTwiceIsLeftOut) {
  std::string bytes = intact_;
  char* second = bytes.data() + first_record() + record_bytes();
  std::memcpy(second, bytes.data() + first_record(), record_bytes());
  const std::uint32_t number = 1;
  std::memcpy(second, &number, sizeof number);
  seal(bytes, 1);
  const auto report = load(bytes);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->impossible, 1U);
}

// Records with random fields and checksums that fit: whoever can write the file can make a wrong
// page, but not a broken cache.
TEST_F(DamageTest, ForgedRecordsGiveASoundCache) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 300; ++round) {
    std::string bytes = intact_;
    for (std::uint32_t number = 0; number < 7; ++number) {
      if (random() % 2 == 0) continue;
      char* at = bytes.data() + first_record() + number * record_bytes();
      SavedPage record{};
      std::memcpy(&record, at, sizeof record);
      record.parent = random() % 2 == 0 ? static_cast<std::uint32_t>(random() % 8)
                                        : kRootBit | static_cast<std::uint32_t>(random() % 3);
      record.recency = random();
      record.retain_ticks = static_cast<std::uint32_t>(random());
      record.token_count = static_cast<std::uint16_t>(random() % 7);
      std::memcpy(at, &record, sizeof record);
      seal(bytes, number);
    }
    test::write_file(path_, bytes);
    MemoryCache loaded;
    ASSERT_TRUE(test::load_into(loaded, path_));
    EXPECT_EQ(loaded.findings(), "") << "round " << round;
    if (HasFailure()) return;
  }
}

// A head that a hostile writer sealed: its sizes lead nowhere and allocate nothing.
TEST_F(DamageTest, HostileSizesAreHarmless) {
  const auto with_head = [&](const std::function<void(SaveHead&)>& change) {
    std::string bytes = intact_;
    SaveHead head{};
    std::memcpy(&head, bytes.data() + sizeof(SavePrefix), sizeof head);
    change(head);
    head.checksum = part_checksum(head, kSaveMagic);
    std::memcpy(bytes.data() + sizeof(SavePrefix), &head, sizeof head);
    return bytes;
  };
  EXPECT_FALSE(load(with_head([](SaveHead& h) { h.namespaces = ~0U; })));
  const auto report = load(with_head([](SaveHead& h) { h.namespaces = kNamespacesMax; }));
  ASSERT_TRUE(report);
  EXPECT_EQ(report->pages, 0U);
  EXPECT_EQ(report->namespaces_left_out, kNamespacesMax - 2);
  for (const std::uint64_t tick_ns : {std::uint64_t{0}, ~std::uint64_t{0}}) {
    const auto loaded = load(with_head([&](SaveHead& h) { h.tick_ns = tick_ns; }));
    ASSERT_TRUE(loaded);
    EXPECT_EQ(loaded->pages, 7U);
  }
  test::write_file(path_, with_head([](SaveHead& h) { h.page_bytes = ~std::uint64_t{0}; }));
  EXPECT_EQ(SavedFile::open(path_)->difference(cache_.segment().geometry()),
            "it has page-bytes 18446744073709551615, the cache 24");
}

TEST_F(DamageTest, AnotherVersionIsNoDamage) {
  std::string bytes = intact_;
  SavePrefix prefix{};
  std::memcpy(&prefix, bytes.data(), sizeof prefix);
  prefix.version = kSaveVersion + 1;
  prefix.checksum = part_checksum(prefix, kSaveMagic);
  std::memcpy(bytes.data(), &prefix, sizeof prefix);
  test::write_file(path_, bytes);
  EXPECT_EQ(SavedFile::open(path_)->head_state(), SavedFile::HeadState::kOtherVersion);
}

TEST_F(DamageTest, WhatIsNoFileIsNotOpened) {
  EXPECT_EQ(SavedFile::open(folder_.file("none")).error().system_errno(), ENOENT);
  EXPECT_EQ(SavedFile::open(folder_.file("")).error().code(), Code::kInvalid);
}

}  // namespace
}  // namespace kvtrie
