/* SPDX-License-Identifier: Apache-2.0
 * Copyright The kvtrie authors
 *
 * What the stub of the CUDA driver shows beside the driver's calls: a test finds these with dlsym. The stub is a
 * libcuda.so.1 without a GPU: allocations are memory files, so an exported descriptor can be mapped. It has two devices;
 * the second one cannot export memory. */
#ifndef KVTRIE_STUB_CUDA_H
#define KVTRIE_STUB_CUDA_H

#ifdef __cplusplus
extern "C" {
#endif

/* Forgets what was recorded. The n-th call from now on fails with CUDA_ERROR_OUT_OF_MEMORY; 0: none. It does
 * nothing then, but that calls which give back do so all the same. */
void stub_cuda_reset(int fail_at);
/* The calls since then, one a line: "cuMemCreate 2097152". */
const char* stub_cuda_calls(void);
/* What is held at the moment: contexts retained, allocations, address ranges, mappings, contexts pushed. */
int stub_cuda_held(void);

#ifdef __cplusplus
}
#endif

#endif
