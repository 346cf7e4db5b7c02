// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "dump/dumper.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cctype>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>

#include "dump/dump_json.h"
#include "dump/npy.h"

namespace kvtrie::dump {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint32_t kNoPage = 0xFFFFFFFF;

[[noreturn]] void fail(const std::string& path) { throw std::system_error(errno, std::generic_category(), path); }

void write_whole(int descriptor, const char* data, std::size_t bytes, const std::string& path) {
  while (bytes > 0) {
    const ssize_t done = ::write(descriptor, data, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail(path);
    data += done;
    bytes -= static_cast<std::size_t>(done);
  }
}

void write_file(const std::string& path, std::string_view head, std::span<const std::byte> rest = {}) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (descriptor < 0) fail(path);
  try {
    write_whole(descriptor, head.data(), head.size(), path);
    write_whole(descriptor, reinterpret_cast<const char*>(rest.data()), rest.size(), path);
  } catch (...) {
    (void)::close(descriptor);
    throw;
  }
  if (::close(descriptor) != 0) fail(path);
}

std::string file_of(const DumpedPage& page, const Part& part) {
  char name[96];
  std::snprintf(name, sizeof name, "request%llu-position%05u-plane%u-", static_cast<unsigned long long>(page.request),
                page.position, page.plane);
  std::string safe;
  for (const char c : part.name) safe += std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' ? c : '_';
  return name + safe + ".npy";
}

Json json_of(const DumpedRequest& request) {
  Json table = Json::array();
  for (const std::uint32_t page : request.page_table) table.push_back(page == kNoPage ? Json(nullptr) : Json(page));
  return {{"id", request.id},
          {"request_tag", request.tag},
          {"namespace", request.name_space},
          {"cached_tokens", request.cached_tokens},
          {"tokens", std::vector<std::uint32_t>(request.tokens.begin(), request.tokens.end())},
          {"page_table", std::move(table)}};
}

std::string hex_of(std::uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%016llx", static_cast<unsigned long long>(value));
  return text;
}

Json write_page(const DumpedPage& page, const std::string& directory, bool raw) {
  Json parts = Json::array();
  for (const Part& part : page.parts.empty() ? whole_page(page.bytes.size(), DType::kRaw) : page.parts) {
    if (part.offset > page.bytes.size() || part.bytes() > page.bytes.size() - part.offset) {
      throw std::invalid_argument("part " + part.name + " is not inside its page");
    }
    const std::span<const std::byte> bytes = page.bytes.subspan(part.offset, part.bytes());
    Json row = to_json(part, statistics_of(bytes, part.dtype));
    row["file"] = nullptr;
    if (raw) {
      const std::string file = file_of(page, part);
      write_file(directory + "/" + file, npy_header(part.dtype, part.shape), bytes);
      row["file"] = file;
    }
    parts.push_back(std::move(row));
  }
  return {{"request", page.request},      {"position", page.position}, {"page", page.page},
          {"plane", page.plane},          {"state", page.state},       {"bytes", page.bytes.size()},
          {"bytes_hash", hex_of(XXH3_64bits(page.bytes.data(), page.bytes.size()))}, {"parts", std::move(parts)}};
}

void write_dump(const Dump& dump, const std::string& directory, bool raw) {
  Json info;
  info["format"] = "kvtrie-dump";
  info["version"] = 1;
  info["moment"] = dump.moment;
  info["engine"] = dump.engine;
  info["pid"] = ::getpid();
  info["made_unix_ns"] =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  info["raw"] = raw;
  Json& requests = info["requests"] = Json::array();
  for (const DumpedRequest& request : dump.requests) requests.push_back(json_of(request));
  Json& batch = info["batch"] = Json::array();
  for (const DumpedBatchEntry& entry : dump.batch) {
    batch.push_back({{"request", entry.request},
                     {"kind", entry.kind},
                     {"first_token", entry.first_token},
                     {"token_count", entry.token_count}});
  }
  Json& pages = info["pages"] = Json::array();
  for (const DumpedPage& page : dump.pages) pages.push_back(write_page(page, directory, raw));
  write_file(directory + "/info.json", info.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

bool parse_number(std::string_view text, std::uint64_t max, std::uint64_t& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size() && number <= max;
}

}  // namespace

std::optional<DumpOptions> parse_dump_options(std::string_view text, std::string& error) {
  DumpOptions options;
  options.directory = text.substr(0, text.find(','));
  if (options.directory.empty()) error = "no directory for dumps: DIR[,raw][,after][,tag=N][,asked][,max=N]";
  text.remove_prefix(options.directory.size());
  while (error.empty() && !text.empty()) {
    text.remove_prefix(1);
    const std::string_view word = text.substr(0, text.find(','));
    text.remove_prefix(word.size());
    std::uint64_t number = 0;
    if (word == "raw") {
      options.raw = true;
    } else if (word == "after") {
      options.after = true;
    } else if (word == "asked") {
      options.only_asked = true;
    } else if (word.starts_with("tag=") && parse_number(word.substr(4), 0xFFFFFFFF, number)) {
      options.only_tag = static_cast<std::uint32_t>(number);
    } else if (word.starts_with("max=") && parse_number(word.substr(4), ~std::uint64_t{0}, number)) {
      options.dumps_max = number;
    } else {
      error = "'" + std::string(word) + "' is not raw, after, tag=N, asked or max=N";
    }
  }
  if (!error.empty()) return std::nullopt;
  return options;
}

namespace {

// For the owner alone, also those above it.
void make_directories(const std::filesystem::path& directory) {
  std::filesystem::path made;
  for (const std::filesystem::path& part : directory) {
    made /= part;
    if (::mkdir(made.c_str(), 0700) != 0 && !std::filesystem::is_directory(made)) fail(made.string());
  }
}

}  // namespace

WrittenDump Dumper::write(const Dump& dump) noexcept try {
  char number[64];
  std::snprintf(number, sizeof number, "%ld-%06llu-", static_cast<long>(::getpid()),
                static_cast<unsigned long long>(next_.fetch_add(1, std::memory_order_relaxed)));
  const std::string name = number + dump.moment;
  const std::string directory = options_.directory + "/" + name;
  const std::string unfinished = options_.directory + "/.unfinished-" + name;
  try {
    make_directories(options_.directory);
    if (::mkdir(unfinished.c_str(), 0700) != 0) fail(unfinished);
    write_dump(dump, unfinished, options_.raw);
    if (::rename(unfinished.c_str(), directory.c_str()) != 0) fail(directory);
  } catch (const std::exception& error) {
    std::error_code ignored;
    std::filesystem::remove_all(unfinished, ignored);
    return {{}, error.what()};
  }
  return {directory, {}};
} catch (...) {
  return {};  // no memory even for the words; `directory` is empty
}

}  // namespace kvtrie::dump
