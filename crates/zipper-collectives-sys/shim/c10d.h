// The C interface of Zipper to c10d, libtorch's engine for collective communication.
//
// Every function returns a status and, when it is not ZIPPER_C10D_OK, stores a message in `*error` that the caller
// frees with zipper_c10d_string_free. No C++ exception leaves these functions. Output parameters are written only on
// success. Timeouts are milliseconds. Tensors are pointers to at::Tensor that the caller keeps alive during the call.
//
// Threads: the store functions and zipper_c10d_group_abort may be called from any thread at any time. The collectives
// of one group must be called from one thread at a time, in the same order on every rank.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Raised with every change of this interface; the Rust side checks it before the first call.
#define ZIPPER_C10D_ABI_VERSION 1

typedef int32_t zipper_c10d_status;
enum {
  ZIPPER_C10D_OK = 0,
  // Something that has no type of its own; Gloo reports everything this way.
  ZIPPER_C10D_OTHER = 1,
  ZIPPER_C10D_TIMEOUT = 2,
  ZIPPER_C10D_NETWORK = 3,
  ZIPPER_C10D_STORE = 4,
  ZIPPER_C10D_BACKEND = 5,
};

typedef struct zipper_c10d_store zipper_c10d_store;
typedef struct zipper_c10d_group zipper_c10d_group;

uint32_t zipper_c10d_abi_version(void);
void zipper_c10d_string_free(char* string);

// Serves a store on `listen_fd`, a socket that is already listening on `port` of `host`. The store owns the socket from
// here on, also when this function fails.
zipper_c10d_status zipper_c10d_store_serve(
    int listen_fd, const char* host, uint16_t port, int64_t timeout_ms, zipper_c10d_store** out, char** error);
zipper_c10d_status zipper_c10d_store_connect(
    const char* host, uint16_t port, int64_t timeout_ms, zipper_c10d_store** out, char** error);
// The same store with `prefix` before every key.
zipper_c10d_status zipper_c10d_store_prefix(
    const zipper_c10d_store* store, const char* prefix, zipper_c10d_store** out, char** error);
void zipper_c10d_store_free(zipper_c10d_store* store);

// Connects this rank to every other one; `host` is an address of this machine that the others can reach. Blocks until
// all ranks have come or the timeout has passed.
zipper_c10d_status zipper_c10d_group_gloo(
    const zipper_c10d_store* store, int rank, int world_size, const char* host, int64_t timeout_ms,
    zipper_c10d_group** out, char** error);
// Closes this rank's connections: every collective of every rank fails from here on.
zipper_c10d_status zipper_c10d_group_abort(zipper_c10d_group* group, char** error);
void zipper_c10d_group_free(zipper_c10d_group* group);

// Each blocks until the collective has ended on this rank.
zipper_c10d_status zipper_c10d_all_reduce_sum(zipper_c10d_group* group, void* tensor, char** error);
zipper_c10d_status zipper_c10d_broadcast(zipper_c10d_group* group, void* tensor, int root, char** error);
// `outputs` holds as many tensors as there are ranks, each of the shape and kind of `tensor`.
zipper_c10d_status zipper_c10d_all_gather(
    zipper_c10d_group* group, void* const* outputs, uint32_t num_outputs, void* tensor, char** error);
zipper_c10d_status zipper_c10d_barrier(zipper_c10d_group* group, char** error);

#ifdef __cplusplus
}
#endif
