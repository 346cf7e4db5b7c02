// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "dump/dump_diff.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <tuple>

#include "dump/npy.h"
#include "dump/statistics.h"

namespace kvtrie::dump {
namespace {

using Document = nlohmann::json;

struct Missing : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::vector<std::byte> bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Missing(path + " is not there or cannot be read");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::byte> bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

Document info_of(const std::string& directory) {
  const std::string path = directory + "/info.json";
  const std::vector<std::byte> bytes = bytes_of(path);
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  Document info = Document::parse(text, text + bytes.size());
  if (info.at("format") != "kvtrie-dump") throw std::runtime_error(path + " is no dump");
  if (info.at("version") != 1) throw std::runtime_error(path + " has version " + info.at("version").dump() + ", not 1");
  return info;
}

using Key = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t>;

Key key_of(const Document& page) { return {page.at("request"), page.at("position"), page.at("plane")}; }

std::string place_of(const Key& key) {
  return "request " + std::to_string(std::get<0>(key)) + " position " + std::to_string(std::get<1>(key)) + " plane " +
         std::to_string(std::get<2>(key));
}

std::vector<std::uint64_t> index_of(std::uint64_t item, const std::vector<std::uint64_t>& shape) {
  std::vector<std::uint64_t> index(shape.size());
  for (std::size_t i = shape.size(); i-- > 0;) {
    index[i] = item % shape[i];
    item /= shape[i];
  }
  return index;
}

std::string text_of(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

class Comparison {
 public:
  Comparison(std::string a, std::string b)
      : directory_a_(std::move(a)), directory_b_(std::move(b)), a_(info_of(directory_a_)), b_(info_of(directory_b_)) {}

  DumpDiff run() {
    diff_.raw = a_.at("raw").get<bool>() && b_.at("raw").get<bool>();
    compare_tokens();
    compare_batch();
    compare_pages();
    return std::move(diff_);
  }

 private:
  void compare_tokens() {
    const Document& a = a_.at("requests");
    const Document& b = b_.at("requests");
    for (std::size_t request = 0; request < std::min(a.size(), b.size()); ++request) {
      const auto one = a[request].at("tokens").get<std::vector<std::uint32_t>>();
      const auto other = b[request].at("tokens").get<std::vector<std::uint32_t>>();
      const auto [at, there] = std::ranges::mismatch(one, other);
      if (at == one.end() && there == other.end()) continue;
      Difference& found = diff_.tokens.emplace();
      found.request = request;
      found.token = static_cast<std::uint64_t>(at - one.begin());
      const auto shown = [](auto it, auto end) { return it == end ? std::string("none") : std::to_string(*it); };
      found.text = "request " + std::to_string(request) + " token " + std::to_string(*found.token) + ": " +
                   shown(at, one.end()) + " and " + shown(there, other.end());
      return;
    }
    if (a.size() == b.size()) return;
    Difference& found = diff_.tokens.emplace();
    found.request = std::min(a.size(), b.size());
    found.text = std::to_string(a.size()) + " and " + std::to_string(b.size()) + " requests";
  }

  void compare_batch() {
    const Document& a = a_.at("batch");
    const Document& b = b_.at("batch");
    const auto [at, there] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
    if (at == a.end() && there == b.end()) return;
    Difference& found = diff_.batch.emplace();
    found.entry = static_cast<std::uint64_t>(at - a.begin());
    found.request = (at != a.end() ? *at : *there).at("request");
    found.text = "entry " + std::to_string(*found.entry) + ": " + (at == a.end() ? "none" : at->dump()) + " and " +
                 (there == b.end() ? "none" : there->dump());
  }

  static std::vector<const Document*> sorted(const Document& pages) {
    std::vector<const Document*> all;
    for (const Document& page : pages) all.push_back(&page);
    std::ranges::stable_sort(all, {}, [](const Document* page) { return key_of(*page); });
    return all;
  }

  void compare_pages() {
    const std::vector<const Document*> a = sorted(a_.at("pages"));
    const std::vector<const Document*> b = sorted(b_.at("pages"));
    auto at = a.begin();
    auto there = b.begin();
    while (at != a.end() || there != b.end()) {
      if (there == b.end() || (at != a.end() && key_of(**at) < key_of(**there))) {
        only_in(**at++, directory_a_);
      } else if (at == a.end() || key_of(**there) < key_of(**at)) {
        only_in(**there++, directory_b_);
      } else {
        ++diff_.pages_compared;
        compare_page(**at++, **there++);
      }
    }
  }

  // Null: another difference came before.
  Difference* note(const Document& page) {
    ++diff_.pages_differing;
    if (diff_.pages) return nullptr;
    Difference& found = diff_.pages.emplace();
    found.request = page.at("request");
    found.position = page.at("position").get<std::uint64_t>();
    found.plane = page.at("plane").get<std::uint64_t>();
    return &found;
  }

  void only_in(const Document& page, const std::string& directory) {
    if (Difference* const found = note(page)) found->text = place_of(key_of(page)) + ": only in " + directory;
  }

  void compare_page(const Document& a, const Document& b) {
    if (a.at("bytes") == b.at("bytes") && a.at("bytes_hash") == b.at("bytes_hash")) return;
    Difference* const found = note(a);
    if (found == nullptr) return;
    found->page_a = a.at("page").get<std::uint64_t>();
    found->page_b = b.at("page").get<std::uint64_t>();
    found->text = place_of(key_of(a)) + " (page " + a.at("page").dump() + " and page " + b.at("page").dump() + "): ";
    const Document& parts = a.at("parts");
    const Document& others = b.at("parts");
    for (std::size_t i = 0; i < std::min(parts.size(), others.size()); ++i) {
      if (compare_part(parts[i], others[i], *found)) return;
    }
    found->text += parts.size() == others.size() ? "bytes outside of the parts, or that statistics do not show"
                                                 : "other parts";
  }

  bool compare_part(const Document& a, const Document& b, Difference& found) const {
    const std::string name = a.at("name");
    if (a.at("name") != b.at("name") || a.at("dtype") != b.at("dtype") || a.at("shape") != b.at("shape")) {
      found.part = name;
      found.text += "part " + name + " is " + a.at("dtype").get<std::string>() + " " + a.at("shape").dump() + " and " +
                    b.at("name").get<std::string>() + " " + b.at("dtype").get<std::string>() + " " +
                    b.at("shape").dump();
      return true;
    }
    if (a.at("file").is_string() && b.at("file").is_string()) return compare_items(a, b, found);
    if (a.at("statistics") == b.at("statistics")) return false;
    found.part = name;
    found.text += "part " + name + ": mean " + a.at("statistics").at("mean").dump() + " and " +
                  b.at("statistics").at("mean").dump() + " (no raw bytes)";
    return true;
  }

  bool compare_items(const Document& a, const Document& b, Difference& found) const {
    const DType dtype = dtype_of(a.at("dtype").get<std::string>()).value_or(DType::kRaw);
    const auto shape = a.at("shape").get<std::vector<std::uint64_t>>();
    const auto load = [&](const std::string& directory, const Document& part, std::vector<std::byte>& file) {
      const std::filesystem::path name = part.at("file").get<std::string>();
      const std::string path = directory + "/" + name.filename().string();
      file = bytes_of(path);
      const std::span<const std::byte> items = npy_items(file, dtype, shape);
      if (items.empty()) throw std::runtime_error(path + " is not what info.json says");
      return items;
    };
    std::vector<std::byte> file_a;
    std::vector<std::byte> file_b;
    const std::span<const std::byte> items_a = load(directory_a_, a, file_a);
    const std::span<const std::byte> items_b = load(directory_b_, b, file_b);
    const auto at = std::ranges::mismatch(items_a, items_b).in1;
    if (at == items_a.end()) return false;
    found.part = a.at("name");
    found.item = static_cast<std::uint64_t>(at - items_a.begin()) / item_bytes(dtype);
    found.index = index_of(*found.item, shape);
    found.value_a = item_at(items_a, dtype, *found.item);
    found.value_b = item_at(items_b, dtype, *found.item);
    found.text += "part " + found.part + " " + Document(found.index).dump() + ": " + text_of(*found.value_a) + " and " +
                  text_of(*found.value_b);
    return true;
  }

  const std::string directory_a_;
  const std::string directory_b_;
  const Document a_;
  const Document b_;
  DumpDiff diff_;
};

}  // namespace

DumpDiffOutcome diff_dumps(const std::string& a, const std::string& b) {
  try {
    return {Comparison(a, b).run(), false, {}};
  } catch (const Missing& error) {
    return {{}, true, error.what()};
  } catch (const std::exception& error) {  // JSON that is not what it should be
    return {{}, false, a + ", " + b + ": " + error.what()};
  }
}

}  // namespace kvtrie::dump
