// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A run's rows in a page that people write: in their regions, and nowhere else.

#include "tools/bench/docs_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace kvtrie::bench {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr const char* kPage =
    "# Speed\n"
    "Prose before.\n"
    "<!-- kvtrie-bench run -->\n"
    "<!-- end -->\n"
    "## Hits\n"
    "<!-- kvtrie-bench hit -->\n"
    "| an | older | table |\n"
    "<!-- end -->\n"
    "Prose between.\n"
    "<!-- kvtrie-bench reap -->\n"
    "of another run\n"
    "<!-- end -->\n"
    "Prose behind, without a line feed";

class DocsWriterTest : public ::testing::Test {
 protected:
  DocsWriterTest() : folder_((fs::temp_directory_path() / "kvtrie-docs.XXXXXX").string()) {
    if (::mkdtemp(folder_.data()) == nullptr) throw std::runtime_error("mkdtemp");
    page_ = fs::path(folder_) / "speed.md";
    write(kPage);
    report_.begin_section("hit", "full hits");
    report_.add({"begin", "1 M | fresh", {1, 2, 3}, "ns/page", "stream", {1.2, 1.4, 1.6}, at_most(1.5)});
    report_.add({"miss", "1 M", {400, 400, 400}, "ns", {}, {}, at_most(300)});
    report_.add({"fill", "once", {7, 7, 7}, "s"});
    report_.note("runs of 2,048 pages");
    report_.end_section(12);
  }
  ~DocsWriterTest() override { fs::remove_all(folder_); }

  void write(const std::string& text) const { std::ofstream(page_) << text; }
  [[nodiscard]] std::string text() const {
    std::ifstream file(page_);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  [[nodiscard]] std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(folder_))
      names.push_back(entry.path().lexically_relative(folder_).string());
    std::ranges::sort(names);
    return names;
  }
  std::string write_run() {
    return write_page(page_, report_, {"2026-01-02 03:04 UTC", "kvtrie-bench hit", {"a machine"}, 13});
  }
  // Says what, and leaves the page and its folder as they were.
  void expect_refused(const std::string& page, const std::string& why) {
    write(page);
    EXPECT_THAT([&] { write_run(); }, ::testing::ThrowsMessage<std::runtime_error>(HasSubstr(why)));
    const std::vector<std::string> sections{"hit"};
    EXPECT_THAT([&] { check_page(page_, sections); }, ::testing::ThrowsMessage<std::runtime_error>(HasSubstr(why)));
    EXPECT_EQ(text(), page);
    EXPECT_EQ(files(), std::vector<std::string>{"speed.md"});
  }
  void add_plot() {
    report_.begin_section("reap", "plotted");
    report_.plot({"pages-by-size",
                  "It's by size",
                  "pages",
                  "ns",
                  true,
                  true,
                  {{"one", {{16, {1, 2, 3}}, {256, {2, 4, 6}}}}, {"two", {{16, {5, 5, 5}}, {256, {8, 9, 10}}}}}});
    report_.end_section(1);
  }

  std::string folder_;
  fs::path page_;
  Report report_;
};

TEST_F(DocsWriterTest, RowsStandInTheirRegion) {
  EXPECT_EQ(write_run(), "");
  const std::string written = text();
  EXPECT_THAT(written, HasSubstr("<!-- kvtrie-bench hit -->\n\nfull hits (2026-01-02 03:04 UTC, 12 s)\n"));
  EXPECT_THAT(written,
              HasSubstr("| begin | 1 M \\| fresh | 2.00 (1.00 to 3.00) ns/page | 1.40 (1.20 to 1.60) times stream | "
                        "at most 1.50 | met |\n"));
  EXPECT_THAT(written, HasSubstr("| miss | 1 M | 400 ns |  | at most 300 | **missed** |\n"));
  EXPECT_THAT(written, HasSubstr("| fill | once | 7.00 s |  |  |  |\n\n* runs of 2,048 pages\n\n<!-- end -->\n"));
  EXPECT_THAT(written, Not(HasSubstr("an | older")));
}

