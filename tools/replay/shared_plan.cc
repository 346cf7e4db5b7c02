// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/shared_plan.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <stdexcept>
#include <system_error>

namespace kvtrie::replay {
namespace {

constexpr std::uint64_t kPlanMagic = 0x014E'414C'5056'4B52ULL;

constexpr std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 63) / 64 * 64; }

struct PartOffsets {
  std::uint64_t requests, ids, tallies, end;
};

constexpr PartOffsets offsets_of(std::uint64_t header_bytes, std::uint64_t requests,
                                 std::uint64_t ids, std::uint64_t workers) {
  PartOffsets offsets{};
  offsets.requests = aligned(header_bytes);
  offsets.ids = aligned(offsets.requests + requests * sizeof(PlannedRequest));
  offsets.tallies = aligned(offsets.ids + ids * sizeof(std::uint64_t));
  offsets.end = offsets.tallies + workers * sizeof(WorkerTally);
  return offsets;
}

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace

SharedPlan::SharedPlan(std::span<const Request> requests, const PlanSettings& settings,
                       std::uint32_t workers, std::uint32_t tick_base, std::uint64_t extra_bytes) {
  std::uint64_t ids = 0;
  for (const Request& request : requests)
    ids += request.hash_ids.size();
  if (requests.size() >= std::numeric_limits<std::uint32_t>::max()) {
    throw std::runtime_error("too many requests for one replay");
  }
  fd_ = ::memfd_create("kvtrie-replay-plan", MFD_CLOEXEC);
  if (fd_ < 0) fail("memfd_create");
  const std::uint64_t bytes = offsets_of(sizeof(PlanHeader), requests.size(), ids, workers).end + extra_bytes;
  if (::ftruncate(fd_, static_cast<off_t>(bytes)) != 0) fail("the plan's memory");
  map(bytes);
  header_->bytes = bytes;
  header_->id_count = ids;
  header_->request_count = static_cast<std::uint32_t>(requests.size());
  header_->worker_count = workers;
  header_->settings = settings;
  find_parts();

  std::uint64_t first_id = 0;
  std::uint64_t tick = tick_base;
  for (std::uint32_t index = 0; index < request_count(); ++index) {
    const Request& request = requests[index];
    tick = std::max(tick + 1, tick_base + request.timestamp_ms);
    if (tick > std::numeric_limits<std::uint32_t>::max()) {
      throw std::runtime_error("the trace is longer than the cache's clock (2^32 ms)");
    }
    PlannedRequest& to = planned(index);
    to.timestamp_ms = request.timestamp_ms;
    to.first_id = first_id;
    to.id_count = static_cast<std::uint32_t>(request.hash_ids.size());
    to.output_length = request.output_length;
    to.tick = static_cast<std::uint32_t>(tick);
    std::ranges::copy(request.hash_ids, ids_ + first_id);
    first_id += request.hash_ids.size();
  }
  header_->magic = kPlanMagic;
}

SharedPlan::SharedPlan(int fd) : fd_(fd) {
  struct stat state {};
  if (::fstat(fd, &state) != 0) fail("the plan that the parent should have left");
  if (static_cast<std::uint64_t>(state.st_size) < sizeof(PlanHeader)) {
    throw std::runtime_error("not a plan: workers are started by kvtrie-replay itself");
  }
  map(static_cast<std::uint64_t>(state.st_size));
  if (header_->magic != kPlanMagic || header_->bytes != bytes_) {
    throw std::runtime_error("not a plan: workers are started by kvtrie-replay itself");
  }
  find_parts();
}

SharedPlan::~SharedPlan() {
  if (header_ != nullptr) ::munmap(header_, bytes_);
  if (fd_ >= 0) ::close(fd_);
}

void SharedPlan::map(std::uint64_t bytes) {
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (address == MAP_FAILED) fail("mapping the plan");
  header_ = static_cast<PlanHeader*>(address);
  bytes_ = bytes;
}

void SharedPlan::find_parts() {
  const PartOffsets offsets = offsets_of(sizeof(PlanHeader), header_->request_count,
                                         header_->id_count, header_->worker_count);
  auto* base = reinterpret_cast<std::byte*>(header_);
  requests_ = reinterpret_cast<PlannedRequest*>(base + offsets.requests);
  ids_ = reinterpret_cast<std::uint64_t*>(base + offsets.ids);
  tallies_ = reinterpret_cast<WorkerTally*>(base + offsets.tallies);
}

Request SharedPlan::request(std::uint32_t index) const {
  const PlannedRequest& from = planned(index);
  Request request;
  request.timestamp_ms = from.timestamp_ms;
  request.input_length = from.id_count * static_cast<std::uint32_t>(kBlockTokens);
  request.output_length = from.output_length;
  request.hash_ids.assign(ids_ + from.first_id, ids_ + from.first_id + from.id_count);
  return request;
}

std::optional<std::uint32_t> SharedPlan::take(std::uint32_t worker) {
  std::uint64_t seen = header_->first_open.load(std::memory_order_acquire);
  for (auto index = static_cast<std::uint32_t>(seen); index < request_count(); ++index) {
    std::uint32_t owner = kOpen;
    if (!planned(index).owner.compare_exchange_strong(owner, worker + 1)) continue;
    // Fails when another worker or the parent has moved it: it is only a hint.
    header_->first_open.compare_exchange_strong(seen, (seen >> 32 << 32) | (index + 1));
    return index;
  }
  return {};
}

void SharedPlan::finish(std::uint32_t index, bool served) {
  planned(index).owner.store(served ? kServed : kFailed, std::memory_order_release);
  header_->finished.fetch_add(1, std::memory_order_release);
}

std::uint32_t SharedPlan::reopen(std::uint32_t worker) {
  std::uint32_t opened = 0;
  for (std::uint32_t index = 0; index < request_count(); ++index) {
    std::uint32_t owner = worker + 1;
    if (planned(index).owner.compare_exchange_strong(owner, kOpen)) ++opened;
  }
  // After the owner words: who reads the new hint finds them open.
  const std::uint64_t epoch = header_->first_open.load(std::memory_order_relaxed) >> 32;
  if (opened > 0) header_->first_open.store((epoch + 1) << 32, std::memory_order_release);
  return opened;
}

void SharedPlan::open_all() {
  for (std::uint32_t index = 0; index < request_count(); ++index)
    planned(index).owner.store(kOpen, std::memory_order_relaxed);
  header_->finished.store(0, std::memory_order_relaxed);
  header_->first_open.store(0, std::memory_order_release);
  ++rounds_;
}

std::uint32_t SharedPlan::count_unfinished() const {
  std::uint32_t unfinished = 0;
  for (std::uint32_t index = 0; index < request_count(); ++index) {
    const std::uint32_t owner = planned(index).owner.load(std::memory_order_acquire);
    if (owner != kServed && owner != kFailed) ++unfinished;
  }
  return unfinished;
}

}  // namespace kvtrie::replay
