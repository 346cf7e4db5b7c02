// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/tools/kvtrie/json_schema.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "tools/kvtrie/command_line.h"

namespace kvtrie::test {
namespace {

using inspect::Json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

void collect_keys(const Json& schema, std::vector<std::string>& keys) {
  if (schema.is_array() || schema.is_object()) {
    for (const auto& [name, part] : schema.items()) {
      if (schema.is_object() && name == "properties") {
        for (const auto& [key, of] : part.items()) keys.push_back(key);
      }
      collect_keys(part, keys);
    }
  }
}

TEST(JsonSchemaTest, FindsEveryKindOfDifference) {
  const Json schema = Json::parse(R"({"type": "object", "required": ["a"], "properties": {
      "a": {"type": "integer", "minimum": 0}, "b": {"enum": ["x", "y"]}, "c": {"$ref": "#/$defs/pair"},
      "d": {"type": ["string", "null"], "pattern": "^0x"}},
      "$defs": {"pair": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}}})");
  const auto problems = [&](const char* text) { return schema_problems(schema, Json::parse(text)); };
  EXPECT_THAT(problems(R"({"a": 1, "b": "x", "c": [true, false], "d": null})"), IsEmpty());
  EXPECT_THAT(problems(R"({"a": -1})"), ElementsAre(HasSubstr("/a: -1 breaks minimum")));
  EXPECT_THAT(problems(R"({"a": 1.5})"), ElementsAre(HasSubstr("/a: 1.5 is not \"integer\"")));
  EXPECT_THAT(problems(R"({"b": "z"})"), ElementsAre(HasSubstr("has no a"), HasSubstr("none of")));
  EXPECT_THAT(problems(R"({"a": 1, "c": [true]})"), ElementsAre(HasSubstr("/c: [true] breaks minItems")));
  EXPECT_THAT(problems(R"({"a": 1, "c": [true, 1]})"), ElementsAre(HasSubstr("/c/1: 1 is not")));
  EXPECT_THAT(problems(R"({"a": 1, "d": "1"})"), ElementsAre(HasSubstr("breaks pattern")));
  EXPECT_THAT(problems(R"({"a": 1, "e": 1})"), ElementsAre(HasSubstr("e is not in the schema")));
}

TEST(JsonSchemaTest, EveryCommandHasOne) {
  const inspect::CommandLine line;
  for (const inspect::Command& command : line.commands) {
    EXPECT_NO_THROW(load_schema(command.app->get_name())) << command.app->get_name();
  }
}

TEST(JsonSchemaTest, TheDocumentNamesEveryKeyOfEveryCommand) {
  std::ifstream file(KVTRIE_SOURCE_DIR "/docs/kvtrie-json.md");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const inspect::CommandLine line;
  for (const inspect::Command& command : line.commands) {
    const std::string name = command.app->get_name();
    EXPECT_THAT(text, HasSubstr("\n## " + name + "\n"));
    std::vector<std::string> keys;
    collect_keys(load_schema(name), keys);
    for (const std::string& key : keys) EXPECT_THAT(text, HasSubstr("`" + key + "`")) << name;
  }
}

}  // namespace
}  // namespace kvtrie::test
