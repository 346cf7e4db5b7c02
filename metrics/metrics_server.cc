// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "metrics/metrics_server.h"

#include <fmt/format.h>
#include <prometheus/exposer.h>

#include <exception>

namespace kvtrie {

MetricsServer::MetricsServer() = default;
MetricsServer::~MetricsServer() = default;
MetricsServer::MetricsServer(MetricsServer&&) noexcept = default;
MetricsServer& MetricsServer::operator=(MetricsServer&&) noexcept = default;

std::string MetricsServer::listen(const std::string& address) {
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(address);
    const std::vector<int> ports = exposer_->GetListeningPorts();
    address_ = ports.empty()
                   ? address
                   : fmt::format("{}:{}", address.substr(0, address.rfind(':')), ports.front());
    return {};
  } catch (const std::exception& error) {
    exposer_.reset();
    return fmt::format(
        "metrics on {}: cannot listen there ({}): the port is in use (by another kvtried perhaps) or only for "
        "root, or the host is no address of this machine. Give another one with --metrics HOST:PORT, or "
        "--metrics off",
        address, error.what());
  }
}

void MetricsServer::serve(std::shared_ptr<prometheus::Collectable> collectable) {
  collectable_ = std::move(collectable);
  exposer_->RegisterCollectable(collectable_);
}

}  // namespace kvtrie
