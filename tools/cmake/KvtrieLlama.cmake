# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors

# The llama.cpp that tools/install-llama fetched, as targets:
#   kvtrie_llamacpp_headers  what the adapter and the preload library include: they link no libllama, they find the one
#                            that is loaded
#   kvtrie_llamacpp          what programs of our own link
# KVTRIE_LLAMA says whether it is there. Without it, and under a sanitizer (libllama has none), these are left out.

set(KVTRIE_LLAMA_DIR "${PROJECT_SOURCE_DIR}/.cache/llama" CACHE PATH "Where tools/install-llama put llama.cpp")
set(KVTRIE_LLAMA OFF)
if(KVTRIE_SANITIZE)
  message(STATUS "kvtrie: no llama.cpp adapter in a build with sanitizers")
elseif(NOT EXISTS "${KVTRIE_LLAMA_DIR}/STAMP")
  message(STATUS
    "kvtrie: no llama.cpp in ${KVTRIE_LLAMA_DIR}, so its adapter is left out; to have it: tools/install-llama")
else()
  set(KVTRIE_LLAMA ON)
  file(READ "${KVTRIE_LLAMA_DIR}/STAMP" stamp)
  string(STRIP "${stamp}" stamp)
  file(READ "${KVTRIE_LLAMA_DIR}/API" KVTRIE_LLAMA_API)
  string(STRIP "${KVTRIE_LLAMA_API}" KVTRIE_LLAMA_API)
  message(STATUS "kvtrie: llama.cpp ${stamp} in ${KVTRIE_LLAMA_DIR}")
  add_library(kvtrie_llamacpp_headers INTERFACE)
  target_include_directories(kvtrie_llamacpp_headers SYSTEM INTERFACE "${KVTRIE_LLAMA_DIR}/include")
  add_library(kvtrie_llamacpp INTERFACE)
  target_link_libraries(kvtrie_llamacpp INTERFACE kvtrie_llamacpp_headers
    "${KVTRIE_LLAMA_DIR}/lib/libllama.v0.5.0.so" "${KVTRIE_LLAMA_DIR}/lib/libggml.v0.5.0.so"
    "${KVTRIE_LLAMA_DIR}/lib/libggml-base.so")
endif()
