// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/hot_path/counted_door.h"

#include <utility>

#include "worker_plugin/c_api.h"

kvtrie_code kvtrie_attach_counted(kvtrie::Attachment& grant, kvtrie_worker* worker) {
  return kvtrie::attach_from_grant(std::move(grant), {"/nonexistent", "counted", 100}, worker);
}
