// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How a cache looks after it was used for long.
#pragma once

#include "shm/segment.h"

namespace kvtrie::bench {

// Over all Live pages: how many on average stand one behind the other, each the child of the page before it. 0 when
// there are none. Each page is looked at once, so beside others that write it is about right.
double mean_run_length(const Segment& segment);

}  // namespace kvtrie::bench
