// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/plots.h"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <system_error>

namespace kvtrie::bench {
namespace {

namespace fs = std::filesystem;

// Told apart by people who see colours differently, too (Okabe and Ito), on white.
constexpr std::array kColours{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"};

// In gnuplot's single quotes nothing but the quote itself is special.
std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) {
    if (c == '\'') result += '\'';
    result += c == '\n' ? ' ' : c;
  }
  return result + '\'';
}

// Empty, or why it did not do what the script says. Its messages are on standard error.
std::string run_gnuplot(const fs::path& script) {
  std::string program = "gnuplot";
  std::string argument = script.string();
  std::array<char*, 3> arguments{program.data(), argument.data(), nullptr};
  pid_t pid = 0;
  const int error = ::posix_spawnp(&pid, program.c_str(), nullptr, nullptr, arguments.data(), environ);
  if (error == ENOENT) return "there is no gnuplot (Debian: gnuplot-nox)";
  int status = 0;
  if (error == 0) {
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
  }
  return error == 0 && status == 0 ? std::string{} : "gnuplot failed";
}

}  // namespace

std::string script_of(const Plot& plot) {
  // A ground of its own: the page around it may be light or dark.
  std::string script =
      "set terminal svg size 800,460 noenhanced font 'sans-serif,13' background rgb 'white'\n"
      "set border 3 lc rgb '#404040'\n"
      "set tics nomirror\n"
      "set grid lc rgb '#d0d0d0'\n"
      "set key outside below\n"
      "set offsets graph 0.03, graph 0.03, 0, 0\n";
  script +=
      fmt::format("set title {}\nset xlabel {}\nset ylabel {}\n", quoted(plot.title), quoted(plot.x), quoted(plot.y));
  if (plot.log_x) script += "set logscale x 2\n";
  script += plot.log_y ? "set logscale y\n" : "set yrange [0:*]\n";
  std::string lines;
  for (std::size_t i = 0; i < plot.series.size(); ++i) {
    script += fmt::format("$s{} << end_of_series\n", i);
    for (const Plot::Point& point : plot.series[i].points) {
      script += fmt::format("{} {} {} {}\n", point.x, point.y.median, point.y.minimum, point.y.maximum);
    }
    script += "end_of_series\n";
    lines += fmt::format("{}$s{} using 1:2:3:4 with yerrorlines lc rgb '{}' lw 1.5 pt 7 ps 0.5 title {}",
                         i == 0 ? "plot " : ", ", i, kColours[i % kColours.size()], quoted(plot.series[i].name));
  }
  return script + lines + '\n';
}

std::string draw(const Plot& plot, const fs::path& svg) {
  const bool named =
      !plot.id.empty() && plot.id.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_-") == std::string::npos;
  if (!named) return fmt::format("plot \"{}\": an id is made of a-z, 0-9, _ and -", plot.id);
  if (plot.series.empty()) return fmt::format("plot {}: it has no series", plot.id);
  const fs::path next = fmt::format("{}.{}.new", svg.string(), ::getpid());
  const fs::path script = fmt::format("{}.{}.gnuplot", svg.string(), ::getpid());
  std::ofstream(script) << fmt::format("set output {}\n", quoted(next.string())) << script_of(plot);
  std::string why = run_gnuplot(script);
  if (!why.empty()) why = fmt::format("plot {}: {}", plot.id, why);
  std::error_code error;
  if (why.empty()) fs::rename(next, svg, error);
  if (error) why = fmt::format("{}: {}", svg.string(), error.message());
  std::error_code ignored;
  for (const fs::path& file : {next, script})
    fs::remove(file, ignored);
  return why;
}

}  // namespace kvtrie::bench
