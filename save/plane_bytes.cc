// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "save/plane_bytes.h"

#include "save/whole_io.h"

namespace kvtrie {

Status PlaneBytes::read(PageIndex page, std::uint32_t plane, std::uint64_t offset,
                        std::span<std::byte> into) const {
  const Result<std::size_t> got =
      read_at(descriptors_[plane], page.value * page_bytes_ + offset, into);
  if (!got) return got.error();
  if (*got != into.size()) return {Code::kCorrupt, "a pool is shorter than its segment says"};
  return {};
}

Status PlaneBytes::write(PageIndex page, std::uint32_t plane, std::uint64_t offset,
                         std::span<const std::byte> from) const {
  return write_at(descriptors_[plane], page.value * page_bytes_ + offset, from);
}

}  // namespace kvtrie
