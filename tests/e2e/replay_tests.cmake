# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors

kvtrie_add_test(e2e_replay_model_test
  SOURCES replay_model_test.cc
  DEPS kvtrie::reference kvtrie::shm
  PROGRAMS kvtried kvtrie-replay kvtrie_worker
  LABELS e2e
  TIMEOUT 120)
kvtrie_add_test(e2e_replay_test
  SOURCES replay_test.cc
  DEPS kvtrie::replay_engine kvtrie::shm
  PROGRAMS kvtried kvtrie-replay kvtrie_worker
  LABELS e2e
  TIMEOUT 120)
kvtrie_add_test(e2e_replay_mix_test
  SOURCES replay_mix_test.cc
  DEPS kvtrie::replay_engine kvtrie::shm
  PROGRAMS kvtrie kvtried kvtrie-replay kvtrie_worker
  DEFINITIONS KVTRIE_TEST_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
  LABELS e2e
  TIMEOUT 60)
kvtrie_add_test(e2e_storm_test
  SOURCES storm_test.cc
  DEPS kvtrie::shm
  PROGRAMS kvtried kvtrie-replay kvtrie_worker
  LABELS e2e
  TIMEOUT 120)
kvtrie_add_test(e2e_warm_start_test
  SOURCES warm_start_test.cc
  DEPS kvtrie::shm nlohmann_json::nlohmann_json
  PROGRAMS kvtrie kvtried kvtrie-replay kvtrie_worker
  LABELS e2e
  TIMEOUT 120)
