// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/preload/copies.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>

namespace kvtrie::llama {
namespace {

const void* self() { return reinterpret_cast<const void*>(&self); }

// How many objects were loaded and unloaded so far: while it stays, an address is in the same object.
unsigned long long loader_changes() {
  unsigned long long changes = 0;
  (void)::dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* out) {
        *static_cast<unsigned long long*>(out) = info->dlpi_adds + info->dlpi_subs;
        return 1;
      },
      &changes);
  return changes;
}

Functions functions_of(void* handle) {
  Functions functions{};
  const auto find = [&](Place place, const char* symbol) {
    functions[static_cast<std::size_t>(place)] = reinterpret_cast<Function>(::dlsym(handle, symbol));
  };
#define KVTRIE_LLAMA_FIND(name) find(Place::name, #name);
#define KVTRIE_LLAMA_FIND_CPP(name, symbol) find(Place::name, #symbol);
  KVTRIE_LLAMA_INTERPOSED(KVTRIE_LLAMA_FIND)
  KVTRIE_LLAMA_INTERPOSED_CPP(KVTRIE_LLAMA_FIND_CPP)
#undef KVTRIE_LLAMA_FIND
#undef KVTRIE_LLAMA_FIND_CPP
  return functions;
}

}  // namespace

std::vector<std::string> Copies::look_again() {
  const unsigned long long changes = loader_changes();
  if (looked_at_.load(std::memory_order_acquire) == changes) return {};
  std::vector<std::unique_ptr<const Copy>> found;
  for (LoadedCopy& loaded : find_loaded_copies(self())) {
    const Functions functions = functions_of(loaded.handle);
    found.push_back(std::make_unique<const Copy>(Copy{std::move(loaded), functions}));
  }
  std::vector<std::string> paths;
  {
    const std::lock_guard lock(mutex_);
    for (auto& copy : found) {
      const auto same = [&](const auto& known) { return known->loaded.object == copy->loaded.object; };
      if (std::ranges::any_of(copies_, same)) continue;
      paths.push_back(copy->loaded.path);
      copies_.push_back(std::move(copy));
    }
    if (first_ == &none_ && !copies_.empty()) first_ = copies_[0].get();
    count_.store(copies_.size(), std::memory_order_release);
    looked_at_.store(changes, std::memory_order_release);
  }
  for (const auto& known : found) {
    if (known) (void)::dlclose(known->loaded.handle);
  }
  return paths;
}

// NULL: the object depends on no libllama.
const Copy* Copies::find(const void* object, const char* path) {
  const auto at = [this](const void* base) -> const Copy* {
    const std::lock_guard lock(mutex_);
    for (const auto& copy : copies_) {
      if (copy->loaded.object == base) return copy.get();
    }
    return nullptr;
  };
  if (const Copy* own = at(object)) return own;
  void* const handle = path == nullptr ? nullptr : ::dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) return nullptr;
  const void* const decode = ::dlsym(handle, "llama_decode");
  const Copy* const found = decode == nullptr ? nullptr : at(object_of(decode));
  (void)::dlclose(handle);
  return found;
}

const Copy& Copies::of(const void* caller) {
  if (count() <= 1) return first();
  dl_find_object object{};
  if (::_dl_find_object(const_cast<void*>(caller), &object) != 0) return first();  // without the loader's lock
  const unsigned long long changes = loader_changes();
  {
    const std::lock_guard lock(mutex_);
    if (changes != callers_known_at_) by_caller_.clear();
    callers_known_at_ = changes;
    if (const auto known = by_caller_.find(object.dlfo_map_start); known != by_caller_.end()) return *known->second;
  }
  const Copy* const found = find(object.dlfo_map_start, object.dlfo_link_map->l_name);
  const Copy& copy = found != nullptr ? *found : first();
  const std::lock_guard lock(mutex_);
  if (callers_known_at_ == changes) by_caller_[object.dlfo_map_start] = &copy;
  return copy;
}

}  // namespace kvtrie::llama
