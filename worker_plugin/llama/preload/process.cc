// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/preload/process.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <system_error>

namespace kvtrie::llama {
namespace {

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string default_hashes() {
  if (const std::string home = variable("XDG_CACHE_HOME"); !home.empty()) return home + "/kvtrie";
  if (const std::string home = variable("HOME"); !home.empty()) return home + "/.cache/kvtrie";
  return {};
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}

std::string report_of(const TrackedContext& context) {
  std::string out = "{\"sharing\": ";
  out += context.shared() != nullptr && context.reason().empty() ? "true" : "false";
  if (!context.reason().empty()) out += ", \"reason\": " + quoted(context.reason());
  const BatchCounters& batches = context.batch_counters();
  const auto add = [&out](const char* name, std::uint64_t value) {
    out += std::string(", \"") + name + "\": " + std::to_string(value);
  };
  add("batches", batches.batches);
  add("batches_passed", batches.batches_passed);
  add("batches_spared", batches.batches_spared);
  add("batches_ahead", batches.batches_ahead);
  add("tokens_given", batches.tokens_given);
  add("tokens_seen", batches.tokens_seen);
  if (const SharedContext* shared = context.shared()) {
    for (const auto& [name, value] : list(shared->counters()))
      add(name, value);
    if (!shared->last_failure().empty()) out += ", \"last_failure\": " + quoted(shared->last_failure());
  }
  return out + "}";
}

}  // namespace

thread_local int Inside::depth_ = 0;

PreloadSettings settings_from_environment() {
  PreloadSettings settings;
  settings.cache = variable("KVTRIE_CACHE");
  settings.directory = variable("KVTRIE_DIR");
  settings.tenant = variable("KVTRIE_TENANT");
  settings.unify = variable("KVTRIE_LLAMA_UNIFY") == "1";
  settings.wait = variable("KVTRIE_LLAMA_WAIT");
  if (settings.wait.empty()) settings.wait = "auto";
  settings.hashes = std::getenv("KVTRIE_LLAMA_HASHES") != nullptr ? variable("KVTRIE_LLAMA_HASHES") : default_hashes();
  settings.report = variable("KVTRIE_LLAMA_REPORT");
  if (const std::size_t at = settings.report.find("%p"); at != std::string::npos) {
    settings.report.replace(at, 2, std::to_string(::getpid()));
  }
  return settings;
}

namespace {
std::atomic<Process*> the_process{nullptr};
}

// Never destroyed: a program's threads may still be inside llama.cpp when it ends.
Process& Process::get() {
  static Process* const process = [] {
    auto* const made = new Process;
    the_process = made;
    return made;
  }();
  return *process;
}

Process* Process::existing() { return the_process; }

Process::Process() : settings_(settings_from_environment()) {
  const LoadedLibrary library = find_loaded_llama(reinterpret_cast<const void*>(&settings_from_environment));
  const auto find = [&](const char* name, auto& call) {
    call = reinterpret_cast<std::remove_reference_t<decltype(call)>>(
        library.handle == nullptr ? nullptr : ::dlsym(library.handle, name));
  };
#define KVTRIE_LLAMA_FIND(name) find(#name, real_.name);
  KVTRIE_LLAMA_INTERPOSED(KVTRIE_LLAMA_FIND)
#undef KVTRIE_LLAMA_FIND
  if (settings_.cache.empty()) return;
  std::string missing;
  if (!library.problem.empty()) {
    say_once(library.problem);
  } else if (!find_calls(library.handle, calls_, missing)) {
    say_once(library.path + " has no " + missing + ": not the llama.cpp that this was built for");
  } else if (const std::string version = calls_.llama_version(); version != KVTRIE_LLAMA_API) {
    say_once(library.path + " is llama.cpp " + version + ", and this was built for " KVTRIE_LLAMA_API);
  } else {
    on_ = true;
  }
}

void Process::say_once(const std::string& what) {
  if (!said_.insert(what).second) return;
  std::fprintf(stderr, "kvtrie: prefixes are not shared: %s\n", what.c_str());
}

void Process::add_model(const llama_model* model, const std::vector<std::string>& paths,
                        const llama_model_params& params) {
  const std::lock_guard lock(making_);
  models_[model] = describe_model(paths, params);
}

void Process::remove_model(const llama_model* model) {
  const std::lock_guard lock(making_);
  models_.erase(model);
}

SharedCache* Process::cache() {
  if (!cache_) cache_.emplace(settings_.cache, settings_.directory, std::string());
  return &*cache_;
}

// Throws where it cannot be shared, and then there is no context.
llama_context* Process::share_context(llama_model* model, const llama_context_params& params) {
  const auto source = models_.find(model);
  if (source == models_.end()) throw Refused("a model that was not loaded from files");
  const llama_context_params wanted = shareable_params(params, settings_.unify);
  const WaitSettings wait{.mode = wait_mode(settings_.wait)};
  SharedCache* const cache = this->cache();
  llama_context* const context = real_.llama_init_from_model(model, wanted);
  if (context == nullptr) return nullptr;
  try {
    auto tracked = std::make_unique<TrackedContext>(real_, calls_, context);
    tracked->sequences_asked = wanted.n_seq_max - 1;
    auto shared = std::make_unique<SharedContext>(
        *cache, calls_, context, wanted, source->second,
        FingerprintOptions{.tenant = settings_.tenant, .hash_memory = settings_.hashes});
    shared->set_wait(wait);
    tracked->share(std::move(shared));
    const std::lock_guard lock(mutex_);
    contexts_[context] = std::move(tracked);
  } catch (...) {
    real_.llama_free(context);
    throw;
  }
  return context;
}

llama_context* Process::make_context(llama_model* model, const llama_context_params& params) {
  const std::lock_guard lock(making_);
  std::string reason;
  try {
    if (llama_context* const context = share_context(model, params)) return context;
    reason = "llama.cpp makes no context with one sequence id more";
  } catch (const std::exception& error) {
    reason = error.what();
  }
  say_once(reason);
  llama_context* const context = real_.llama_init_from_model(model, params);
  if (context != nullptr) {
    auto tracked = std::make_unique<TrackedContext>(real_, calls_, context);
    tracked->stop(reason);
    const std::lock_guard contexts_lock(mutex_);
    contexts_[context] = std::move(tracked);
  }
  return context;
}

void Process::remove_context(const llama_context* context) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = contexts_.find(context);
    if (found == contexts_.end()) return;
    ended_.push_back(report_of(*found->second));
    contexts_.erase(found);
  }
  write_report();
}

