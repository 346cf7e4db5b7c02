// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <system_error>

#include "tools/bench/crew.h"
#include "tools/bench/floors.h"
#include "tools/bench/peers/all_peers.h"
#include "tools/bench/sections.h"
#include "tools/bench/spread.h"

namespace kvtrie::bench {
namespace {

constexpr std::uint32_t kLongPages = 2048;
constexpr std::uint32_t kShortPages = 256;
constexpr std::uint32_t kProcessesMax = 2;

// In memory, since no peer is asked to survive the machine.
class WorkDirectory {
 public:
  WorkDirectory() {
    if (::mkdtemp(path_.data()) == nullptr) {
      throw std::runtime_error(fmt::format("{}: {}", path_, std::generic_category().message(errno)));
    }
  }
  WorkDirectory(const WorkDirectory&) = delete;
  WorkDirectory& operator=(const WorkDirectory&) = delete;
  ~WorkDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_ = "/dev/shm/kvtrie-bench.XXXXXX";
};

// Half of the pages in long prompts, which come first, half in short ones.
Corpus make_corpus(std::uint64_t pages) {
  Corpus corpus;
  for (const std::uint32_t prompt_pages : {kLongPages, kShortPages}) {
    for (std::uint64_t i = 0; i < pages / 2 / prompt_pages; ++i) {
      corpus.push_back({random_tokens(corpus.size(), std::size_t{prompt_pages} * kTokensPerPage), {}});
    }
  }
  return corpus;
}

// Not cached from page `position` on.
CachedPrompt changed_at(CachedPrompt prompt, std::uint32_t position) {
  prompt.tokens[std::size_t{position} * kTokensPerPage] ^= 1;
  prompt.pages.resize(position);
  return prompt;
}

// Prompts that are asked for one after the other, some of them in each round.
struct Case {
  std::string setting;  // "full hit, prompt of 2048 pages"
  bool hit;
  std::uint32_t prompt_pages;
  std::vector<const CachedPrompt*> prompts;
  std::size_t each_round;
};

struct Cases {
  Corpus misses;  // what those prompts are that do not stand in the corpus
  std::vector<Case> all;
};

Cases make_cases(const Corpus& corpus, bool quick) {
  Cases cases;
  const auto middle =
      std::ranges::find_if(corpus, [](const auto& prompt) { return prompt.pages.size() < kLongPages; });
  cases.misses.reserve(corpus.size());
  const auto add = [&](auto first, auto last, std::size_t misses, std::size_t hits_a_round) {
    const auto pages = static_cast<std::uint32_t>(first->pages.size());
    Case hit{fmt::format("full hit, prompt of {} pages", pages), true, pages, {}, hits_a_round};
    Case miss{fmt::format("miss at the first page, prompt of {} pages", pages), false, pages, {}, misses};
    for (auto prompt = first; prompt != last; ++prompt) {
      hit.prompts.push_back(&*prompt);
      if (miss.prompts.size() == misses) continue;
      cases.misses.push_back(changed_at(*prompt, 0));
      miss.prompts.push_back(&cases.misses.back());
    }
    hit.each_round = std::min(hit.each_round, hit.prompts.size());
    miss.each_round = miss.prompts.size();
    cases.all.push_back(std::move(hit));
    cases.all.push_back(std::move(miss));
  };
  add(corpus.begin(), middle, quick ? 8 : 128, quick ? 4 : 64);
  add(middle, corpus.end(), quick ? 16 : 512, quick ? 16 : 512);
  return cases;
}

// That it finds what is cached, whole and in part, and nothing else.
void check(const Peer& peer, Lookup& lookup, const Corpus& corpus) {
  std::vector<std::uint32_t> pages;
  const auto expect = [&](const CachedPrompt& prompt) {
    pages.assign(prompt.tokens.size() / kTokensPerPage, KVTRIE_NO_PAGE);
    const std::uint32_t found = lookup.find(prompt.tokens, pages.data());
    if (found != prompt.pages.size()) {
      throw std::runtime_error(fmt::format("{} finds {} pages of a prompt of which {} are cached", peer.name(), found,
                                           prompt.pages.size()));
    }
    if (peer.gives_pages() && !std::equal(prompt.pages.begin(), prompt.pages.end(), pages.begin())) {
      throw std::runtime_error(fmt::format("{} finds wrong pages", peer.name()));
    }
  };
  const std::size_t step = std::max<std::size_t>(corpus.size() / 16, 1);
  for (std::size_t i = 0; i < corpus.size(); i += step) {
    const auto count = static_cast<std::uint32_t>(corpus[i].pages.size());
    expect(corpus[i]);
    for (const std::uint32_t position : {0U, 1U, count / 2, count - 1}) expect(changed_at(corpus[i], position));
  }
  expect(corpus.back());
}

// Microseconds a prompt. A wrong answer makes the run void.
double ask(const Peer& peer, Lookup& lookup, const Case& asked, std::size_t first, std::vector<std::uint32_t>& pages) {
  const std::uint64_t expected = asked.hit ? std::uint64_t{asked.prompt_pages} * asked.each_round : 0;
  const auto tokens = [&](std::size_t i) -> const auto& {
    return asked.prompts[(first + i) % asked.prompts.size()]->tokens;
  };
  // An engine has just written its request; and whoever is asked first must not be the one who fetches it for all.
  std::uint32_t touched = 0;
  for (std::size_t i = 0; i < asked.each_round; ++i) {
    touched = std::accumulate(tokens(i).begin(), tokens(i).end(), touched);
  }
  keep(touched);
  std::uint64_t found = 0;
  const double ns = time_ns([&] {
    for (std::size_t i = 0; i < asked.each_round; ++i) found += lookup.find(tokens(i), pages.data());
  });
  if (found != expected) {
    throw std::runtime_error(
        fmt::format("{}, {}: {} pages found, not {}", peer.name(), asked.setting, found, expected));
  }
  return ns / 1e3 / static_cast<double>(asked.each_round);
}

// Figures of a process: bytes on its heap by peer; then by case, by peer, by round.
void measure(const Peers& peers, const Corpus& corpus, const Cases& cases, std::uint32_t rounds, CrewMember& member) {
  std::vector<std::unique_ptr<Lookup>> lookups;
  for (const auto& peer : peers.built) {
    const double before = heap_bytes();
    lookups.push_back(peer->open());
    member.figure(heap_bytes() - before);
    check(*peer, *lookups.back(), corpus);
  }
  std::vector<std::uint32_t> pages(kLongPages);
  for (const Case& asked : cases.all) {
    std::vector<std::function<double()>> candidates;
    for (std::size_t i = 0; i < lookups.size(); ++i) {
      // All are asked for the same prompts in a round, each process for others; these come again when all were there.
      candidates.emplace_back([&, i, first = asked.prompts.size() * member.index() / member.count()]() mutable {
        member.meet();
        const double us = ask(*peers.built[i], *lookups[i], asked, first, pages);
        first += asked.each_round;
        return us;
      });
    }
    for (const std::vector<double>& values : alternate(rounds, candidates)) {
      for (const double value : values) member.figure(value);
    }
  }
}

// Round by round, over the processes.
std::vector<double> mean(const std::vector<std::vector<double>>& figures, std::size_t from, std::uint32_t rounds) {
  std::vector<double> means(rounds);
  for (std::uint32_t round = 0; round < rounds; ++round) {
    for (const auto& mine : figures) means[round] += mine.at(from + round) / static_cast<double>(figures.size());
  }
  return means;
}

void report_memory(const Peers& peers, const Corpus& corpus, const std::vector<double>& heap, Report& report) {
  const auto pages = static_cast<double>(pages_of(corpus));
  double of_kvtrie = 0;
  for (std::size_t i = 0; i < peers.built.size(); ++i) {
    const std::optional<double> shared = peers.built[i]->shared_bytes();
    const double bytes = shared.value_or(heap[i]) / pages;
    if (i == 0) of_kvtrie = bytes;
    Row row{peers.built[i]->name(), shared ? "memory, once for all processes" : "memory, in each process",
            spread_of({bytes}), "bytes/page"};
    if (i > 0) {
      row.to = "kvtrie";
      row.ratio = spread_of({bytes / of_kvtrie});
    }
    report.add(std::move(row));
  }
}

}  // namespace

void run_peers(const Settings& settings, Report& report) {
  if (settings.pages < 2 * kLongPages) throw std::runtime_error("peers: too few pages for prompts of 2048");
  replay::Signals signals;
  const WorkDirectory directory;
  Corpus corpus = make_corpus(settings.pages);
  const Peers peers = make_peers(settings, signals, corpus, directory.path());
  const Cases cases = make_cases(corpus, settings.quick);

  Plot plot{.id = "peers",
            .title = "Full hit, 1 process",
            .x = "pages of the prompt",
            .y = "us per prompt",
            .log_x = true,
            .log_y = true,
            .series = {}};
  for (const auto& peer : peers.built) plot.series.push_back({peer->name(), {}});
  for (std::uint32_t processes = 1; processes <= kProcessesMax; ++processes) {
    signals.wait(std::chrono::milliseconds(0));
    if (signals.asked_to_end()) throw std::runtime_error("stopped by a signal");
    const auto figures = run_crew(
        processes, [&](CrewMember& member) { measure(peers, corpus, cases, settings.rounds, member); });
    std::size_t from = peers.built.size();
    for (const Case& asked : cases.all) {
      std::vector<double> of_kvtrie;
      for (std::size_t i = 0; i < peers.built.size(); ++i, from += settings.rounds) {
        const std::vector<double> us = mean(figures, from, settings.rounds);
        if (i == 0) of_kvtrie = us;
        Row row{peers.built[i]->name(),
                fmt::format("{}, {} {}", asked.setting, processes, processes == 1 ? "process" : "processes"),
                spread_of(us), "us/prompt"};
        if (i > 0) {
          row.to = "kvtrie";
          row.ratio = ratio_of(us, of_kvtrie);
        }
        if (asked.hit && processes == 1) {
          plot.series[i].points.push_back({static_cast<double>(asked.prompt_pages), spread_of(us)});
        }
        report.add(std::move(row));
      }
    }
    if (processes == kProcessesMax) report_memory(peers, corpus, figures[0], report);
  }
  report.plot(std::move(plot));
  report.note(fmt::format(
      "{} pages of {} tokens, all cached, half in prompts of {} pages and half in prompts of {}; random tokens, no "
      "shared prefixes; with several processes the mean of their times, each asks for other prompts. Hash tables and "
      "tree are each process's own, as in engines: what one has cached the others do not find",
      pages_of(corpus), kTokensPerPage, kLongPages, kShortPages));
  for (const auto& peer : peers.built) report.note(fmt::format("{}: {}", peer->name(), peer->configuration()));
  for (const std::string& missing : peers.missing) report.note(missing);
}

}  // namespace kvtrie::bench
