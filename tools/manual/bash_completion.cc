// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/manual/bash_completion.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>
#include <vector>

#include "tools/manual/options.h"

namespace kvtrie::manual {
namespace {

// The shell words that fill COMPREPLY with what may be the value of an option.
std::string reply_for(const CLI::Option& option) {
  const std::string value = value_name(option);
  if (const std::vector<std::string> choices = choices_of(option); !choices.empty()) {
    return fmt::format("COMPREPLY=($(compgen -W '{}' -- \"$current\"))", fmt::join(choices, " "));
  }
  if (value == "FILE") return "COMPREPLY=($(compgen -f -- \"$current\"))";
  if (value == "DIR") return "COMPREPLY=($(compgen -d -- \"$current\"))";
  if (option.check_lname("cache")) {
    return "COMPREPLY=($(compgen -W \"$(cd /dev/shm 2>/dev/null && ls kvtrie.*.seg 2>/dev/null |\n"
           "        sed -E 's/^kvtrie\\.(.*)\\.v[0-9]+\\.seg$/\\1/')\" -- \"$current\"))";
  }
  return "COMPREPLY=()";
}

// Case arms for the values of options; the same flag of two commands has one arm if it means the same.
void add_values(const CLI::App& app, std::map<std::string, std::string>& arms) {
  for (const CLI::Option* option : options_of(app)) {
    if (!takes_value(*option)) continue;
    for (const std::string& name : names_of(*option)) arms.emplace(app.get_name() + ":" + name, reply_for(*option));
  }
}

std::string flags_text(const CLI::App& app) {
  std::string text;
  for (const CLI::Option* option : options_of(app)) {
    if (option == app.get_help_ptr() && app.get_parent() != nullptr) continue;  // the program has it too
    for (const std::string& name : option->get_lnames()) text += (text.empty() ? "--" : " --") + name;
  }
  return text;
}

std::string command_names(const CLI::App& app, const char* between) {
  std::string text;
  for (const CLI::App* command : commands_of(app)) text += (text.empty() ? "" : between) + command->get_name();
  return text;
}

}  // namespace

std::string bash_completion(const CLI::App& app) {
  const std::string& program = app.get_name();
  std::map<std::string, std::string> values;
  add_values(app, values);
  for (const CLI::App* command : commands_of(app)) add_values(*command, values);

  std::string text = fmt::format("# bash completion of {}; made from its command line's definition\n_{}() {{\n", program, program);
  text += "  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} command= word\n";
  if (const std::string names = command_names(app, "|"); !names.empty()) {
    text += "  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n";
    text += fmt::format("    case $word in {}) command=$word; break ;; esac\n  done\n", names);
  }
  text += fmt::format("  case ${{command:-{}}}:$previous in\n", program);
  for (const auto& [of, reply] : values) text += fmt::format("    {}) {}; return ;;\n", of, reply);
  text += "  esac\n";
  if (!commands_of(app).empty()) {  // options of the program stand behind a command too
    text += fmt::format("  case {}:$previous in\n", program);
    for (const auto& [of, reply] : values) {
      if (of.starts_with(program + ":")) text += fmt::format("    {}) {}; return ;;\n", of, reply);
    }
    text += "  esac\n";
  }
  const std::string common = flags_text(app);
  text += "  case $command in\n";
  for (const CLI::App* command : commands_of(app)) {
    text += fmt::format("    {}) COMPREPLY=($(compgen -W '{} {}' -- \"$current\")) ;;\n", command->get_name(),
                        flags_text(*command), common);
  }
  const std::string names = command_names(app, " ");
  text += fmt::format("    *) COMPREPLY=($(compgen -W '{}{}{}' -- \"$current\")) ;;\n  esac\n}}\n", names,
                      names.empty() ? "" : " ", common);
  return text + fmt::format("complete -F _{} {}\n", program, program);
}

}  // namespace kvtrie::manual
