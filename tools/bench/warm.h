// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Memory that a virtual machine leaves alone for a second or two is taken from it by some hosts, and given back at its
// next use after some 100 us: then a figure tells of the host and not of what is measured. Floors has a row of it.
#pragma once

#include <cstdint>

#include "tools/bench/spread.h"

namespace kvtrie::bench {

// Reads a byte of each page that this process has in memory, so that the host has it there, too. What is in no page
// stays so. About a millisecond for 100 MiB. Any thread.
void warm_memory();

// Microseconds to read one line of memory that nobody touched for `idle_seconds`.
Spread idle_lines_us(double idle_seconds, std::uint32_t lines);

}  // namespace kvtrie::bench
