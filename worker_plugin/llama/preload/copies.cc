// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/preload/copies.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>

namespace kvtrie::llama {
namespace {

const void* self() { return reinterpret_cast<const void*>(&self); }

int note_loads(dl_phdr_info* info, std::size_t, void* loads) {
  *static_cast<unsigned long long*>(loads) = info->dlpi_adds;
  return 1;
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
  unsigned long long loads = 0;
  (void)::dl_iterate_phdr(&note_loads, &loads);
  const std::lock_guard lock(mutex_);
  if (loads == loads_) return {};
  loads_ = loads;
  std::vector<std::string> paths;
  for (LoadedCopy& loaded : find_loaded_copies(self())) {
    const bool known = std::ranges::any_of(copies_, [&](const auto& c) { return c->loaded.object == loaded.object; });
    if (known) continue;
    paths.push_back(loaded.path);
    const Functions functions = functions_of(loaded.handle);
    copies_.push_back(std::make_unique<const Copy>(Copy{std::move(loaded), functions}));
  }
  if (first_ == &none_ && !copies_.empty()) first_ = copies_[0].get();
  if (!paths.empty()) by_caller_.clear();
  count_.store(copies_.size(), std::memory_order_release);
  return paths;
}

// NULL: the object depends on no libllama.
const Copy* Copies::find(const void* object, const char* path) const {
  const auto at = [this](const void* base) -> const Copy* {
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
  Dl_info info{};
  if (::dladdr(caller, &info) == 0) return first();
  const std::lock_guard lock(mutex_);
  const Copy*& known = by_caller_[info.dli_fbase];
  if (known == nullptr) known = find(info.dli_fbase, info.dli_fname);
  if (known == nullptr) known = &first();
  return *known;
}

}  // namespace kvtrie::llama
