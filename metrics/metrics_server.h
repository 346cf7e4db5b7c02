// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The coordinator's HTTP server, on civetweb, which prometheus-cpp brings and is built on (its Exposer cannot answer
// with a status of our choice).
//
//   /metrics   200, the text format of Prometheus
//   /healthz   200 "ok", or 503 and why the process is to be restarted
//   /readyz    200 "ok", or 503 and why no worker is to be sent here
//
// Pages are answered by the server's own threads; what is given to serve() must allow that, and outlive the server.
#pragma once

#include <prometheus/collectable.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

class CivetServer;

namespace kvtrie {

// Each says in words what is wrong, or nothing.
struct HealthChecks {
  std::function<std::string()> alive_problem;
  std::function<std::string()> ready_problem;
};

class MetricsServer {
 public:
  MetricsServer();
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  // Listens on http://ADDRESS/; ADDRESS is HOST:PORT, port 0 takes a free one. Until serve() it is alive, not ready,
  // and has no metrics. Returns what went wrong and what to do about it, or nothing.
  std::string listen(const std::string& address);
  void serve(std::vector<std::shared_ptr<prometheus::Collectable>> collectables, HealthChecks checks);
  // HOST:PORT with the real port, or "off".
  const std::string& address() const { return address_; }

 private:
  class Page;

  std::string metrics_text() const;
  std::string problem_of(std::function<std::string()> HealthChecks::*check) const;

  std::vector<std::unique_ptr<Page>> pages_;  // constant after listen()
  std::string address_ = "off";
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<prometheus::Collectable>> collectables_;  // guarded by mutex_
  HealthChecks checks_;                                                 // guarded by mutex_
  std::unique_ptr<CivetServer> server_;  // ends first
};

}  // namespace kvtrie
