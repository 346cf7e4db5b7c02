// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/fingerprint.h"

#include <dlfcn.h>
#include <xxhash.h>

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <regex>
#include <utility>

#include "worker_plugin/llama/file_hash.h"

namespace kvtrie::llama {
namespace {

__attribute__((format(printf, 1, 2))) std::string text(const char* format, ...) {
  char buffer[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

std::string short_hash(const std::string& of) { return text("%016" PRIx64, XXH3_64bits(of.data(), of.size())); }

std::string object_path(const void* address) {
  Dl_info info{};
  return ::dladdr(address, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

// "libggml-cpu-haswell.so:0123456789abcdef": libraries do not change while a process has them.
std::string library(const void* address) {
  static std::mutex mutex;
  static std::map<std::string, std::string> known;
  const std::string path = object_path(address);
  const std::lock_guard lock(mutex);
  std::string& name = known[path];
  if (name.empty()) {
    const std::size_t slash = path.rfind('/');
    name = path.substr(slash == std::string::npos ? 0 : slash + 1);
    if (!path.empty()) name += ":" + hash_of_files(std::vector<std::string>{path}, {}).substr(0, 16);
  }
  return name;
}

std::string engine(const Calls& calls) {
  return std::string(calls.llama_version()) + " " + library(reinterpret_cast<const void*>(calls.llama_decode)) + " " +
         library(reinterpret_cast<const void*>(calls.ggml_type_name));
}

// Every registered back end, since any of them may compute a part; the CPU's is one library for each kind of CPU.
std::string back_ends(const Calls& calls) {
  std::string all;
  for (std::size_t i = 0; i < calls.ggml_backend_reg_count(); ++i) {
    const ggml_backend_reg_t reg = calls.ggml_backend_reg_get(i);
    all += (all.empty() ? "" : " ") + std::string(calls.ggml_backend_reg_name(reg)) + "=" + library(reg);
  }
  return all.size() <= 160 ? all : all.substr(0, 120) + "... " + short_hash(all);
}

std::string meta(const Calls& calls, const llama_model* model, const char* key) {
  char buffer[64] = "";
  return calls.llama_model_meta_val_str(model, key, buffer, sizeof buffer) >= 0 ? buffer : "";
}

std::string loaded_with(const Calls& calls, const ModelSource& source) {
  std::string devices;
  for (const ggml_backend_dev_t device : source.devices)
    devices += std::string(calls.ggml_backend_dev_name(device)) + " ";
  const llama_model_params& params = source.params;
  std::string all = text("gpu_layers=%d split=%d main_gpu=%d extra_bufts=%d", params.n_gpu_layers,
                         static_cast<int>(params.split_mode), params.main_gpu, params.use_extra_bufts ? 1 : 0);
  if (params.no_host) all += " no_host";
  // Which device computes what, and devices of another kind compute other last bits. All 0 is as none.
  std::string split;
  if (std::ranges::any_of(source.split, [](float part) { return part != 0; })) {
    for (const float part : source.split) split += text("%a,", static_cast<double>(part));
  }
  const std::string rest = source.overrides + devices + split;
  return rest.empty() ? all : all + " " + short_hash(rest);
}

std::string positions(const Calls& calls, const ModelSource& source, const llama_context* context,
                      const llama_context_params& params) {
  const std::uint32_t tokens = calls.llama_n_ctx_seq(context);
  std::string kind = long_positions(calls, calls.llama_get_model(context), tokens) ? "long" : "short";
  // Where the border was moved in a way that the model's metadata do not show.
  if (source.overrides.find(".rope.scaling.original_context_length") != std::string::npos) kind = std::to_string(tokens);
  // Exact: %a. 0 and negative numbers stand for the model's own values.
  return text("%s %d %a %a %a %a %a %a %u", kind.c_str(), static_cast<int>(params.rope_scaling_type),
              static_cast<double>(params.rope_freq_base), static_cast<double>(params.rope_freq_scale),
              static_cast<double>(params.yarn_ext_factor), static_cast<double>(params.yarn_attn_factor),
              static_cast<double>(params.yarn_beta_fast), static_cast<double>(params.yarn_beta_slow),
              params.yarn_orig_ctx);
}

// The engine turns quantized K and V before it stores them, unless this variable of its own says no.
bool turns(const Calls& calls, const llama_context_params& params) {
  const char* const off = std::getenv("LLAMA_ATTN_ROT_DISABLE");
  const bool quantized = calls.ggml_is_quantized(params.type_k) || calls.ggml_is_quantized(params.type_v);
  return quantized && (off == nullptr || std::atoi(off) == 0);
}

void add_override(std::string& all, const llama_model_kv_override& one) {
  all += one.key;
  switch (one.tag) {
    case LLAMA_KV_OVERRIDE_TYPE_INT:
      all += text("=i%" PRId64 ";", one.val_i64);
      break;
    case LLAMA_KV_OVERRIDE_TYPE_FLOAT:
      all += text("=f%a;", one.val_f64);
      break;
    case LLAMA_KV_OVERRIDE_TYPE_BOOL:
      all += one.val_bool ? "=true;" : "=false;";
      break;
    case LLAMA_KV_OVERRIDE_TYPE_STR:
      all += text("=s%s;", one.val_str);
      break;
  }
}

}  // namespace

std::vector<std::string> parts_of_model(const std::string& path) {
  static const std::regex pattern("(.*)-([0-9]{5})-of-([0-9]{5})\\.gguf");
  std::smatch match;
  if (!std::regex_match(path, match, pattern)) return {path};
  std::vector<std::string> parts;
  for (int part = 1, parts_count = std::atoi(match[3].str().c_str()); part <= parts_count; ++part) {
    char number[16];
    std::snprintf(number, sizeof number, "-%05d-of-", part);
    parts.push_back(match[1].str() + number + match[3].str() + ".gguf");
  }
  return parts;
}

ModelSource describe_model(const std::vector<std::string>& paths, const llama_model_params& params,
                           std::size_t devices_max) {
  ModelSource source{{}, params, {}, {}, {}};
  if (params.tensor_split != nullptr) source.split.assign(params.tensor_split, params.tensor_split + devices_max);
  for (const ggml_backend_dev_t* device = params.devices; device != nullptr && *device != nullptr; ++device)
    source.devices.push_back(*device);
  for (const std::string& path : paths)
    source.files.push_back(file_version(path));
  if (params.kv_overrides != nullptr) {
    for (const auto* one = params.kv_overrides; one->key[0] != '\0'; ++one)
      add_override(source.overrides, *one);
  }
  if (params.tensor_buft_overrides != nullptr) {
    for (const auto* one = params.tensor_buft_overrides; one->pattern != nullptr; ++one) {
      source.overrides += std::string("buffer of ") + one->pattern + ";";
    }
  }
  return source;
}

bool long_positions(const Calls& calls, const llama_model* model, std::uint32_t tokens) {
  const std::string key = meta(calls, model, "general.architecture") + ".rope.scaling.original_context_length";
  const std::string given = meta(calls, model, key.c_str());
  const auto trained = static_cast<std::uint32_t>(calls.llama_model_n_ctx_train(model));
  if (tokens == 0) tokens = trained;
  return tokens > (given.empty() ? trained : static_cast<std::uint32_t>(std::strtoul(given.c_str(), nullptr, 10)));
}

Fields fingerprint(const Calls& calls, const ModelSource& source, const llama_context* context,
                   const llama_context_params& params, const FingerprintOptions& options) {
  const llama_model* const model = calls.llama_get_model(context);
  Fields fields = {
      {"engine", "llama.cpp " + engine(calls)},
      {"model", meta(calls, model, "general.architecture") + " " + text("%" PRIu64 " ", calls.llama_model_size(model)) +
                    hash_of_files(source.files, options.hash_memory)},
      {"tensors", text("ftype %d", static_cast<int>(calls.llama_model_ftype(model)))},
      {"loaded", loaded_with(calls, source)},
      {"back_ends", back_ends(calls)},
      {"kv", text("%s %s unified offload=%d turned=%d", calls.ggml_type_name(params.type_k),
                  calls.ggml_type_name(params.type_v), params.offload_kqv ? 1 : 0, turns(calls, params) ? 1 : 0)},
      {"attention",
       text("flash=%d type=%d", static_cast<int>(params.flash_attn_type), static_cast<int>(params.attention_type))},
      {"positions", positions(calls, source, context, params)},
  };
  if (!options.tenant.empty()) fields.emplace_back("tenant", options.tenant);
  return fields;
}

std::string reason_not_to_share(const ModelSource& source) {
  const bool weights = !source.params.no_alloc && !source.params.vocab_only;
  return weights ? "" : "its model was loaded without weights and computes nothing (to measure memory? Of it alone)";
}

std::string reason_not_to_share(const Calls& calls, const llama_model* model, const llama_context_params& params) {
  if (calls.llama_model_is_recurrent(model) || calls.llama_model_is_hybrid(model)) {
    return "its model keeps a recurrent state, which is no pages";
  }
  if (calls.llama_model_is_diffusion(model)) return "its model is a diffusion model";
  if (calls.llama_model_has_encoder(model) || !calls.llama_model_has_decoder(model)) return "its model has an encoder";
  if (calls.llama_model_n_swa(model) > 0) return "its model has layers with a sliding window, whose cells disappear";
  const llama_rope_type rope = calls.llama_model_rope_type(model);
  if (rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE || rope == LLAMA_ROPE_TYPE_VISION) {
    return "its model has several positions for a token";
  }
  if (params.embeddings || params.attention_type == LLAMA_ATTENTION_TYPE_NON_CAUSAL) {
    return "it computes embeddings, for which every token counts";
  }
  if (params.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT || params.ctx_other != nullptr)
    return "it belongs to another context";
  if (params.cb_eval != nullptr) return "it watches what is computed, so nothing may be left out";
  if (params.n_samplers != 0) return "it samples in the back end";
  return {};
}

}  // namespace kvtrie::llama
