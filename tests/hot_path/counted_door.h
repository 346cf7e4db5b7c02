// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The one symbol that libkvtrie_worker_counted.so has beside those of the plugin as it is shipped:
// an attachment to a segment that the program itself made, with a hash secret that is always the
// same.
#pragma once

#include "worker_plugin/attach_client.h"
#include "worker_plugin/kvtrie.h"

extern "C" __attribute__((visibility("default"))) kvtrie_code kvtrie_attach_counted(
    kvtrie::Attachment& grant, kvtrie_worker* worker);
