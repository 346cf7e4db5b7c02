// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Writes one dump of a file's bytes as pages, for tests that read it with numpy.
//   write_dump OPTIONS MOMENT BYTES PAGE_BYTES DTYPE [FIELDS]   OPTIONS: as of parse_dump_options; FIELDS: a namespace's
// Page numbers go down from 90, positions up from 0; the tokens are 100, 101, ... Prints the dump's directory.

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <numeric>
#include <string>
#include <vector>

#include "dump/dumper.h"

int main(int argc, char** argv) {
  using namespace kvtrie::dump;
  if (argc < 6) return 2;
  std::string error;
  const std::optional<DumpOptions> options = parse_dump_options(argv[1], error);
  if (!options) {
    std::fprintf(stderr, "%s\n", error.c_str());
    return 2;
  }
  std::ifstream file(argv[3], std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto bytes = std::as_bytes(std::span(text));
  const auto page_bytes = static_cast<std::size_t>(std::atoi(argv[4]));
  std::vector<std::uint32_t> tokens(16 * (bytes.size() / page_bytes) + 3);
  std::iota(tokens.begin(), tokens.end(), 100U);
  std::vector<std::uint32_t> table;

  Dump dump{.moment = argv[2], .engine = "test", .requests = {}, .batch = {}, .pages = {}};
  for (std::uint32_t i = 0; i < bytes.size() / page_bytes; ++i) {
    const auto page = bytes.subspan(i * page_bytes, page_bytes);
    table.push_back(90 - i);
    dump.pages.push_back({.request = 0,
                          .position = i,
                          .page = 90 - i,
                          .plane = 0,
                          .state = "private",
                          .bytes = page,
                          .parts = argc > 6 ? parts_of_page(argv[6], page)
                                            : whole_page(page_bytes, dtype_of(argv[5]).value_or(DType::kRaw))});
  }
  table.push_back(0xFFFFFFFF);
  dump.requests.push_back({.id = "r1",
                           .tag = 7,
                           .name_space = argc > 6 ? argv[6] : "",
                           .tokens = tokens,
                           .cached_tokens = 16,
                           .page_table = table});
  dump.batch.push_back({.request = 0, .kind = "prefill", .first_token = 16, .token_count = tokens.size() - 16});

  Dumper dumper(*options);
  if (!dumper.wants(7)) {
    std::puts("not wanted");
    return 0;
  }
  const WrittenDump written = dumper.write(dump);
  if (!written.error.empty()) {
    std::fprintf(stderr, "%s\n", written.error.c_str());
    return 1;
  }
  std::puts(written.directory.c_str());
}
