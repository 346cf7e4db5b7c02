// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/tools/kvtrie/json_schema.h"

#include <algorithm>
#include <fstream>
#include <regex>
#include <stdexcept>

namespace kvtrie::test {
namespace {

using inspect::Json;

bool is_of_type(const Json& value, const std::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "integer") return value.is_number_integer();
  if (type == "number") return value.is_number();
  throw std::runtime_error("no such type: " + type);
}

class Checker {
 public:
  explicit Checker(const Json& root) : root_(root) {}

  void check(const Json& schema, const Json& value, const std::string& at) {
    for (const auto& [keyword, rule] : schema.items()) check_keyword(keyword, rule, value, at);
    if (value.is_object() && !schema.contains("$ref")) check_keys_known(schema, value, at);
  }

  std::vector<std::string> problems;

 private:
  void note(const std::string& at, const std::string& what) { problems.push_back(at + ": " + what); }

  void check_keyword(const std::string& keyword, const Json& rule, const Json& value, const std::string& at) {
    static const std::vector<std::string> kSilent = {"$schema", "$defs", "title", "description", "additionalProperties"};
    if (keyword == "$ref") {
      check(root_.at(Json::json_pointer(rule.get<std::string>().substr(1))), value, at);
    } else if (keyword == "type") {
      check_type(rule, value, at);
    } else if (keyword == "enum") {
      if (std::find(rule.begin(), rule.end(), value) == rule.end()) note(at, value.dump() + " is none of " + rule.dump());
    } else if (keyword == "required") {
      for (const auto& key : rule) {
        if (value.is_object() && !value.contains(key)) note(at, "has no " + key.get<std::string>());
      }
    } else if (keyword == "properties") {
      for (const auto& [key, of] : rule.items()) {
        if (value.is_object() && value.contains(key)) check(of, value[key], at + "/" + key);
      }
    } else if (keyword == "items") {
      for (std::size_t i = 0; value.is_array() && i < value.size(); ++i) check(rule, value[i], at + "/" + std::to_string(i));
    } else if (std::ranges::find(kSilent, keyword) == kSilent.end()) {
      check_limit(keyword, rule, value, at);
    }
  }

  void check_type(const Json& rule, const Json& value, const std::string& at) {
    const Json types = rule.is_array() ? rule : Json::array({rule});
    const bool fits = std::any_of(types.begin(), types.end(), [&](const Json& type) { return is_of_type(value, type); });
    if (!fits) note(at, value.dump() + " is not " + rule.dump());
  }

  void check_limit(const std::string& keyword, const Json& rule, const Json& value, const std::string& at) {
    bool good = true;
    if (keyword == "minimum") {
      good = !value.is_number() || value.get<double>() >= rule.get<double>();
    } else if (keyword == "minItems") {
      good = !value.is_array() || value.size() >= rule.get<std::size_t>();
    } else if (keyword == "maxItems") {
      good = !value.is_array() || value.size() <= rule.get<std::size_t>();
    } else if (keyword == "pattern") {
      good = !value.is_string() || std::regex_search(value.get<std::string>(), std::regex(rule.get<std::string>()));
    } else {
      throw std::runtime_error("this checker does not know the keyword " + keyword);
    }
    if (!good) note(at, value.dump() + " breaks " + keyword + " " + rule.dump());
  }

  void check_keys_known(const Json& schema, const Json& value, const std::string& at) {
    for (const auto& [key, of] : value.items()) {
      if (schema.contains("properties") && schema["properties"].contains(key)) continue;
      if (!schema.contains("additionalProperties")) {
        note(at, key + " is not in the schema");
      } else {
        check(schema["additionalProperties"], of, at + "/" + key);
      }
    }
  }

  const Json& root_;
};

}  // namespace

std::vector<std::string> schema_problems(const Json& schema, const Json& document) {
  Checker checker(schema);
  checker.check(schema, document, "");
  return checker.problems;
}

Json load_schema(const std::string& name) {
  const std::string path = std::string(KVTRIE_SOURCE_DIR) + "/docs/json-schema/" + name + ".json";
  std::ifstream file(path);
  if (!file) throw std::runtime_error("no schema " + path);
  return Json::parse(file);
}

}  // namespace kvtrie::test