TEST_F(DocsWriterTest, RunSaysWhereAndHow) {
  write_run();
  EXPECT_THAT(text(), HasSubstr("<!-- kvtrie-bench run -->\n\n"
                                "* 2026-01-02 03:04 UTC: `kvtrie-bench hit`, 13 s\n* a machine\n"
                                "* sections of this run: hit\n* targets met: 1 of 2\n\n<!-- end -->\n"));
}

TEST_F(DocsWriterTest, ProseAndRegionsOfOtherSectionsStay) {
  write_run();
  const std::string written = text();
  EXPECT_THAT(written, StartsWith("# Speed\nProse before.\n<!-- kvtrie-bench run -->\n"));
  EXPECT_THAT(written, HasSubstr("<!-- end -->\n## Hits\n"));
  EXPECT_THAT(written, ::testing::EndsWith("<!-- end -->\nProse between.\n<!-- kvtrie-bench reap -->\nof another run\n"
                                           "<!-- end -->\nProse behind, without a line feed"));
}

TEST_F(DocsWriterTest, TheSameRunTwiceGivesTheSamePage) {
  write_run();
  const std::string once = text();
  write_run();
  EXPECT_EQ(text(), once);
  EXPECT_EQ(files(), std::vector<std::string>{"speed.md"});
}

TEST_F(DocsWriterTest, PageThatCannotTakeTheRunIsRefused) {
  expect_refused("only prose\n", "no region for `run`");
  expect_refused("<!-- kvtrie-bench run -->\n<!-- end -->\n", "no region for `hit`");
  expect_refused("<!-- kvtrie-bench hit -->\n<!-- end -->\n<!-- kvtrie-bench run -->\nmore",
                 "region run has no `<!-- end -->`");
  expect_refused("<!-- kvtrie-bench hit -->\n<!-- kvtrie-bench run -->\n<!-- end -->\n",
                 "line 2: region hit has no `<!-- end -->`");
  expect_refused("<!-- kvtrie-bench run -->\n<!-- end -->\n<!-- end -->\n", "line 3: `<!-- end -->` without a region");
  expect_refused(std::string(kPage) + "\n<!-- kvtrie-bench hit -->\n<!-- end -->\n", "region hit is there twice");
}

TEST_F(DocsWriterTest, LinkStaysALink) {
  const fs::path link = fs::path(folder_) / "link.md";
  fs::create_symlink("speed.md", link);
  write_page(link, report_, {});
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_THAT(text(), HasSubstr("| begin |"));
}

TEST_F(DocsWriterTest, PlotsStandBesideThePage) {
  add_plot();
  if (const std::string why = write_run(); !why.empty()) GTEST_SKIP() << why;
  EXPECT_THAT(text(), HasSubstr("\n![It's by size](speed/pages-by-size.svg)\n\n<!-- end -->\n"));
  EXPECT_EQ(files(), (std::vector<std::string>{"speed", "speed.md", "speed/pages-by-size.svg"}));
  std::ifstream file(fs::path(folder_) / "speed/pages-by-size.svg");
  const std::string svg{std::istreambuf_iterator<char>(file), {}};
  EXPECT_THAT(svg, HasSubstr("It's by size"));
  EXPECT_THAT(svg, HasSubstr(">two<"));
}

TEST_F(DocsWriterTest, WithoutGnuplotPlotsAreLeftOutAndItSaysSo) {
  add_plot();
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", folder_.c_str(), 1);
  const std::string why = write_run();
  ::setenv("PATH", path.c_str(), 1);
  EXPECT_THAT(why, HasSubstr("there is no gnuplot"));
  EXPECT_THAT(text(), HasSubstr("plotted (2026-01-02"));
  EXPECT_THAT(text(), Not(HasSubstr("![")));
}

}  // namespace
}  // namespace kvtrie::bench