TrackedContext* Process::find(const llama_context* context) {
  const std::lock_guard lock(mutex_);
  const auto found = contexts_.find(context);
  return found == contexts_.end() ? nullptr : found->second.get();
}

TrackedContext* Process::find(llama_memory_t memory) {
  const std::lock_guard lock(mutex_);
  for (const auto& [context, tracked] : contexts_) {
    if (memory != nullptr && tracked->memory() == memory) return tracked.get();
  }
  return nullptr;
}

void Process::write_report() {
  if (settings_.report.empty() || !on_) return;
  const std::lock_guard lock(mutex_);
  const std::string temporary = settings_.report + ".new";
  std::FILE* const file = std::fopen(temporary.c_str(), "we");
  if (file == nullptr) return;
  std::fprintf(file, "{\"pid\": %d, \"contexts\": [", static_cast<int>(::getpid()));
  const char* between = "";
  const auto put = [&](const std::string& report) {
    std::fprintf(file, "%s\n%s", between, report.c_str());
    between = ",";
  };
  for (const std::string& report : ended_)
    put(report);
  for (const auto& [context, tracked] : contexts_)
    put(report_of(*tracked));
  std::fprintf(file, "]}\n");
  if (std::fclose(file) == 0) (void)std::rename(temporary.c_str(), settings_.report.c_str());
}

}  // namespace kvtrie::llama
