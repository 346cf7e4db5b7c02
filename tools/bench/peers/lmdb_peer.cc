// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <fmt/format.h>
#include <lmdb.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <utility>

#include "tools/bench/peers/all_peers.h"

namespace kvtrie::bench {
namespace {

void expect(int rc, const char* call) {
  if (rc != MDB_SUCCESS) throw std::runtime_error(fmt::format("LMDB: {}: {}", call, ::mdb_strerror(rc)));
}

class Environment {
 public:
  Environment(const std::string& directory, std::uint64_t pages, unsigned flags) {
    expect(::mdb_env_create(&environment_), "mdb_env_create");
    try {
      expect(::mdb_env_set_mapsize(environment_, pages * 256 + (1U << 20)), "mdb_env_set_mapsize");
      expect(::mdb_env_open(environment_, directory.c_str(), flags, 0600), "mdb_env_open");
    } catch (...) {
      ::mdb_env_close(environment_);
      throw;
    }
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;
  ~Environment() { ::mdb_env_close(environment_); }
  MDB_env* get() const { return environment_; }

 private:
  MDB_env* environment_ = nullptr;
};

class LmdbLookup : public Lookup {
 public:
  LmdbLookup(const std::string& directory, std::uint64_t pages)
      : environment_(directory, pages, MDB_RDONLY | MDB_NOTLS) {
    expect(::mdb_txn_begin(environment_.get(), nullptr, MDB_RDONLY, &transaction_), "mdb_txn_begin");
    expect(::mdb_dbi_open(transaction_, nullptr, MDB_INTEGERKEY, &database_), "mdb_dbi_open");
    ::mdb_txn_reset(transaction_);
  }
  LmdbLookup(const LmdbLookup&) = delete;
  LmdbLookup& operator=(const LmdbLookup&) = delete;
  ~LmdbLookup() override { ::mdb_txn_abort(transaction_); }

  std::uint32_t find(std::span<const std::uint32_t> tokens, std::uint32_t* pages) override {
    expect(::mdb_txn_renew(transaction_), "mdb_txn_renew");
    std::uint32_t found = 0;
    for_each_page(tokens, [&](std::uint64_t hash, auto, std::uint32_t i) {
      MDB_val key{sizeof hash, &hash};
      MDB_val value{};
      const int rc = ::mdb_get(transaction_, database_, &key, &value);
      if (rc == MDB_NOTFOUND) return false;
      expect(rc, "mdb_get");
      std::memcpy(pages + i, value.mv_data, sizeof *pages);
      found = i + 1;
      return true;
    });
    ::mdb_txn_reset(transaction_);
    return found;
  }

 private:
  Environment environment_;
  MDB_txn* transaction_ = nullptr;
  MDB_dbi database_ = 0;
};

class LmdbPeer : public Peer {
 public:
  LmdbPeer(const Corpus& corpus, const std::string& directory)
      : directory_(directory + "/lmdb"), pages_(pages_of(corpus)) {
    std::filesystem::create_directory(directory_);
    std::vector<std::pair<std::uint64_t, std::uint32_t>> entries;
    entries.reserve(pages_);
    for (const CachedPrompt& prompt : corpus) {
      for_each_page(prompt.tokens, [&](std::uint64_t hash, auto, std::uint32_t i) {
        entries.emplace_back(hash, prompt.pages[i]);
        return true;
      });
    }
    std::ranges::sort(entries);
    // Nothing here is to survive the machine, so nothing is synchronized.
    const Environment environment(directory_, pages_, MDB_WRITEMAP | MDB_NOSYNC);
    MDB_txn* transaction = nullptr;
    MDB_dbi database = 0;
    expect(::mdb_txn_begin(environment.get(), nullptr, 0, &transaction), "mdb_txn_begin");
    try {
      expect(::mdb_dbi_open(transaction, nullptr, MDB_INTEGERKEY, &database), "mdb_dbi_open");
      for (auto& [hash, page] : entries) {
        MDB_val key{sizeof hash, &hash};
        MDB_val value{sizeof page, &page};
        expect(::mdb_put(transaction, database, &key, &value, MDB_APPEND), "mdb_put");
      }
    } catch (...) {
      ::mdb_txn_abort(transaction);
      throw;
    }
    expect(::mdb_txn_commit(transaction), "mdb_txn_commit");
    MDB_envinfo info{};
    MDB_stat stat{};
    expect(::mdb_env_info(environment.get(), &info), "mdb_env_info");
    expect(::mdb_env_stat(environment.get(), &stat), "mdb_env_stat");
    bytes_ = static_cast<double>(info.me_last_pgno + 1) * stat.ms_psize;
  }
  std::string name() const override { return "LMDB"; }
  std::string configuration() const override {
    return fmt::format(
        "version {}.{}.{}; file in memory, written sorted with MDB_APPEND; key: the chained hash with MDB_INTEGERKEY "
        "(native order), value: 4 bytes; the hash decides; MDB_RDONLY, MDB_NOTLS and one transaction that is reset and "
        "renewed for each prompt (its documentation: saves allocation and the lock of the reader table); one mdb_get a "
        "page, until one is not there",
        MDB_VERSION_MAJOR, MDB_VERSION_MINOR, MDB_VERSION_PATCH);
  }
  std::unique_ptr<Lookup> open() const override { return std::make_unique<LmdbLookup>(directory_, pages_); }
  std::optional<double> shared_bytes() const override { return bytes_; }

 private:
  std::string directory_;
  std::uint64_t pages_;
  double bytes_ = 0;
};

}  // namespace

std::unique_ptr<Peer> make_lmdb(const Corpus& corpus, const std::string& directory) {
  return std::make_unique<LmdbPeer>(corpus, directory);
}

}  // namespace kvtrie::bench
