// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/mix_calls.h"

#include <dlfcn.h>

namespace kvtrie::replay {
namespace {

void* symbol_of(void* library, const char* name) {
  void* symbol = library == nullptr ? nullptr : ::dlsym(library, name);
  if (symbol == nullptr) throw PluginError(fmt::format("plugin: has no {}", name));
  return symbol;
}

}  // namespace

DeviceCalls::DeviceCalls(const std::string& plugin) {
  // It is loaded already and stays so.
  void* library = ::dlopen(plugin.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
#define KVTRIE_MIX_NAME(name) \
  this->name = reinterpret_cast<decltype(&kvtrie_##name)>(symbol_of(library, "kvtrie_" #name));
  KVTRIE_MIX_DEVICE_CALLS(KVTRIE_MIX_NAME)
#undef KVTRIE_MIX_NAME
  ::dlclose(library);
}

void MixCalls::refuse(MixCall which, kvtrie_code code, Codes allowed) const {
  const std::string why = code == KVTRIE_OK ? "" : fmt::format(" ({})", plugin_->last_error());
  std::string expected;
  for (int may = KVTRIE_OK; may <= KVTRIE_E_FLUSHED; ++may) {
    const auto allowed_code = static_cast<kvtrie_code>(may);
    if (!allowed.has(allowed_code)) continue;
    expected += expected.empty() ? "" : ", ";
    expected += plugin_->code_name(allowed_code);
  }
  throw PluginError(fmt::format("{}: answered {}{} where it may answer: {}",
                                kMixCallNames[static_cast<std::size_t>(which)], plugin_->code_name(code), why,
                                expected));
}

}  // namespace kvtrie::replay
