// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_pins.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "shm/admin_client.h"
#include "shm/page_table.h"
#include "tools/kvtrie/admin_target.h"
#include "tools/kvtrie/host.h"
#include "tools/kvtrie/snapshot.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

struct PinOptions {
  std::string name_space;
  std::string tokens;
  std::optional<std::uint32_t> page;
  std::uint32_t expires_s = 0;
  std::string reason;
};

struct UnpinOptions {
  std::optional<std::uint32_t> number;
  std::string name_space;
  std::string tokens;
};

// The page that a command means, or why there is none.
struct Prefix {
  Handle page;
  std::uint64_t tokens_given = 0;
  Outcome failure;
};

Prefix prefix_of_tokens(const AdminTarget& target, const std::string& name_space,
                        const std::string& words) {
  Prefix prefix;
  const NamespaceFound found = find_open_namespace(target, name_space);
  if (!found.name_space) return {{}, 0, found.failure};
  const TokensRead read = read_tokens(words);
  if (!read.problem.empty())
    return {{}, 0, failure(Exit::kUsage, "--tokens: " + read.problem, target.json)};
  const std::size_t wanted = read.tokens.size() / target.segment.tokens_per_page();
  if (wanted == 0) {
    return {
        {},
        0,
        failure(Exit::kUsage,
                fmt::format("{} are less than one page of {}", counted(read.tokens.size(), "token"),
                            target.segment.tokens_per_page()),
                target.json)};
  }
  const CachedPrefix cached = find_prefix(target.segment, *found.name_space, read.tokens);
  if (cached.pages < wanted) {
    return {{},
            0,
            failure(Exit::kNotFound,
                    fmt::format("only {} of the prefix's {} are cached in namespace {}: let an "
                                "engine compute it first",
                                cached.pages, counted(wanted, "page"), found.name_space->id.value),
                    target.json)};
  }
  return {cached.deepest, read.tokens.size(), {}};
}

Prefix prefix_of_page(const AdminTarget& target, std::uint32_t page) {
  if (page < target.segment.page_count()) {
    const StateWord word = PageTable(target.segment).state({page});
    if (word.readable()) return {Handle::page({page}, word), 0, {}};
  }
  return {{},
          0,
          failure(Exit::kNotFound,
                  fmt::format("cache '{}' has no cached page {} (kvtrie page {})",
                              target.address.cache, page, page),
                  target.json)};
}

Outcome run_pin(const AdminTarget& target, const PinOptions& options) {
  const Prefix prefix = options.page ? prefix_of_page(target, *options.page)
                                     : prefix_of_tokens(target, options.name_space, options.tokens);
  if (prefix.page.none()) return prefix.failure;
  std::string message;
  const Result<PinMade> made =
      request_pin(target.address, {prefix.page, options.expires_s, options.reason}, message);
  if (!made) return refused(made.error(), message, target.json);
  return render(
      PinReport{target.address.cache, made->pin, prefix.page.page_index().value, made->depth,
                std::uint64_t{made->depth} * target.segment.tokens_per_page(), prefix.tokens_given,
                options.expires_s},
      target.json);
}

Outcome run_unpin(const AdminTarget& target, const UnpinOptions& options) {
  Handle wanted;
  if (!options.number) {
    const Prefix prefix = prefix_of_tokens(target, options.name_space, options.tokens);
    if (prefix.page.none()) return prefix.failure;
    wanted = prefix.page;
  }
  UnpinReport report{target.address.cache, {}};
  for (const Pin& pin : PinTable(target.segment).list()) {
    if (options.number ? pin.number != *options.number : pin.page != wanted) continue;
    std::string message;
    if (const Status status = request_unpin(target.address, pin.number, pin.page, message);
        !status) {
      return refused(status, message, target.json);
    }
    report.pins.push_back(pin.number);
  }
  if (!report.pins.empty()) return render(report, target.json);
  return failure(
      Exit::kNotFound,
      fmt::format("cache '{}' has no such pin; kvtrie pins lists them", target.address.cache),
      target.json);
}

void add_prefix_options(CLI::App* command, std::string& name_space, std::string& tokens,
                        CLI::Option* instead) {
  CLI::Option* in =
      command->add_option("--namespace", name_space, "Namespace of the prefix: its id or label")
          ->type_name("NS");
  CLI::Option* of =
      command
          ->add_option("--tokens", tokens,
                       "Its token ids: 1,2,3 or @FILE or - (stdin); full pages of them count")
          ->type_name("LIST");
  of->needs(in)->excludes(instead);
  in->needs(of);
  command->callback([of, instead, command] {
    if (of->count() + instead->count() == 0) {
      throw CLI::RequiredError(fmt::format("{}: {}, or --namespace and --tokens,",
                                           command->get_name(), instead->get_name()));
    }
  });
}

PinRow row_of(const Segment& segment, const HostView& host, Pin pin) {
  PinRow row;
  const Handle page = pin.page;
  if (page.is_page() && segment.has(page.page_index())) {
    const StateWord word = PageTable(segment).state(page.page_index());
    row.protects = page.same_life(word) && word.readable();
    const Descriptor& descriptor = segment.descriptor(page.page_index());
    row.name_space = namespace_in(descriptor.scope.load(std::memory_order_relaxed));
    row.pages = depth_in(descriptor.depth_class.load(std::memory_order_relaxed));
    if (row.name_space.value < segment.namespace_count())
      row.label = read_namespace(segment, row.name_space).label;
  }
  row.age_seconds = host.age_seconds(pin.since_tick);
  if (pin.expiry_tick != 0) {
    if (const auto age = host.age_seconds(pin.expiry_tick)) row.expires_seconds = -*age;
  }
  pin.reason = printable(pin.reason.data(), pin.reason.size());
  row.pin = std::move(pin);
  return row;
}

