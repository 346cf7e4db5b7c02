// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/request.h"

namespace kvtrie::engine {

void load_pages(const kv::Worker& worker, Beam& beam) {
  beam.page_ids = beam.sequence.pages();
  beam.pages.clear();
  for (const std::uint32_t page : beam.page_ids)
    beam.pages.push_back(static_cast<std::byte*>(worker.page_address(page, 0)));
}

void let_go(Request& request) {
  for (Beam& beam : request.beams) {
    beam.sequence = {};
    beam.page_ids.clear();
    beam.pages.clear();
    beam.candidates.clear();
    beam.computed = 0;
    beam.borrowed_end = 0;
    beam.step_end = 0;
  }
}

void record_answer(const Request& request, RequestRecord& record) {
  record.answer_tokens = 0;
  for (const Beam& beam : request.beams) {
    for (std::size_t i = request.spec.prompt.size(); i < beam.tokens.size(); ++i)
      record.answer[record.answer_tokens++] = beam.tokens[i];
  }
  record.prefilled = static_cast<std::uint32_t>(request.prefilled);
}

void note_wake(const Request& request, Board& board) {
  if (board.settings().kill_owner == 0) return;
  RequestRecord& record = board.record(request.index);
  const std::uint64_t death = board.record(request.index / board.workers() * board.workers()).death_ns.load();
  const std::uint64_t now = now_ns();
  const double waited_ns = request.wait->seconds() * 1e9;
  if (death != 0 && record.woken_ns == 0 && waited_ns > static_cast<double>(now - death))
    record.woken_ns = now - death;
}

}  // namespace kvtrie::engine
