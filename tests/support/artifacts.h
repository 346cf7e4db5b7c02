// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a failing end-to-end test leaves behind, so that the failure can be looked into (docs/dumps.md): a folder of the
// test's name below KVTRIE_ARTIFACTS, else below the build tree's tests/artifacts, with
//
//   cache/           the cache's segment and pool when it failed
//   alone/, shared/  debug dumps of the same computation without what others have cached, and with it
//
// The first failure of a test counts; what an earlier run of it left is removed.
#pragma once

#include <string>

#include "tests/support/temporary_cache.h"

namespace kvtrie::test {

class Artifact {
 public:
  // Of the test that runs.
  Artifact();

  const std::string& path() const { return path_; }
  std::string alone() const { return path_ + "/alone"; }
  std::string shared() const { return path_ + "/shared"; }
  // Before anything else is done with the cache.
  void keep(const TemporaryCache& cache) const;
  // For the failure's text: the first page of the dumps in shared() that is another one in alone(), by number, place
  // and part, and where all this is.
  std::string says() const;

 private:
  std::string path_;
};

// Of two folders with dumps "after" the same computations: what differs first between a dump of `shared` and the one of
// `alone` with the same tokens, as `kvtrie diff-dumps` says it, and the command. Empty: nothing in any.
std::string first_page_that_differs(const std::string& alone, const std::string& shared);

}  // namespace kvtrie::test
