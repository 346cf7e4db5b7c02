// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "metrics/metrics_server.h"

#include <CivetServer.h>
#include <fmt/format.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <exception>
#include <iterator>
#include <utility>

namespace kvtrie {

// One address of the server: a status and a text.
class MetricsServer::Page : public CivetHandler {
 public:
  struct Text {
    int status;
    const char* type;
    std::string body;
  };
  Page(std::string path, std::function<Text()> make)
      : path_(std::move(path)), make_(std::move(make)) {}

  const std::string& path() const { return path_; }

  bool handleGet(CivetServer*, mg_connection* connection) override {
    const Text text = make_();
    const std::string head = fmt::format(
        "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: "
        "no-store\r\nConnection: close\r\n\r\n",
        text.status, text.status == 200 ? "OK" : "Service Unavailable", text.type,
        text.body.size());
    mg_write(connection, head.data(), head.size());
    mg_write(connection, text.body.data(), text.body.size());
    return true;
  }

 private:
  std::string path_;
  std::function<Text()> make_;
};

MetricsServer::MetricsServer()
    : checks_{[] { return std::string(); },
              [] { return std::string("starting: the cache is being made or taken over"); }} {
  pages_.push_back(std::make_unique<Page>("/metrics", [this] {
    return Page::Text{200, "text/plain; version=0.0.4; charset=utf-8", metrics_text()};
  }));
  const auto add_check = [this](const char* path,
                                std::function<std::string()> HealthChecks::*check) {
    pages_.push_back(std::make_unique<Page>(path, [this, check] {
      const std::string problem = problem_of(check);
      return Page::Text{problem.empty() ? 200 : 503, "text/plain; charset=utf-8",
                        (problem.empty() ? "ok" : problem) + "\n"};
    }));
  };
  add_check("/healthz", &HealthChecks::alive_problem);
  add_check("/readyz", &HealthChecks::ready_problem);
}

MetricsServer::~MetricsServer() = default;

std::string MetricsServer::listen(const std::string& address) {
  try {
    server_ = std::make_unique<CivetServer>(
        std::vector<std::string>{"listening_ports", address, "num_threads", "2"});
    for (const std::unique_ptr<Page>& page : pages_)
      server_->addHandler(page->path(), *page);
    const std::vector<int> ports = server_->getListeningPorts();
    address_ = ports.empty()
                   ? address
                   : fmt::format("{}:{}", address.substr(0, address.rfind(':')), ports.front());
    return {};
  } catch (const std::exception& error) {
    server_.reset();
    return fmt::format(
        "metrics on {}: cannot listen there ({}): the port is in use (by another kvtried perhaps) "
        "or only for "
        "root, or the host is no address of this machine. Give another one with --metrics "
        "HOST:PORT, or "
        "--metrics off",
        address, error.what());
  }
}

void MetricsServer::serve(std::vector<std::shared_ptr<prometheus::Collectable>> collectables,
                          HealthChecks checks) {
  const std::lock_guard guard(mutex_);
  collectables_ = std::move(collectables);
  checks_ = std::move(checks);
}

std::string MetricsServer::metrics_text() const {
  std::vector<std::shared_ptr<prometheus::Collectable>> collectables;
  {
    const std::lock_guard guard(mutex_);
    collectables = collectables_;
  }
  std::vector<prometheus::MetricFamily> families;
  for (const auto& collectable : collectables) {
    std::vector<prometheus::MetricFamily> some = collectable->Collect();
    std::ranges::move(some, std::back_inserter(families));
  }
  return prometheus::TextSerializer().Serialize(families);
}

std::string MetricsServer::problem_of(std::function<std::string()> HealthChecks::*check) const {
  std::function<std::string()> look;
  {
    const std::lock_guard guard(mutex_);
    look = checks_.*check;
  }
  return look();
}

}  // namespace kvtrie
