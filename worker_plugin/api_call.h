// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What the calls of kvtrie.h have in common: the way in and out of a handle, and refusals in words.
#pragma once

#include <cstdint>
#include <exception>
#include <new>

#include "worker_plugin/attachment.h"
#include "worker_plugin/handle_table.h"
#include "worker_plugin/kvtrie.h"
#include "worker_plugin/last_error.h"
#include "worker_plugin/option_structs.h"

namespace kvtrie {

// Nothing leaves a call but a code.
template <typename Body>
kvtrie_code guarded(const char* call, Body body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(Code::kSystem, "{}: out of memory", call);
  } catch (const std::exception& failure) {
    return fail(Code::kSystem, "{}: {}", call, failure.what());
  } catch (...) {
    return fail(Code::kSystem, "{}: unexpected failure", call);
  }
}

// Inside a call: leaves its slot at the end, or ends it.
class Call {
 public:
  explicit Call(Inside inside) : inside_(inside) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    if (inside_.code != Code::kOk) return;
    if (ends_) {
      handle_table().end(inside_.slot);
    } else {
      handle_table().leave(inside_.slot);
    }
  }

  bool entered() const { return inside_.code == Code::kOk; }
  Code code() const { return inside_.code; }
  AttachedCache& cache() const { return *inside_.cache; }
  Worker& worker() const { return inside_.cache->worker(); }
  Sequence& sequence() const { return handle_table().sequence(inside_.slot); }
  void end_after() { ends_ = true; }
  std::uint64_t leave_now() {
    inside_.code = Code::kStale;  // nothing left to do at the end
    return handle_table().leave(inside_.slot);
  }

 private:
  Inside inside_;
  bool ends_ = false;
};

// A call with a worker and without a sequence, or before there is one.
inline Call enter_worker(kvtrie_worker worker) { return Call(handle_table().enter(worker.id)); }
inline Call enter_sequence(kvtrie_sequence sequence) {
  return Call(handle_table().enter_sequence(sequence.id));
}

// Each sets the thread's message and gives the code back. `call` is the name of the function in kvtrie.h.
kvtrie_code stale_worker(const char* call, std::uint64_t id);
kvtrie_code not_entered(const char* call, kvtrie_worker worker, Code code);
kvtrie_code not_entered(const char* call, kvtrie_sequence sequence, Code code);
kvtrie_code null_argument(const char* call, const char* name);
// The core's answer with the cache's name.
kvtrie_code failed(const char* call, const AttachedCache& cache, const Status& status);

// Positions and token counts of one sequence stay far from 2^32.
inline constexpr std::uint64_t kTokensMax = INT32_MAX;

kvtrie_code too_many_tokens(const char* call, std::uint64_t count);
// options may be null: all 0. On failure `out` is not to be used.
kvtrie_code read_begin_options(const char* call, const kvtrie_begin_options* options, SequenceOptions& out);
kvtrie_begin_result result_of(const AttachedCache& cache, const Sequence& sequence, const BeginReport& report);
kvtrie_code no_namespace(const char* call, kvtrie_namespace name_space);
// KVTRIE_OK: only flags that allocate, fork and prepare_batch know.
kvtrie_code allocate_flags_problem(const char* call, std::uint32_t flags);
// In nanoseconds; 0 with KVTRIE_NO_WAIT.
std::int64_t wait_ns_of(std::uint32_t flags, std::uint32_t wait_ms);
// What the core asks to be copied for this sequence, unless the caller does it or this process cannot.
void copy_what_is_due(AttachedCache& cache, Sequence& sequence, std::uint32_t flags);
// For pages: how many there are, beside what the core says.
kvtrie_code no_pages(const char* call, const AttachedCache& cache, const Status& status, std::uint64_t tokens);

template <SizedStruct T>
kvtrie_code wrong_size(const char* call, const char* name, const T& given) {
  return fail(Code::kInvalid,
              "{}: {}->size is {}; set it to sizeof({}), which is at most {} in this library", call,
              name, given.size, name, sizeof(T));
}

}  // namespace kvtrie
