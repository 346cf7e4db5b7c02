// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// One connection to a coordinator, client's side: bounded in time, no signals, close-on-exec. Used
// by the plugin's attach and by tools.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "shm/shared_object.h"
#include "shm/status.h"
#include "shm/wire.h"

namespace kvtrie {

// Which coordinator: that of `cache` below `directory` (see runtime_directory.h).
struct CoordinatorAddress {
  std::string directory;
  std::string cache;
  int timeout_ms = kWireTimeoutMs;  // for all that is done on one connection
};

class WireClient {
 public:
  // kNoCoordinator at once when nobody listens. `message` gets the text for people whenever a call
  // fails.
  static Result<WireClient> connect(const CoordinatorAddress& address, std::string& message);

  // Sends a request and waits for its reply. A refusal is an error with the coordinator's text.
  template <WireMessage Request, WireMessage Reply>
  Status call(const Request& request, Reply& reply, std::string& message,
              std::vector<FileDescriptor>* descriptors = nullptr) {
    std::size_t received = 0;
    Request sent = request;
    say_layout(std::as_writable_bytes(std::span(&sent, 1)));
    if (Status status =
            exchange(std::as_bytes(std::span(&sent, 1)),
                     std::as_writable_bytes(std::span(&reply, 1)), received, descriptors, message);
        !status) {
      return status;
    }
    return judge(std::as_bytes(std::span(&reply, 1)), received, message);
  }

  FileDescriptor take_socket() { return std::move(socket_); }

 private:
  static void say_layout(std::span<std::byte> request);
  Status exchange(std::span<const std::byte> request, std::span<std::byte> reply,
                  std::size_t& received, std::vector<FileDescriptor>* descriptors,
                  std::string& message);
  Status judge(std::span<const std::byte> reply, std::size_t received, std::string& message) const;
  Status wait_for(short events, std::string& message);
  Status failed(Code code, const char* what, int error, std::string& message) const;

  CoordinatorAddress address_;
  FileDescriptor socket_;
  std::int64_t deadline_ms_ = 0;
};

// Statistics of a running coordinator as JSON text.
Result<std::string> request_stats(const CoordinatorAddress& address, std::string& message);
Status ping(const CoordinatorAddress& address, std::string& message);

}  // namespace kvtrie