std::string expires_text(const PinRow& row) {
  if (row.pin.expiry_tick == 0) return "never";
  if (!row.expires_seconds) return "?";
  return *row.expires_seconds > 0 ? "in " + seconds_text(*row.expires_seconds) : "now";
}

Json number_or_null(std::optional<double> value) { return value ? Json(*value) : Json(nullptr); }

}  // namespace

PinsReport gather_pins(const Segment& segment, const std::string& cache) {
  const HostView host(segment);
  PinsReport report{cache, segment.geometry().leases_per_worker, {}};
  for (Pin& pin : PinTable(segment).list())
    report.rows.push_back(row_of(segment, host, std::move(pin)));
  return report;
}

Command add_pins_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("pins", "Prefixes that operators pinned: why, and until when");
  return {command, [](const Context& context) {
            return on_segment(context, [&](const Segment& segment, const std::string& cache) {
              return render(gather_pins(segment, cache), context.json);
            });
          }};
}

Command add_pin_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "pin", "Keep a cached prefix from eviction, also over restarts of kvtried");
  const auto options = std::make_shared<PinOptions>();
  CLI::Option* page =
      command->add_option("--page", options->page, "The path that ends in this page, instead")
          ->type_name("PAGE");
  add_prefix_options(command, options->name_space, options->tokens, page);
  command
      ->add_option("--reason", options->reason,
                   "Why, for whoever looks at it later; up to 55 bytes")
      ->required()
      ->check([](const std::string& text) {
        return text.empty() || text.size() > 55 ? std::string("must be 1 to 55 bytes")
                                                : std::string();
      })
      ->type_name("TEXT");
  command->add_option("--expires", options->expires_s, "Seconds until it ends by itself; 0: never")
      ->check(CLI::Range(0U, kPinSecondsMax))
      ->capture_default_str()
      ->type_name("SECONDS");
  return {command, [options](const Context& context) {
            return on_coordinator(
                context, [&](const AdminTarget& target) { return run_pin(target, *options); });
          }};
}

Command add_unpin_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("unpin", "End a pin, by its number, or all pins of a prefix");
  const auto options = std::make_shared<UnpinOptions>();
  CLI::Option* number =
      command->add_option("pin", options->number, "Its number, as kvtrie pins shows it")
          ->type_name("PIN");
  add_prefix_options(command, options->name_space, options->tokens, number);
  return {command, [options](const Context& context) {
            return on_coordinator(
                context, [&](const AdminTarget& target) { return run_unpin(target, *options); });
          }};
}

std::string to_text(const PinsReport& report) {
  using enum Table::Align;
  Table table;
  table.column("pin", kRight);
  table.column("page", kRight);
  table.column("namespace", kLeft);
  table.column("keeps pages", kRight);
  table.column("pinned", kLeft);
  table.column("ends", kLeft);
  table.column("reason", kLeft);
  for (const PinRow& row : report.rows) {
    table.row({std::to_string(row.pin.number),
               row.pin.page.is_page() ? std::to_string(row.pin.page.page_index().value) : "?",
               row.protects ? fmt::format("{} {}", row.name_space.value, row.label)
                            : "page is gone: run kvtrie verify",
               row.protects ? grouped(row.pages) : "-", ago_text(row.age_seconds),
               expires_text(row), row.pin.reason});
  }
  return table.text() + fmt::format("{}, {} possible\n", counted(report.rows.size(), "pin"),
                                    grouped(report.pins_max));
}

std::string to_text(const PinReport& report) {
  std::string text =
      fmt::format("pin {}: {} ({} tokens) down to page {} kept", report.pin,
                  counted(report.pages, "page"), grouped(report.tokens), report.page);
  text += report.expires_s == 0 ? " until kvtrie unpin\n"
                                : fmt::format(" for {}\n", seconds_text(report.expires_s));
  if (report.tokens_given > report.tokens) {
    text += fmt::format("  the last {} fill no page and are not kept\n",
                        counted(report.tokens_given - report.tokens, "token"));
  }
  return text;
}

std::string to_text(const UnpinReport& report) {
  return fmt::format("ended: pin {}\n", fmt::join(report.pins, ", "));
}

Json to_json(const PinsReport& report) {
  Json json;
  json["cache"] = report.cache;
  json["pins_max"] = report.pins_max;
  Json& pins = json["pins"] = Json::array();
  for (const PinRow& row : report.rows) {
    Json entry;
    entry["pin"] = row.pin.number;
    entry["page"] = row.pin.page.is_page() ? Json(row.pin.page.page_index().value) : Json(nullptr);
    entry["protects"] = row.protects;
    entry["namespace"] = row.protects ? Json(row.name_space.value) : Json(nullptr);
    entry["label"] = row.label;
    entry["pages"] = row.protects ? Json(row.pages) : Json(nullptr);
    entry["pinned_seconds"] = number_or_null(row.age_seconds);
    entry["expires"] = row.pin.expiry_tick != 0;
    entry["expires_seconds"] = number_or_null(row.expires_seconds);
    entry["reason"] = row.pin.reason;
    pins.push_back(std::move(entry));
  }
  return json;
}

Json to_json(const PinReport& report) {
  Json json;
  json["cache"] = report.cache;
  json["pin"] = report.pin;
  json["page"] = report.page;
  json["pages"] = report.pages;
  json["tokens"] = report.tokens;
  json["tokens_given"] = report.tokens_given == 0 ? Json(nullptr) : Json(report.tokens_given);
  json["expires_seconds"] = report.expires_s == 0 ? Json(nullptr) : Json(report.expires_s);
  return json;
}

Json to_json(const UnpinReport& report) { return {{"cache", report.cache}, {"pins", report.pins}}; }

}  // namespace kvtrie::inspect
