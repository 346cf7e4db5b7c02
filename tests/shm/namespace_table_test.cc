// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/namespace_table.h"

#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "shm/page_table.h"
#include "tests/shm/test_support.h"
#include "tests/support/dies_at.h"

namespace kvtrie {
namespace {

class NamespaceTableTest : public testing::Test {
 protected:
  void SetUp() override {
    fd_ = std::move(*test::nameless_object(layout_of(geometry_).segment_bytes));
    Result<Segment> segment = test::build_segment(fd_.get(), geometry_);
    ASSERT_TRUE(segment);
    segment_.emplace(std::move(*segment));
    table_.emplace(*segment_);
  }

  OpenNamespace open(const std::string& fields) {
    const Result<OpenNamespace> opened = table_->open(fields, "label");
    EXPECT_TRUE(opened) << opened.error().what();
    return opened ? *opened : OpenNamespace{};
  }

  // A page in this namespace, as far as reuse looks.
  void add_page(PageIndex page, NamespaceId id) {
    segment_->descriptor(page).scope.store(std::uint32_t{id.value} << 16 | 1);
    segment_->descriptor(page).state.store(StateWord::make(PageState::kLive, 0).raw);
  }
  void remove_page(PageIndex page) {
    segment_->descriptor(page).state.store(StateWord::make(PageState::kFree, 1).raw);
  }

  void fill_table() {
    for (std::uint32_t i = 0; i < geometry_.namespaces; ++i)
      ASSERT_EQ(open("model=" + std::to_string(i) + "\n").id.value, i);
  }

