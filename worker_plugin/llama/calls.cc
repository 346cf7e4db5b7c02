// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/calls.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <vector>

namespace kvtrie::llama {
namespace {

int add_name(dl_phdr_info* info, std::size_t, void* names) {
  if (info->dlpi_name != nullptr && info->dlpi_name[0] != '\0') {
    static_cast<std::vector<std::string>*>(names)->emplace_back(info->dlpi_name);
  }
  return 0;
}

}  // namespace

const void* object_of(const void* address) {
  Dl_info info{};
  return ::dladdr(address, &info) != 0 ? info.dli_fbase : nullptr;
}

std::vector<LoadedCopy> find_loaded_copies(const void* not_in) {
  // Names first: dlopen takes the loader's lock, which the walk holds.
  std::vector<std::string> names;
  ::dl_iterate_phdr(&add_name, &names);
  std::vector<LoadedCopy> found;
  const void* const self = object_of(not_in);
  for (const std::string& name : names) {
    void* const handle = ::dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) continue;
    // dlsym looks in what the object depends on as well; it counts only where it is defined.
    const void* const decode = ::dlsym(handle, "llama_decode");
    const void* const object = decode == nullptr ? nullptr : object_of(decode);
    Dl_info info{};
    const bool defined_here = object != nullptr && ::dladdr(decode, &info) != 0 && name == info.dli_fname;
    if (defined_here && object != self && std::ranges::find(found, object, &LoadedCopy::object) == found.end()) {
      found.push_back({handle, name, object});
    } else {
      ::dlclose(handle);
    }
  }
  return found;
}

LoadedLibrary find_loaded_llama(const void* not_in) {
  const std::vector<LoadedCopy> copies = find_loaded_copies(not_in);
  if (copies.empty()) return {nullptr, {}, "no libllama is loaded"};
  LoadedLibrary found{copies[0].handle, copies[0].path, {}};
  if (copies.size() > 1) {
    found.problem = "two copies of libllama are loaded: " + copies[0].path + " and " + copies[1].path;
  }
  return found;
}

bool find_calls(void* handle, Calls& calls, std::string& missing) {
  const auto find = [&](const char* name, auto& call) {
    call = reinterpret_cast<std::remove_reference_t<decltype(call)>>(::dlsym(handle, name));
    if (call == nullptr && missing.empty()) missing = name;
  };
#define KVTRIE_LLAMA_FIND(name) find(#name, calls.name);
  KVTRIE_LLAMA_CALLS(KVTRIE_LLAMA_FIND)
#undef KVTRIE_LLAMA_FIND
  return missing.empty();
}

}  // namespace kvtrie::llama
