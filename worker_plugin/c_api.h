// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The one way into kvtrie.h's calls beside kvtrie.h: an attachment whose segment and pools did not
// come over a coordinator's socket. For tests; not exported.
#pragma once

#include "worker_plugin/attach_client.h"
#include "worker_plugin/kvtrie.h"

namespace kvtrie {

// As kvtrie_attach. `address` is asked for namespaces that the segment does not have.
kvtrie_code attach_from_grant(Attachment grant, CoordinatorAddress address,
                              kvtrie_worker* worker) noexcept;

}  // namespace kvtrie