  const Geometry geometry_ = test::small_geometry();
  FileDescriptor fd_;
  std::optional<Segment> segment_;
  std::optional<NamespaceTable> table_;
};

TEST_F(NamespaceTableTest, FlushIsTheNextGenerationAndNothingElse) {
  const OpenNamespace before = open("model=a\n");
  const Result<std::uint64_t> generation = table_->flush(before.id, before.fields_hash);
  ASSERT_TRUE(generation);
  EXPECT_EQ(*generation, before.root_generation + 1);
  const OpenNamespace after = open("model=a\n");
  EXPECT_EQ(after.id, before.id);
  EXPECT_EQ(after.root_generation, *generation);
  EXPECT_EQ(after.hash_seed, before.hash_seed);
  EXPECT_FALSE(scope_is_current(*segment_, scope_of(before.id, before.root_generation)));
  EXPECT_TRUE(scope_is_current(*segment_, scope_of(before.id, *generation)));
  EXPECT_EQ(table_->validate(), "");
}

TEST_F(NamespaceTableTest, FlushOfAnotherNamespaceThanMeantIsRefused) {
  const OpenNamespace opened = open("model=a\n");
  EXPECT_EQ(table_->flush(opened.id, opened.fields_hash + 1).error().code(), Code::kNotFound);
  EXPECT_EQ(table_->flush({1}, 0).error().code(), Code::kNotFound) << "not open";
  EXPECT_EQ(table_->flush({60000}, 0).error().code(), Code::kNotFound);
  EXPECT_EQ(open("model=a\n").root_generation, opened.root_generation);
}

// A page knows the low 16 bits of its root's generation: after 65,536 flushes one that stayed would count as current.
TEST_F(NamespaceTableTest, FlushPassesGenerationsOverThatPagesStillHave) {
  const OpenNamespace opened = open("model=a\n");
  NamespaceRecord& record = segment_->name_space(opened.id);
  const auto stays = [&](std::uint32_t page, std::uint64_t generation) {
    segment_->descriptor({page}).scope.store(scope_of(opened.id, generation));
    segment_->descriptor({page}).state.store(StateWord::make(PageState::kLive, 0).raw);
  };
  stays(0, 5);
  stays(1, 6);
  stays(2, 8);
  record.root_generation.store(65536 + 4);
  const Result<std::uint64_t> next = table_->flush(opened.id, opened.fields_hash);
  ASSERT_TRUE(next);
  EXPECT_EQ(*next, 65536U + 7);
  EXPECT_FALSE(scope_is_current(*segment_, segment_->descriptor({0}).scope.load()));
  ASSERT_TRUE(table_->flush(opened.id, opened.fields_hash));
  EXPECT_EQ(record.root_generation.load(), 65536U + 9);
  segment_->descriptor({0}).state.store(StateWord::make(PageState::kFree, 1).raw);
  record.root_generation.store(65536 + 4);
  EXPECT_EQ(*table_->flush(opened.id, opened.fields_hash), 65536U + 5) << "its page is gone";
}

// The coordinator reaps the dead there: the walk takes 10 ms a million pages.
TEST_F(NamespaceTableTest, WalkOverAllPagesIsInterrupted) {
  fill_table();
  int asked = 0;
  NamespaceTable table(*segment_, [&] { ++asked; });
  ASSERT_TRUE(table.open("model=0\n", "")) << "it is there";
  EXPECT_EQ(asked, 0);
  ASSERT_TRUE(table.open("model=new\n", ""));
  EXPECT_EQ(asked, 1) << "once every 8,192 pages";
}

TEST_F(NamespaceTableTest, CanonicalTextDoesNotDependOnTheOrder) {
  const std::vector<NamespaceField> one = {{"model", "m"}, {"dtype", "fp16"}, {"lora", ""}};
  const std::vector<NamespaceField> two = {{"lora", ""}, {"model", "m"}, {"dtype", "fp16"}};
  const Result<std::string> text = canonical_fields(one);
  ASSERT_TRUE(text);
  EXPECT_EQ(*text, "dtype=fp16\nlora=\nmodel=m\n");
  EXPECT_EQ(*canonical_fields(two), *text);
  EXPECT_EQ(namespace_fields_problem(*text), "");
}

TEST_F(NamespaceTableTest, RefusesFieldsThatCouldBeReadInTwoWays) {
  const std::string long_value(kNamespaceDescriptorMax, 'x');
  const std::vector<std::vector<NamespaceField>> bad = {{},
                                                        {{"a", "1"}, {"a", "1"}},
                                                        {{"a", "1"}, {"a", "2"}},
                                                        {{"", "1"}},
                                                        {{"a=b", "1"}},
                                                        {{"A", "1"}},
                                                        {{"a", "1\nb=2"}},
                                                        {{"a", std::string_view("\0", 1)}},
                                                        {{"a", long_value}}};
  for (const auto& fields : bad)
    EXPECT_EQ(canonical_fields(fields).error().code(), Code::kInvalid);
  for (const char* text : {"", "a", "a=1", "b=1\na=2\n", "a=1\na=1\n", "=1\n", "a=1\n\n", "\n"}) {
    EXPECT_NE(namespace_fields_problem(text), "") << text;
    EXPECT_EQ(table_->open(text, "").error().code(), Code::kInvalid) << text;
  }
}

TEST_F(NamespaceTableTest, FindsWhatWasOpened) {
  EXPECT_EQ(find_namespace(*segment_, "a=1\n").error().code(), Code::kNotFound);
  const OpenNamespace made = open("a=1\n");
  const Result<OpenNamespace> found = find_namespace(*segment_, "a=1\n");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->id, made.id);
  EXPECT_EQ(found->root_generation, made.root_generation);
  EXPECT_EQ(found->hash_seed, made.hash_seed);
  EXPECT_EQ(found->fields_hash, made.fields_hash);
  EXPECT_EQ(open("a=1\n").id, made.id) << "the same fields are the same namespace";
  EXPECT_EQ(table_->stats().open, 1U);
  EXPECT_EQ(segment_->total(Counter::kNamespacesMade), 1U);
  EXPECT_EQ(find_namespace(*segment_, "a=1").error().code(), Code::kNotFound);
  EXPECT_EQ(find_namespace(*segment_, "a=1\nb=2\n").error().code(), Code::kNotFound);
  EXPECT_EQ(find_namespace(*segment_, "").error().code(), Code::kInvalid);
}

TEST_F(NamespaceTableTest, NamespacesHaveSeedsOfTheirOwn) {
  const OpenNamespace one = open("a=1\n");
  const OpenNamespace two = open("a=2\n");
  EXPECT_NE(one.id, two.id);
  EXPECT_NE(one.hash_seed, two.hash_seed);
  EXPECT_NE(one.root(), two.root());
}

// The hash only finds candidates: here both have the same.
TEST_F(NamespaceTableTest, ComparesFieldsInFull) {
  const OpenNamespace made = open("a=1\n");
  NamespaceRecord& record = segment_->name_space(made.id);
  record.fields[2] = '2';
  EXPECT_EQ(find_namespace(*segment_, "a=1\n").error().code(), Code::kNotFound);
}

TEST_F(NamespaceTableTest, ReusesOnlyNamespacesWithoutPages) {
  fill_table();
  for (std::uint16_t i = 0; i < geometry_.namespaces; ++i)
    add_page({i}, {i});
  EXPECT_EQ(table_->open("model=x\n", "").error().code(), Code::kFull);
  remove_page({2});
  const std::uint64_t before = segment_->name_space({2}).root_generation.load();
  const OpenNamespace made = open("model=x\n");
  EXPECT_EQ(made.id.value, 2);
  EXPECT_EQ(made.root_generation, before + 1) << "handles of the old root are dead";
  EXPECT_EQ(find_namespace(*segment_, "model=2\n").error().code(), Code::kNotFound);
  EXPECT_EQ(table_->validate(), "");
}

TEST_F(NamespaceTableTest, ReuseTakesTurns) {
  fill_table();
  const NamespaceId first = open("x=1\n").id;
  const NamespaceId second = open("x=2\n").id;
  EXPECT_NE(first, second) << "one just opened has no page yet and must not go at once";
  EXPECT_TRUE(find_namespace(*segment_, "x=1\n"));
}

TEST_F(NamespaceTableTest, ReportsWhatIsImpossible) {
  const OpenNamespace made = open("a=1\n");
  NamespaceRecord& record = segment_->name_space(made.id);
  const auto finds = [&](const char* what) {
    EXPECT_NE(table_->validate().find(what), std::string::npos) << table_->validate();
  };
  record.fields_bytes.store(5000);
  finds("field bytes");
  record.fields_bytes.store(4);
  record.fields[0] = 'b';
  finds("hash does not match");
  record.fields[0] = 'a';
  record.root_generation.store(0);
  finds("root generation");
  record.root_generation.store(made.root_generation);
  record.state.store(9);
  finds("impossible state");
  record.state.store(1);
  EXPECT_EQ(table_->validate(), "");
}

// While one namespace gives way to another again and again, a reader finds each as a whole or not
// at all.
TEST_F(NamespaceTableTest, ReaderNeverSeesTwoNamespacesMixed) {
  fill_table();
  for (std::uint16_t i = 1; i < geometry_.namespaces; ++i)
    add_page({i}, {i});
  constexpr int kRounds = 20'000;
  const std::string fields[] = {"x=1\n", "y=22\n"};
  const OpenNamespace made[] = {open(fields[0]), open(fields[1])};
  std::atomic<bool> done{false};
  std::atomic<int> found{0};
  std::thread reader([&] {
    while (!done.load()) {
      for (int i = 0; i < 2; ++i) {
        const Result<OpenNamespace> got = find_namespace(*segment_, fields[i]);
        if (!got) continue;
        found.fetch_add(1);
        EXPECT_EQ(got->fields_hash, made[i].fields_hash);
        EXPECT_EQ(got->hash_seed, made[i].hash_seed);
        EXPECT_EQ(got->root_generation % 2, made[i].root_generation % 2) << "they take turns";
      }
    }
  });
  for (int i = 0; i < kRounds || (found.load() == 0 && i < 100 * kRounds); ++i)
    (void)open(fields[i % 2]);
  done.store(true);
  reader.join();
  EXPECT_GT(found.load(), 0);
}

#ifdef KVTRIE_DEV
using test::dies_at;

TEST_F(NamespaceTableTest, CoordinatorDiesInOpen) {
  ASSERT_TRUE(dies_at("namespace.before_open", [&] { (void)open("a=1\n"); }));
  EXPECT_EQ(find_namespace(*segment_, "a=1\n").error().code(), Code::kNotFound);
  EXPECT_EQ(table_->validate(), "");
  NamespaceTable next(*segment_);
  next.recover();
  EXPECT_EQ(segment_->name_space({0}).fields[0], '\0');
  EXPECT_EQ(segment_->name_space({0}).fields_hash.load(), 0U);
  const Result<OpenNamespace> made = next.open("a=1\n", "");
  ASSERT_TRUE(made);
  EXPECT_EQ(made->id.value, 0);
}

TEST_F(NamespaceTableTest, CoordinatorDiesInReuse) {
  fill_table();
  ASSERT_TRUE(dies_at("namespace.after_close", [&] { (void)open("x=1\n"); }));
  EXPECT_EQ(find_namespace(*segment_, "x=1\n").error().code(), Code::kNotFound);
  EXPECT_TRUE(find_namespace(*segment_, "model=3\n")) << "later ones are still found";
  NamespaceTable next(*segment_);
  next.recover();
  next.recover();
  const Result<OpenNamespace> made = next.open("x=1\n", "");
  ASSERT_TRUE(made);
  EXPECT_EQ(made->id.value, 0);
  EXPECT_EQ(made->root_generation, 2U);
  EXPECT_EQ(next.validate(), "");
}
#endif

}  // namespace
}  // namespace kvtrie
