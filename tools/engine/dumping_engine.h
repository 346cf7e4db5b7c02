// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Debug dumps (docs/dumps.md) around another engine's steps: its batch, and the pages that it reads ("before"), with
// those that it has written ("after"). The loop's sequences hold all of them. A request's tag is its index.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "dump/dumper.h"
#include "tools/engine/engine.h"
#include "tools/engine/reference.h"

namespace kvtrie::engine {

class DumpingEngine final : public Engine {
 public:
  // `fields`: of the namespace, lines "key=value". `engine`: its name in dumps.
  DumpingEngine(std::unique_ptr<Engine> inner, const dump::DumpOptions& options, std::string engine, std::string fields,
                const PageShape& shape);
  void step(std::span<Work> batch) override;

 private:
  // Throws std::runtime_error: a dump that was asked for cannot be written.
  void write(const char* moment, std::span<const Work> batch);

  std::unique_ptr<Engine> inner_;
  dump::Dumper dumper_;
  const std::string engine_;
  const std::string fields_;
  const PageShape shape_;
};

// The page at `position` of tokens [0, end): its bytes as far as they are KV, and the parts of these.
dump::DumpedPage dumped_page(std::string_view fields, const PageShape& shape, const std::byte* page,
                             std::uint32_t position, std::uint64_t end);

}  // namespace kvtrie::engine
