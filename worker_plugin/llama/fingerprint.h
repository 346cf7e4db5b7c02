// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// All that must be equal before two llama.cpp contexts may share pages, as the fields of a namespace: the model's
// files, what overrides them, the engine's build and back ends, the kind of KV, attention and positions, and the
// tenant.
#pragma once

#include <llama.h>

#include <string>
#include <utility>
#include <vector>

#include "worker_plugin/llama/calls.h"
#include "worker_plugin/llama/file_hash.h"

namespace kvtrie::llama {

// All parts of a model that is split into files NAME-00001-of-00003.gguf, given one of them; else the path alone.
std::vector<std::string> parts_of_model(const std::string& path);

// What cannot be asked of a llama_model: it is told by who loaded it.
struct ModelSource {
  std::vector<FileVersion> files;  // as they were when it was loaded
  llama_model_params params{};     // it was loaded with; pointers in it may be gone, so see below
  std::vector<ggml_backend_dev_t> devices;  // params.devices, without the NULL
  std::vector<float> split;        // params.tensor_split: parts of the model on each device
  std::string overrides;           // text of params.kv_overrides and tensor_buft_overrides while they were there
};
// Throws std::system_error: a file is not there. Before the model is loaded, so that what is put in its place meanwhile
// is seen: a model whose files are others by the time of fingerprint() is refused. `devices_max`: llama_max_devices().
ModelSource describe_model(const std::vector<std::string>& paths, const llama_model_params& params,
                           std::size_t devices_max);

struct FingerprintOptions {
  std::string tenant;       // salt: pages are shared among equal ones only
  std::string hash_memory;  // folder for hashes of model files; empty: none
};

using Fields = std::vector<std::pair<std::string, std::string>>;

// Whether positions of contexts with so many tokens in a sequence are made with the model's factors for long ones, where
// it has two kinds (longrope). 0: as many as it was trained with.
bool long_positions(const Calls& calls, const llama_model* model, std::uint32_t tokens);

// Throws std::system_error: a file of the model cannot be read; std::runtime_error: it is another one by now.
Fields fingerprint(const Calls& calls, const ModelSource& source, const llama_context* context,
                   const llama_context_params& params, const FingerprintOptions& options);

// Empty, or why pages of a model that was loaded so, or of contexts that are made so of it, cannot be shared. Before a
// context is made: one that is refused later has used what is in its parameters (samplers can be used once).
std::string reason_not_to_share(const ModelSource& source);
std::string reason_not_to_share(const Calls& calls, const llama_model* model, const llama_context_params& params);

}  // namespace kvtrie::llama
