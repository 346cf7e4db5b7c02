// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/manual/man_page.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <sstream>
#include <string_view>

#include "tools/manual/options.h"

namespace kvtrie::manual {
namespace {

// Text as it stands: nothing in it is a request or an escape, and dashes are those that one types.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else {
      out += c;
    }
  }
  return out.starts_with('.') || out.starts_with('\'') ? "\\&" + out : out;
}

std::string upper(std::string text) {
  std::ranges::transform(text, text.begin(), [](char c) { return static_cast<char>(std::toupper(static_cast<unsigned char>(c))); });
  return text;
}

std::string value_text(const CLI::Option& option) {
  if (!takes_value(option)) return {};
  return " \\fI" + escaped(value_name(option)) + "\\fR";
}

std::string option_text(const CLI::Option& option) {
  std::string text = ".TP\n";
  const std::vector<std::string> names = option.get_positional() ? std::vector{upper(option.get_name(true))} : names_of(option);
  for (std::size_t i = 0; i < names.size(); ++i) {
    text += (i == 0 ? "" : ", ") + fmt::format("\\fB{}\\fR", escaped(names[i]));
  }
  if (!option.get_positional()) text += value_text(option);
  text += "\n" + escaped(option.get_description());
  if (!option.get_default_str().empty()) text += fmt::format(" ({})", escaped(option.get_default_str()));
  return text + "\n";
}

std::string options_text(const CLI::App& app) {
  std::string text;
  for (const CLI::Option* option : positionals_of(app)) text += option_text(*option);
  for (const CLI::Option* option : options_of(app)) {
    const bool help = option == app.get_help_ptr() && app.get_parent() != nullptr;  // once is enough
    if (!help) text += option_text(*option);
  }
  return text;
}

// `heading`: request that begins a part of it.
std::string footer_text(const std::string& footer, const char* heading) {
  std::string text;
  bool kept = false;  // lines as they stand
  std::istringstream lines(footer);
  for (std::string line; std::getline(lines, line);) {
    const bool indented = line.starts_with(' ');
    if (indented != kept) text += indented ? ".PP\n.nf\n" : ".fi\n.PP\n";
    kept = indented;
    if (!indented && line.ends_with(':') && *heading != '\0') {
      text += fmt::format("{} {}\n", heading, upper(line.substr(0, line.size() - 1)));
    } else {
      text += escaped(line) + "\n";
    }
  }
  return kept ? text + ".fi\n" : text;
}

std::string command_text(const CLI::App& command, const std::string& program) {
  std::string usage = program + " " + command.get_name();
  for (const CLI::Option* option : positionals_of(command)) usage += " " + upper(option->get_name(true));
  std::string text = fmt::format(".SS {}\n{}.\n", escaped(usage), escaped(command.get_description()));
  text += options_text(command);
  const CLI::App* parent = command.get_parent();
  const bool own = parent == nullptr || command.get_footer() != parent->get_footer();  // a command inherits it
  return own ? text + ".PP\n" + footer_text(command.get_footer(), "") : text;
}

}  // namespace

std::string man_page(const CLI::App& app, const ManPage& page) {
  const std::string name = app.get_name();
  const std::string description = app.get_description();  // "name: what it does"
  const std::size_t colon = description.find(": ");
  std::string text = fmt::format(".TH {} {} \"\" \"kvtrie {}\" \"kvtrie\"\n", upper(name), page.section, page.version);
  text += fmt::format(".SH NAME\n{} \\- {}\n", name,
                      escaped(colon == std::string::npos ? description : description.substr(colon + 2)));
  const std::vector<const CLI::App*> commands = commands_of(app);
  text += fmt::format(".SH SYNOPSIS\n\\fB{}\\fR [\\fIOPTIONS\\fR]{}\n", name,
                      commands.empty() ? "" : " \\fICOMMAND\\fR ...");
  text += ".SH OPTIONS\n" + options_text(app);
  if (!commands.empty()) text += ".SH COMMANDS\n";
  for (const CLI::App* command : commands) text += command_text(*command, name);
  text += footer_text(app.get_footer(), ".SH");
  return text + fmt::format(".SH SEE ALSO\n{}\n", escaped(page.see_also));
}

}  // namespace kvtrie::manual
