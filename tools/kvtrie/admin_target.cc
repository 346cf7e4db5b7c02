// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/admin_target.h"

#include <fmt/format.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <span>

#include "shm/page_table.h"
#include "shm/prefix_hash.h"
#include "shm/stripe_index.h"
#include "tools/kvtrie/snapshot.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

std::optional<OpenNamespace> open_namespace(const Segment& segment, NamespaceId id) {
  const NamespaceRecord& record = segment.name_space(id);
  const std::uint64_t generation = record.root_generation.load(std::memory_order_acquire);
  if (record.state.load(std::memory_order_acquire) !=
      static_cast<std::uint32_t>(NamespaceState::kOpen)) {
    return std::nullopt;
  }
  return OpenNamespace{id, generation, record.hash_seed.load(std::memory_order_relaxed),
                       record.fields_hash.load(std::memory_order_relaxed)};
}

std::optional<std::uint32_t> number_in(std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

bool separates(char c) { return c == ',' || c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

TokensRead parse_tokens(std::string_view text) {
  TokensRead read;
  for (std::size_t at = 0; at < text.size();) {
    if (separates(text[at])) {
      ++at;
      continue;
    }
    std::size_t end = at;
    while (end < text.size() && !separates(text[end]))
      ++end;
    const std::string_view word = text.substr(at, end - at);
    const std::optional<std::uint32_t> token = number_in(word);
    if (!token) {
      read.problem = fmt::format("'{}' is not a token id (0 to 4294967295)",
                                 printable(word.data(), word.size()));
      return read;
    }
    read.tokens.push_back(*token);
    at = end;
  }
  if (read.tokens.empty()) read.problem = "no token ids were given";
  return read;
}

}  // namespace

Outcome on_coordinator(const Context& context,
                       const std::function<Outcome(const AdminTarget&)>& ask) {
  return on_segment(context, [&](const Segment& segment, const std::string& cache) {
    return ask({{directory_of(context), cache}, segment, context.json});
  });
}

Outcome refused(const Status& status, const std::string& message, bool json) {
  return failure(status.code() == Code::kTimeout ? Exit::kNoCoordinator : exit_of(status), message,
                 json);
}

NamespaceFound find_open_namespace(const AdminTarget& target, const std::string& named) {
  NamespaceFound found;
  const std::string& cache = target.address.cache;
  if (const std::optional<std::uint32_t> id = number_in(named);
      id && *id < target.segment.namespace_count()) {
    found.name_space = open_namespace(target.segment, {static_cast<std::uint16_t>(*id)});
    if (found.name_space) return found;
  }
  for (std::uint32_t i = 0; i < target.segment.namespace_count(); ++i) {
    const NamespaceId id{static_cast<std::uint16_t>(i)};
    const NamespaceView view = read_namespace(target.segment, id);
    if (!view.open || view.label != named) continue;
    if (found.name_space) {
      found.name_space.reset();
      found.failure = failure(
          Exit::kUsage,
          fmt::format("several namespaces of cache '{}' have the label '{}': name one by its id "
                      "(kvtrie tree --depth 0 lists them)",
                      cache, named),
          target.json);
      return found;
    }
    found.name_space = open_namespace(target.segment, id);
  }
  if (!found.name_space) {
    found.failure = failure(
        Exit::kNotFound,
        fmt::format("cache '{}' has no open namespace '{}'; `kvtrie tree --depth 0` lists them",
                    cache, named),
        target.json);
  }
  return found;
}

TokensRead read_tokens(const std::string& words) {
  if (words == "-") return parse_tokens(std::string(std::istreambuf_iterator<char>(std::cin), {}));
  if (!words.starts_with('@')) return parse_tokens(words);
  std::ifstream file(words.substr(1));
  if (!file) return {{}, fmt::format("{}: {}", words.substr(1), std::strerror(errno))};
  return parse_tokens(std::string(std::istreambuf_iterator<char>(file), {}));
}

CachedPrefix find_prefix(const Segment& segment, const OpenNamespace& name_space,
                         const std::vector<std::uint32_t>& tokens) {
  const PageTable pages(segment);
  const StripeIndex index(segment);
  const std::size_t page_tokens = segment.tokens_per_page();
  CachedPrefix found;
  Handle at = name_space.root();
  std::uint64_t hash = name_space.hash_seed;
  // Nothing is deeper than there are pages, whatever the links say.
  for (std::size_t done = 0;
       done + page_tokens <= tokens.size() && found.pages < segment.page_count();
       done += page_tokens) {
    const std::span<const std::uint32_t> wanted = std::span(tokens).subspan(done, page_tokens);
    hash = hash_page(hash, wanted);
    const bool there = index.for_each_candidate(index.place_of(hash), [&](PageIndex page) {
      const StateWord word = pages.state(page);
      if (!word.readable() || !pages.matches(page, at, wanted)) return false;
      at = Handle::page(page, word);
      return true;
    });
    if (!there) break;
    found.deepest = at;
    ++found.pages;
  }
  return found;
}

}  // namespace kvtrie::inspect
