// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Private memory of a victim that is stepped: from a fixed place, so that two victims of one
// scenario run through the same instructions, whatever the heap of the process looked like that
// forked them. Replaces operator new of the program that links it.
#pragma once

namespace kvtrie::test {

// From here on and in this process; what was allocated before stays where it is.
void use_arena();

}  // namespace kvtrie::test
