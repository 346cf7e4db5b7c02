// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/preload/process.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

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
  add("states_restored", batches.states_restored);
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
  settings.dump = variable("KVTRIE_LLAMA_DUMP");
  settings.report = variable("KVTRIE_LLAMA_REPORT");
  if (const std::size_t at = settings.report.find("%p"); at != std::string::npos) {
    settings.report.replace(at, 2, std::to_string(::getpid()));
  }
  return settings;
}

namespace {
std::atomic<Process*> the_process{nullptr};
}

// Never destroyed: a program's threads may still be inside llama.cpp when it ends. Made without a lock, since making one
// asks the loader: its lock may be held by a thread whose library's constructor calls llama.cpp. The first one made stays.
Process& Process::get() noexcept {
  if (Process* const there = the_process.load(std::memory_order_acquire)) return *there;
  auto made = std::unique_ptr<Process>(new Process);
  Process* process = nullptr;
  return the_process.compare_exchange_strong(process, made.get()) ? *made.release() : *process;
}

Process* Process::existing() { return the_process; }

Process::Process() : settings_(settings_from_environment()), made_in_(::getpid()) {
  if (settings_.cache.empty()) return;
  const LoadedLibrary library = find_loaded_llama(reinterpret_cast<const void*>(&settings_from_environment));
  std::string missing;
  if (!library.problem.empty()) {
    say_once(library.problem);
    return;
  }
  const bool complete = find_calls(library.handle, calls_, missing);
  const std::string version = calls_.llama_version == nullptr ? "" : calls_.llama_version();
  if (!version.empty() && version != KVTRIE_LLAMA_API) {
    say_once(library.path + " is llama.cpp " + version + ", and this was built for " KVTRIE_LLAMA_API);
  } else if (!complete) {
    say_once(library.path + " has no " + missing + ": not the llama.cpp that this was built for");
  } else {
    on_ = true;
  }
  if (!on_ || settings_.dump.empty()) return;
  std::string problem;
  if (auto options = dump::parse_dump_options(settings_.dump, problem)) {
    dumper_.emplace(*std::move(options));
  } else {
    say_once("KVTRIE_LLAMA_DUMP: " + problem, "");
  }
}

// Copies that are loaded later come with models of their own.
const Copy& Process::copy_for(Place place, const void* caller) noexcept {
  using enum Place;
  const bool makes = place == llama_model_load_from_file || place == llama_load_model_from_file ||
                     place == llama_model_load_from_splits || place == llama_init_from_model ||
                     place == llama_new_context_with_model;
  try {
    for (const std::string& path : makes ? copies_.look_again() : std::vector<std::string>()) {
      if (on_) say_once("another copy of libllama is loaded, and what is computed with that one is its own: " + path);
    }
    return copies_.of(caller);
  } catch (const std::exception&) {  // no memory
    return copies_.first();
  }
}

void Process::say_once(const std::string& what, const char* of) {
  const std::lock_guard lock(saying_);
  if (!said_.insert(what).second) return;
  std::fprintf(stderr, "kvtrie: %s%s\n", of, what.c_str());
}

void Process::add_model(const llama_model* model, ModelSource source) noexcept {
  const std::lock_guard lock(making_);
  try {
    models_[model] = std::move(source);
  } catch (const std::exception&) {  // no memory: a model of nobody's files
  }
}

void Process::remove_model(const llama_model* model) noexcept {
  const std::lock_guard lock(making_);
  models_.erase(model);
  changed_.erase(model);
}

void Process::model_changes(const llama_model* model, const char* why) noexcept {
  const std::lock_guard making(making_);
  try {
    changed_[model] = why;
  } catch (const std::exception&) {
    models_.erase(model);  // not known, not shared
  }
  const std::lock_guard lock(mutex_);
  for (const auto& [context, tracked] : contexts_) {
    if (calls_.llama_get_model(context) != model) continue;
    const std::lock_guard inside(tracked->mutex);  // not while it computes
    tracked->stop(why);
  }
}

SharedCache* Process::cache() {
  if (!cache_) cache_.emplace(settings_.cache, settings_.directory, std::string());
  return &*cache_;
}

std::unique_ptr<TrackedContext> Process::track(llama_context* context) const {
  return std::make_unique<TrackedContext>(real_, calls_, context, &Process::say);
}

void Process::keep_context(llama_context* context, std::unique_ptr<TrackedContext> tracked) {
  const std::lock_guard lock(mutex_);
  contexts_[context] = std::move(tracked);
}

