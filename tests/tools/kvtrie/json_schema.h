// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Checks a document against a JSON Schema, for the keywords that docs/json-schema uses; another keyword is a problem, and
// so is a key that the schema does not name: every key must be documented.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/kvtrie/outcome.h"

namespace kvtrie::test {

// Each with the place in the document; empty: it fits.
std::vector<std::string> schema_problems(const inspect::Json& schema, const inspect::Json& document);

// docs/json-schema/NAME.json of the source tree.
inspect::Json load_schema(const std::string& name);

}  // namespace kvtrie::test
