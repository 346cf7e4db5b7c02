// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The KV shape of some well-known models, so that a cache can be planned without their files.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "tools/gguf/kv_shape.h"

namespace kvtrie::inspect {

struct KnownModel {
  const char* name;
  std::uint32_t layers;
  gguf::LayerShape layer;
  const char* repository;  // on huggingface.co; its config.json has these figures
  const char* note = "";   // what a page does not say; empty: nothing

  gguf::KvShape shape() const;
};

// By family, small to large.
std::span<const KnownModel> known_models();
// Upper and lower case are one.
const KnownModel* find_known_model(std::string_view name);

}  // namespace kvtrie::inspect
