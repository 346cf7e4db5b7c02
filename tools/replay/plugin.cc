// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/plugin.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <chrono>
#include <thread>

namespace kvtrie::replay {
namespace {

constexpr auto kPatience = std::chrono::seconds(15);
constexpr auto kAttachAgainAfter = std::chrono::milliseconds(5);

}  // namespace

Plugin::Plugin(const std::string& path) : library_(::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
  if (library_ == nullptr) {
    throw PluginError(fmt::format("plugin: {}; give --plugin PATH", ::dlerror()));
  }
  const auto get_api =
      reinterpret_cast<decltype(&::kvtrie_get_api)>(::dlsym(library_, "kvtrie_get_api"));
  api_ = get_api == nullptr ? nullptr : get_api(KVTRIE_API_VERSION);
  if (api_ == nullptr || api_->size < sizeof(kvtrie_api)) {
    ::dlclose(library_);
    throw PluginError(fmt::format("plugin {}: does not know version {} of the interface", path,
                                  KVTRIE_API_VERSION));
  }
}

Plugin::~Plugin() { ::dlclose(library_); }

void Plugin::expect(kvtrie_code code, const char* call) const {
  if (code != KVTRIE_OK) fail(code, call);
}

void Plugin::fail(kvtrie_code code, const char* call) const {
  throw PluginError(fmt::format("{}: {}: {}", call, api_->code_name(code), api_->last_error()));
}

Attachment::Attachment(const Plugin& plugin, const std::string& cache, const std::string& directory,
                       const std::string& name, bool patient)
    : plugin_(plugin) {
  kvtrie_attach_options options{};
  options.size = sizeof options;
  options.cache = cache.c_str();
  options.directory = directory.c_str();
  options.name = name.c_str();
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    const kvtrie_code code = plugin_->attach(&options, &worker_);
    if (code == KVTRIE_OK) return;
    const bool passing = code == KVTRIE_E_NO_COORDINATOR || code == KVTRIE_E_FULL;
    if (!patient || !passing || std::chrono::steady_clock::now() > deadline) {
      plugin_.fail(code, "attach");
    }
    std::this_thread::sleep_for(kAttachAgainAfter);
  }
}

Attachment::~Attachment() { (void)plugin_->detach(worker_); }

}  // namespace kvtrie::replay
