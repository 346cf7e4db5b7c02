// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The plugin, loaded as an engine loads it: dlopen, one symbol, a table of calls. And its answers
// as exceptions: a replay does not go on after a code that it did not expect.
#pragma once

#include <stdexcept>
#include <string>

#include "worker_plugin/kvtrie.h"

namespace kvtrie::replay {

class PluginError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Plugin {
 public:
  // Throws PluginError.
  explicit Plugin(const std::string& path);
  Plugin(const Plugin&) = delete;
  Plugin& operator=(const Plugin&) = delete;
  ~Plugin();

  const kvtrie_api* operator->() const { return api_; }
  // Throws when `code` is not OK: "begin: stale: ...".
  void expect(kvtrie_code code, const char* call) const;
  [[noreturn]] void fail(kvtrie_code code, const char* call) const;

 private:
  void* library_ = nullptr;
  const kvtrie_api* api_ = nullptr;
};

// This process's place in a cache; given back at the end.
class Attachment {
 public:
  // Throws PluginError. With `patient`, a coordinator that is being started again, or a full table
  // of workers whose dead are being cleared away, is waited for.
  Attachment(const Plugin& plugin, const std::string& cache, const std::string& directory,
             const std::string& name, bool patient);
  Attachment(const Attachment&) = delete;
  Attachment& operator=(const Attachment&) = delete;
  ~Attachment();

  [[nodiscard]] kvtrie_worker worker() const { return worker_; }

 private:
  const Plugin& plugin_;
  kvtrie_worker worker_{};
};

}  // namespace kvtrie::replay
