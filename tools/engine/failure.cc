// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/failure.h"

#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <system_error>
#include <utility>
#include <vector>

#include "dump/dump_diff.h"
#include "tools/engine/dumping_engine.h"
#include "tools/engine/llama_part.h"
#include "tools/engine/request.h"
#include "tools/engine/worker_main.h"

namespace kvtrie::engine {
namespace {

// What a request had computed when it was finished, by its best text; of one that was not, its prompt.
std::vector<std::uint32_t> text_of(const Board& board, std::uint32_t index) {
  const RequestSpec spec = make_request(board.workload(), index);
  std::vector<std::uint32_t> tokens = spec.prompt;
  const RequestRecord& record = board.record(index);
  if (record.owner.load() != RequestRecord::kDone) return tokens;
  const std::uint32_t count = std::min(record.answer_tokens, spec.output);
  tokens.insert(tokens.end(), record.answer, record.answer + count);
  return tokens;
}

// The same pages in the cache and computed alone, from `first` on.
class Comparison {
 public:
  Comparison(const Board& board, const EngineOptions& options)
      : board_(board),
        options_(options),
        library_(kv::Library::linked()),
        shape_{options.tokens_per_page, options.page_bytes} {
    kv::AttachOptions attach;
    attach.cache = board.settings().cache;
    attach.directory = board.settings().directory;
    attach.name = "failure";
    attach.timeout_ms = 2000;
    if (const kv::Outcome outcome = worker_.attach(library_, attach); !outcome)
      throw std::runtime_error(library_.last_error());
    made_ = make_alone_engine(board.settings(), shape_, options.page_bound);
    std::vector<kvtrie_field> fields;
    for (const auto& [key, value] : made_.fields) {
      fields.push_back({key.c_str(), value.c_str()});
      fields_ += key + "=" + value + "\n";
    }
    name_space_ = worker_.open_namespace(fields, nullptr);
  }

  // Empty: nothing is cached of it, or all is right.
  std::string look_at(std::uint32_t index, const std::string& folder) {
    const std::vector<std::uint32_t> tokens = text_of(board_, index);
    kvtrie_begin_options begin{};
    begin.size = sizeof begin;
    begin.flags = KVTRIE_NO_PUBLISH;
    const kv::Begun begun = worker_.begin(name_space_, tokens, &begin);
    if (!begun.outcome || begun.result.cached_pages == 0) return {};
    const std::vector<std::uint32_t> ids = begun.sequence.pages();
    const std::uint64_t count = begun.result.cached_pages * std::uint64_t{shape_.tokens_per_page};
    std::vector<std::byte> memory(begun.result.cached_pages * shape_.page_bytes);
    std::vector<std::byte*> cached;
    std::vector<std::byte*> alone;
    for (std::uint32_t position = 0; position < begun.result.cached_pages; ++position) {
      cached.push_back(static_cast<std::byte*>(worker_.page_address(ids[position], 0)));
      alone.push_back(memory.data() + position * shape_.page_bytes);
    }
    Work work{tokens, alone, 0, count, 0, {}, 0};
    made_.engine->step({&work, 1});
    for (std::uint32_t position = 0; position < cached.size(); ++position) {
      if (made_.is_right({cached[position], shape_.page_bytes}, {alone[position], shape_.page_bytes})) continue;
      const std::string one = dump(index, tokens, ids, alone, position, folder + "/alone", "alone");
      const std::string other = dump(index, tokens, ids, cached, position, folder + "/shared", "cached");
      const dump::DumpDiffOutcome outcome = dump::diff_dumps(one, other);
      std::string what = outcome.diff.pages ? outcome.diff.pages->text : outcome.error;
      what.erase(0, what.find("part "));  // what comes before is said here
      return fmt::format("request {}: page {} at position {}: {}\n                     kvtrie diff-dumps {} {}", index,
                         ids[position], std::uint64_t{position} * shape_.tokens_per_page, what, one, other);
    }
    return {};
  }

 private:
  std::string dump(std::uint32_t index, std::span<const std::uint32_t> tokens, std::span<const std::uint32_t> ids,
                   std::span<std::byte* const> pages, std::uint32_t first, const std::string& folder,
                   const char* state) const {
    dump::Dump dump{.moment = "after",
                    .engine = options_.run.engine == EngineKind::kLlama ? "llama.cpp" : "hash",
                    .requests = {},
                    .batch = {},
                    .pages = {}};
    dump.requests.push_back({.id = fmt::format("request {}", index),
                             .tag = index,
                             .name_space = fields_,
                             .tokens = tokens,
                             .cached_tokens = pages.size() * shape_.tokens_per_page,
                             .page_table = ids});
    for (std::uint32_t position = first; position < pages.size(); ++position) {
      dump::DumpedPage page = dumped_page(fields_, shape_, pages[position], position,
                                          (std::uint64_t{position} + 1) * shape_.tokens_per_page);
      page.page = ids[position];
      page.state = state;
      dump.pages.push_back(std::move(page));
    }
    const dump::WrittenDump done = dump::Dumper({.directory = folder, .raw = true}).write(dump);
    if (done.directory.empty()) throw std::runtime_error(done.error);
    return done.directory;
  }

  const Board& board_;
  const EngineOptions& options_;
  const kv::Library library_;
  const PageShape shape_;
  kv::Worker worker_;
  AloneInNamespace made_;
  std::string fields_;
  kvtrie_namespace name_space_{};
};

}  // namespace

Leftovers::Leftovers(const std::string& directory) {
  std::filesystem::path base = directory;
  if (base.empty()) base = std::filesystem::temp_directory_path();
  std::filesystem::create_directories(base);
  path_ = (base / "kvtrie-engine-XXXXXX").string();
  if (::mkdtemp(path_.data()) == nullptr) {
    throw std::system_error(errno, std::generic_category(), std::exchange(path_, {}));
  }
}

Leftovers::~Leftovers() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

void Leftovers::copy_cache(const std::string& cache) const {
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("kvtrie." + cache + ".")) continue;
    std::error_code ignored;  // a help; what is wrong is said all the same
    std::filesystem::copy_file(entry.path(), path_ + "/" + name, ignored);
  }
}

std::string Leftovers::keep() { return std::exchange(path_, {}); }

std::string dump_first_wrong_page(const Board& board, const EngineOptions& options,
                                  std::span<const std::uint32_t> requests, const std::string& folder) {
  try {
    Comparison comparison(board, options);
    for (const std::uint32_t index : requests) {
      if (std::string found = comparison.look_at(index, folder); !found.empty()) return found;
    }
    return fmt::format("none is cached now, of {} requests", requests.size());
  } catch (const std::exception& error) {
    return fmt::format("cannot be looked for: {}", error.what());
  }
}

}  // namespace kvtrie::engine
