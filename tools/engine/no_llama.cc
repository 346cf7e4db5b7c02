// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <stdexcept>

#include "tools/engine/llama_part.h"

namespace kvtrie::engine {
namespace {

[[noreturn]] void fail() { throw std::logic_error("this program has no llama.cpp"); }

}  // namespace

bool has_llama() { return false; }
std::uint64_t llama_page_bytes(const RunSettings&, std::uint32_t) { fail(); }
EngineInNamespace make_llama_engine(const RunSettings&, const PageShape&) { fail(); }
AloneInNamespace make_alone_llama(const RunSettings&, const PageShape&, double) { fail(); }
LlamaResult compare_llama(const Board&, const EngineOptions&, const std::function<bool()>&) { fail(); }

}  // namespace kvtrie::engine
