// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A cache name and a directory that no other test uses, and that are gone at the end: the objects
// in /dev/shm too.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>

#include "shm/shared_object.h"
#include "tests/shm/test_support.h"

namespace kvtrie::test {

class TemporaryCache {
 public:
  explicit TemporaryCache(const std::string& stem) : name_(unique_name("test-" + stem)) {
    std::string path = "/tmp/kvtrie-test.XXXXXX";
    if (::mkdtemp(path.data()) == nullptr) ADD_FAILURE() << "mkdtemp";
    directory_ = path;
  }
  TemporaryCache(const TemporaryCache&) = delete;
  TemporaryCache& operator=(const TemporaryCache&) = delete;
  ~TemporaryCache() {
    (void)remove_object(segment_object_name(name_));
    (void)remove_object(queue_object_name(name_));
    for (std::uint32_t plane = 0; plane < kPlanesMax; ++plane)
      (void)remove_object(pool_object_name(name_, plane));
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  const std::string& name() const { return name_; }
  const std::string& directory() const { return directory_; }
  std::string segment_path() const { return "/dev/shm/" + segment_object_name(name_); }
  std::string pool_path(std::uint32_t plane) const {
    return "/dev/shm/" + pool_object_name(name_, plane);
  }

 private:
  std::string name_;
  std::string directory_;
};

}  // namespace kvtrie::test
