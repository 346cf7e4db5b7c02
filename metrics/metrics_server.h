// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The HTTP server that Prometheus scrapes: prometheus-cpp's, with its exceptions turned into texts.
#pragma once

#include <prometheus/collectable.h>

#include <memory>
#include <string>

namespace prometheus {
class Exposer;
}

namespace kvtrie {

class MetricsServer {
 public:
  MetricsServer();
  ~MetricsServer();
  MetricsServer(MetricsServer&&) noexcept;
  MetricsServer& operator=(MetricsServer&&) noexcept;

  // Listens on http://ADDRESS/metrics; ADDRESS is HOST:PORT, port 0 takes a free one. Until serve() it answers
  // with nothing of ours. Returns what went wrong and what to do about it, or nothing.
  std::string listen(const std::string& address);
  void serve(std::shared_ptr<prometheus::Collectable> collectable);
  // HOST:PORT with the real port, or "off".
  const std::string& address() const { return address_; }

 private:
  std::shared_ptr<prometheus::Collectable> collectable_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::string address_ = "off";
};

}  // namespace kvtrie
