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

std::string MetricsServer::start(const std::string& address,
                                 std::shared_ptr<prometheus::Collectable> collectable) {
  try {
    collectable_ = std::move(collectable);
    exposer_ = std::make_unique<prometheus::Exposer>(address);
    exposer_->RegisterCollectable(collectable_);
    const std::vector<int> ports = exposer_->GetListeningPorts();
    address_ = ports.empty()
                   ? address
                   : fmt::format("{}:{}", address.substr(0, address.rfind(':')), ports.front());
    return {};
  } catch (const std::exception& error) {
    exposer_.reset();
    return fmt::format(
        "metrics on {}: cannot listen there ({}); is the port in use, by another kvtried perhaps? "
        "Give another one "
        "with --metrics HOST:PORT, or --metrics off",
        address, error.what());
  }
}

}  // namespace kvtrie
