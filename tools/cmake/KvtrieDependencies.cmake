# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors

# Every library that kvtrie uses, as a target. tools/install-deps installs the Debian packages.

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(Boost 1.81 REQUIRED)                  # Boost::headers
find_package(fmt 9 REQUIRED)                       # fmt::fmt
find_package(prometheus-cpp CONFIG REQUIRED)       # prometheus-cpp::core, and civetweb::civetweb-cpp that it is built on
find_package(tomlplusplus CONFIG REQUIRED)         # tomlplusplus::tomlplusplus
find_package(CLI11 CONFIG REQUIRED)                # CLI11::CLI11
find_package(nlohmann_json 3 CONFIG REQUIRED)      # nlohmann_json::nlohmann_json

# xxHash is used header-only, so that the compiler inlines short hashes on the lookup path.
find_path(KVTRIE_XXHASH_INCLUDE_DIR xxhash.h REQUIRED)
add_library(kvtrie_xxhash INTERFACE)
add_library(kvtrie::xxhash ALIAS kvtrie_xxhash)
target_include_directories(kvtrie_xxhash SYSTEM INTERFACE "${KVTRIE_XXHASH_INCLUDE_DIR}")
target_compile_definitions(kvtrie_xxhash INTERFACE XXH_INLINE_ALL)

if(KVTRIE_BUILD_TOOLS)
  find_package(benchmark CONFIG)                   # benchmark::benchmark, optional
  # What kvtrie-bench compares with, each optional: kvtrie_peer_lmdb, _absl, _hiredis, _zeromq. The report says which is missing.
  function(kvtrie_find_peer name header library)
    find_path(KVTRIE_PEER_${name}_INCLUDE_DIR ${header})
    find_library(KVTRIE_PEER_${name}_LIBRARY ${library})
    if(KVTRIE_PEER_${name}_INCLUDE_DIR AND KVTRIE_PEER_${name}_LIBRARY)
      add_library(kvtrie_peer_${name} INTERFACE)
      target_include_directories(kvtrie_peer_${name} SYSTEM INTERFACE "${KVTRIE_PEER_${name}_INCLUDE_DIR}")
      target_link_libraries(kvtrie_peer_${name} INTERFACE "${KVTRIE_PEER_${name}_LIBRARY}" ${ARGN})
    endif()
  endfunction()
  find_package(absl CONFIG QUIET)
  if(TARGET absl::flat_hash_map)
    add_library(kvtrie_peer_absl INTERFACE)
    target_link_libraries(kvtrie_peer_absl INTERFACE absl::flat_hash_map)
  endif()
  kvtrie_find_peer(lmdb lmdb.h lmdb)
  find_program(KVTRIE_REDIS_SERVER redis-server)
  if(KVTRIE_REDIS_SERVER)
    kvtrie_find_peer(hiredis hiredis/hiredis.h hiredis)
  endif()
  if(TARGET kvtrie_peer_absl)                      # its server looks up in a map of absl
    kvtrie_find_peer(zeromq zmq.hpp zmq kvtrie_peer_absl)
  endif()
endif()
if(KVTRIE_BUILD_TESTS)
  find_package(GTest 1.12 CONFIG REQUIRED)         # GTest::gtest, GTest::gtest_main, GTest::gmock
  include(GoogleTest)
endif()
