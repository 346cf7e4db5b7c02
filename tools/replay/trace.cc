// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
#include "tools/replay/trace.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <istream>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <unordered_map>
#include <utility>

#include "tools/replay/random.h"

namespace kvtrie::replay {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kLengthMax = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint64_t kNumberMax = std::numeric_limits<std::uint64_t>::max();

// What an offending value looks like in a message; long ones are cut.
std::string shown(const Json& value) {
  constexpr std::size_t kShownMax = 40;
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > kShownMax) text = text.substr(0, kShownMax) + "...";
  return text;
}

// Parses one line. The error names no line: the caller does.
class LineParser {
 public:
  // Empty: an error, to be read from error().
  std::optional<Request> parse(const std::string& line) {
    const Json json = Json::parse(line, nullptr, false);
    if (json.is_discarded()) {
      fail(
          "is not JSON; expected one object {\"timestamp\": .., \"input_length\": .., "
          "\"output_length\": .., \"hash_ids\": [..]} a line");
      return std::nullopt;
    }
    if (!json.is_object()) {
      fail("is " + std::string(json.type_name()) + ", expected a JSON object");
      return std::nullopt;
    }
    Request request;
    request.timestamp_ms = number(json, "timestamp", kNumberMax);
    request.input_length = static_cast<std::uint32_t>(number(json, "input_length", kLengthMax));
    request.output_length = static_cast<std::uint32_t>(number(json, "output_length", kLengthMax));
    read_ids(json, request);
    if (!error_.empty()) return std::nullopt;
    return request;
  }

  [[nodiscard]] const std::string& error() const { return error_; }

 private:
  // The first error is the one that is reported.
  void fail(std::string message) {
    if (error_.empty()) error_ = std::move(message);
  }

  const Json* find(const Json& json, const char* key) {
    const auto found = json.find(key);
    if (found == json.end()) {
      fail(std::string("has no \"") + key + "\"");
      return nullptr;
    }
    return &*found;
  }

  std::uint64_t number(const Json& json, const char* key, std::uint64_t max) {
    const Json* value = find(json, key);
    if (value == nullptr) return 0;
    if (!value->is_number_unsigned() || value->get<std::uint64_t>() > max) {
      fail(std::string("\"") + key + "\" is " + shown(*value) + ", expected an integer from 0 to " +
           std::to_string(max));
      return 0;
    }
    return value->get<std::uint64_t>();
  }

  void read_ids(const Json& json, Request& request) {
    const Json* ids = find(json, "hash_ids");
    if (ids == nullptr) return;
    if (!ids->is_array()) {
      fail("\"hash_ids\" is " + shown(*ids) + ", expected an array of integers");
      return;
    }
    request.hash_ids.reserve(ids->size());
    for (const Json& id : *ids) {
      if (!id.is_number_unsigned()) {
        fail("\"hash_ids\" holds " + shown(id) + " at position " +
             std::to_string(request.hash_ids.size()) + ", expected an integer from 0 to " +
             std::to_string(kNumberMax));
        return;
      }
      request.hash_ids.push_back(id.get<std::uint64_t>());
    }
    const std::size_t blocks =
        (std::size_t{request.input_length} + kBlockTokens - 1) / kBlockTokens;
    if (request.hash_ids.size() != blocks) {
      fail("\"hash_ids\" has " + std::to_string(request.hash_ids.size()) + " ids, expected " +
           std::to_string(blocks) + ": one per " + std::to_string(kBlockTokens) +
           " tokens of \"input_length\" " + std::to_string(request.input_length));
    }
  }

  std::string error_;
};

bool is_blank(const std::string& line) {
  return line.find_first_not_of(" \t\r") == std::string::npos;
}

}  // namespace

TraceResult read_trace(std::istream& input, const std::string& name, std::size_t limit) {
  TraceResult result;
  std::size_t line_number = 0;
  std::size_t blank_line = 0;  // the first one not yet known to be at the end; 0: none
  std::string line;
  const auto fail = [&](std::size_t at, const std::string& message) {
    result.error = name + ":" + std::to_string(at) + ": " + message;
  };
  while (result.requests.size() < limit && std::getline(input, line)) {
    ++line_number;
    if (is_blank(line)) {
      if (blank_line == 0) blank_line = line_number;
      continue;
    }
    if (blank_line != 0) {
      fail(blank_line, "line is blank, expected a request (blank lines may stand at the end only)");
      return result;
    }
    LineParser parser;
    std::optional<Request> request = parser.parse(line);
    if (!request) {
      fail(line_number, "line " + parser.error());
      return result;
    }
    if (!result.requests.empty() && request->timestamp_ms < result.requests.back().timestamp_ms) {
      fail(line_number, "line \"timestamp\" is " + std::to_string(request->timestamp_ms) +
                            ", expected at least " +
                            std::to_string(result.requests.back().timestamp_ms) +
                            ", that of the line before");
      return result;
    }
    result.requests.push_back(*std::move(request));
  }
  if (input.bad()) fail(line_number + 1, "cannot be read: " + std::string(std::strerror(errno)));
  return result;
}

TraceResult read_trace_file(const std::string& path, std::size_t limit) {
  std::ifstream input(path);
  if (!input) {
    TraceResult result;
    result.error = path + ": cannot open the trace: " + std::strerror(errno);
    return result;
  }
  return read_trace(input, path, limit);
}

void write_trace(std::ostream& output, std::span<const Request> requests) {
  for (const Request& request : requests) {
    output << "{\"timestamp\": " << request.timestamp_ms
           << ", \"input_length\": " << request.input_length
           << ", \"output_length\": " << request.output_length << ", \"hash_ids\": [";
    const char* separator = "";
    for (const std::uint64_t id : request.hash_ids) {
      output << separator << id;
      separator = ", ";
    }
    output << "]}\n";
  }
}

std::string find_prefix_violation(std::span<const Request> requests) {
  struct Predecessor {
    bool exists = false;
    std::uint64_t id = 0;
    bool operator==(const Predecessor&) const = default;
  };
  std::unordered_map<std::uint64_t, Predecessor> predecessors;
  for (std::size_t index = 0; index < requests.size(); ++index) {
    Predecessor before;
    for (const std::uint64_t id : requests[index].hash_ids) {
      const auto [known, is_new] = predecessors.emplace(id, before);
      if (!is_new && known->second != before) {
        return "request " + std::to_string(index) + ": id " + std::to_string(id) +
               " follows another id than where it occurred first";
      }
      before = {true, id};
    }
  }
  return {};
}

std::uint32_t namespace_of_request(std::size_t index, std::uint32_t namespaces) {
  if (namespaces <= 1) return 0;
  return static_cast<std::uint32_t>(mix64(index + kGoldenGamma) % namespaces);
}

}  // namespace kvtrie::replay