// Throws where it cannot be shared, and then there is no context.
llama_context* Process::share_context(llama_model* model, const llama_context_params& params) {
  const auto source = models_.find(model);
  if (source == models_.end()) throw Refused("a model that was not loaded from files");
  if (const auto changed = changed_.find(model); changed != changed_.end()) throw Refused(changed->second);
  if (const std::string reason = reason_not_to_share(source->second); !reason.empty()) throw Refused(reason);
  if (const std::string reason = reason_not_to_share(calls_, model, params); !reason.empty()) throw Refused(reason);
  const llama_context_params wanted = shareable_params(params, settings_.unify);
  const WaitSettings wait{.mode = wait_mode(settings_.wait)};
  SharedCache* const cache = this->cache();
  llama_context* const context = real_.llama_init_from_model(model, wanted);
  if (context == nullptr) return nullptr;
  try {
    const std::uint32_t sequences = wanted.n_seq_max - 1;
    // llama.cpp would have divided the context's tokens by the sequences.
    const std::uint32_t tokens = calls_.llama_n_ctx(context);
    const std::uint32_t own_tokens = params.kv_unified ? tokens : (tokens / sequences + 255) / 256 * 256;
    if (long_positions(calls_, model, tokens) != long_positions(calls_, model, own_tokens)) {
      throw Refused("with one KV cache for all sequences its model would take other factors for positions");
    }
    auto tracked = track(context);
    tracked->sequences_asked = sequences;
    tracked->unified_asked = params.kv_unified;
    auto shared = std::make_unique<SharedContext>(
        *cache, calls_, context, wanted, source->second,
        FingerprintOptions{.tenant = settings_.tenant, .hash_memory = settings_.hashes});
    shared->set_wait(wait);
    shared->set_say(&Process::say);
    if (dumper_) shared->set_dumps(&*dumper_, &Process::say_of_dumps);
    tracked->share(std::move(shared));
    keep_context(context, std::move(tracked));
  } catch (...) {
    real_.llama_free(context);
    throw;
  }
  return context;
}

llama_context* Process::make_context(llama_model* model, const llama_context_params& params) noexcept {
  const std::lock_guard lock(making_);
  std::string reason;
  try {
    if (llama_context* const context = share_context(model, params)) return context;
    reason = "llama.cpp makes no context with one sequence id more";
  } catch (const std::exception& error) {
    try {
      reason = error.what();
    } catch (const std::exception&) {  // no memory for the words
    }
  }
  llama_context* const context = real_.llama_init_from_model(model, params);
  try {
    say_once(reason);
    if (context == nullptr) return context;
    auto tracked = track(context);
    tracked->stop(reason);
    keep_context(context, std::move(tracked));
  } catch (const std::exception&) {  // then it is not in the report
  }
  return context;
}

void Process::remove_context(const llama_context* context) noexcept {
  std::unique_ptr<TrackedContext> ended;
  {
    const std::lock_guard lock(mutex_);
    const auto found = contexts_.find(context);
    if (found == contexts_.end()) return;
    ended = std::move(found->second);
    contexts_.erase(found);
    try {
      ended_.push_back(report_of(*ended));
    } catch (const std::exception&) {  // then it is not in the report
    }
  }
  ended.reset();
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

// Contexts that another thread is inside of are as they were when they could be asked last.
void Process::write_report() noexcept try {
  if (settings_.report.empty() || !on_ || ::getpid() != made_in_) return;
  const std::lock_guard lock(mutex_);
  std::string all;
  const auto put = [&all](const std::string& report) { all += (all.empty() ? "\n" : ",\n") + report; };
  for (const std::string& report : ended_)
    put(report);
  for (const auto& [context, tracked] : contexts_) {
    if (const std::unique_lock inside(tracked->mutex, std::try_to_lock); inside.owns_lock()) {
      tracked->last_report = report_of(*tracked);
    }
    put(tracked->last_report.empty() ? "{\"busy\": true}" : tracked->last_report);
  }
  const std::string temporary = settings_.report + ".new";
  std::FILE* const file = std::fopen(temporary.c_str(), "we");
  if (file == nullptr) return;
  std::fprintf(file, "{\"pid\": %d, \"contexts\": [%s]}\n", static_cast<int>(made_in_), all.c_str());
  if (std::fclose(file) == 0) (void)std::rename(temporary.c_str(), settings_.report.c_str());
} catch (const std::exception&) {  // a report less
}

}  // namespace kvtrie::llama
