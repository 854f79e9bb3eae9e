// The C interface of Zipper to c10d, libtorch's engine for collective communication.
//
// Every function returns a status and, when it is not ZIPPER_C10D_OK, stores a message in `*error` that the caller
// frees with zipper_c10d_string_free. No C++ exception leaves these functions. Output parameters are written only on
// success. Timeouts are milliseconds. Tensors are pointers to at::Tensor that the caller keeps alive during the call.
//
// Threads: the store functions and zipper_c10d_group_abort may be called from any thread at any time. The collectives
// of one group must be called from one thread at a time, in the same order on every rank; so must the functions of a
// reducer, which launches collectives of its groups between `begin` and `finish`.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Raised with every change of this interface; the Rust side checks it before the first call.
#define ZIPPER_C10D_ABI_VERSION 5

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
typedef struct zipper_c10d_reducer zipper_c10d_reducer;

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
zipper_c10d_status zipper_c10d_store_set(
    const zipper_c10d_store* store, const char* key, const char* value, char** error);
// Waits for the value of `key`, which the caller frees with zipper_c10d_string_free.
zipper_c10d_status zipper_c10d_store_get(
    const zipper_c10d_store* store, const char* key, int64_t timeout_ms, char** value, char** error);
// Whether `key` has a value now: `*found` becomes 0 or 1.
zipper_c10d_status zipper_c10d_store_has(
    const zipper_c10d_store* store, const char* key, int32_t* found, char** error);
void zipper_c10d_store_free(zipper_c10d_store* store);

// Connects this rank to every other one; `host` is an address of this machine that the others can reach. Blocks until
// all ranks have come or the timeout has passed.
zipper_c10d_status zipper_c10d_group_gloo(
    const zipper_c10d_store* store, int rank, int world_size, const char* host, int64_t timeout_ms,
    zipper_c10d_group** out, char** error);
#ifdef ZIPPER_CUDA
// The same between GPUs: this rank works on the CUDA device `device_index`. Connections are made by the first collective.
zipper_c10d_status zipper_c10d_group_nccl(
    const zipper_c10d_store* store, int rank, int world_size, int device_index, int64_t timeout_ms,
    zipper_c10d_group** out, char** error);
// The most bytes that libtorch's allocator has had in use on a CUDA device so far, in this process.
zipper_c10d_status zipper_cuda_peak_bytes(int device_index, int64_t* out, char** error);
#endif
// Closes this rank's connections: every collective of every rank fails from here on.
zipper_c10d_status zipper_c10d_group_abort(zipper_c10d_group* group, char** error);
void zipper_c10d_group_free(zipper_c10d_group* group);

// Each blocks until the collective has ended on this rank, or for `timeout_ms`.
zipper_c10d_status zipper_c10d_all_reduce_sum(
    zipper_c10d_group* group, void* tensor, int64_t timeout_ms, char** error);
zipper_c10d_status zipper_c10d_broadcast(
    zipper_c10d_group* group, void* tensor, int root, int64_t timeout_ms, char** error);
// `outputs` holds as many tensors as there are ranks, each of the shape and kind of `tensor`.
zipper_c10d_status zipper_c10d_all_gather(
    zipper_c10d_group* group, void* const* outputs, uint32_t num_outputs, void* tensor, int64_t timeout_ms,
    char** error);
zipper_c10d_status zipper_c10d_barrier(zipper_c10d_group* group, int64_t timeout_ms, char** error);
// Sends tensors, `sent[i]` to rank `to[i]`, and fills `received[i]` from rank `from[i]`. Between two ranks the tensors are matched
// in their order; the other end calls it at the same time with tensors of the same sizes.
zipper_c10d_status zipper_c10d_exchange(
    zipper_c10d_group* group, void* const* sent, const int* to, uint32_t num_sent, void* const* received,
    const int* from, uint32_t num_received, int64_t timeout_ms, char** error);

// Gradients that are summed over ranks in buckets, while the backward pass is still under way.
//
// A bucket is a flat buffer; the gradient of each of its parameters becomes a view of it. A parameter must be a leaf with
// requires_grad, and in one bucket of one reducer only.
zipper_c10d_status zipper_c10d_reducer_new(zipper_c10d_reducer** out, char** error);
// Adds a bucket behind those that are there. Without a group its gradients are not summed. The parameters must have the
// same kind and device.
zipper_c10d_status zipper_c10d_reducer_add_bucket(
    zipper_c10d_reducer* reducer, zipper_c10d_group* group, void* const* params, uint32_t num_params, char** error);
// Sets the gradients of the buckets that are `wanted` (0 or 1 for each) to zero, and takes back views that were replaced.
zipper_c10d_status zipper_c10d_reducer_zero(
    zipper_c10d_reducer* reducer, const uint8_t* wanted, uint32_t num_buckets, char** error);

enum {
  // Not summed this time.
  ZIPPER_C10D_SKIP = 0,
  // Launched as soon as every parameter has got a gradient and all buckets before it are launched.
  ZIPPER_C10D_AS_READY = 1,
  // Launched as soon as all buckets before it are: no more gradients come.
  ZIPPER_C10D_NOW = 2,
  // Launched by finish.
  ZIPPER_C10D_AT_END = 3,
};

// How one bucket fared between begin and finish.
typedef struct zipper_c10d_bucket_report {
  uint64_t bytes;
  // Nanoseconds after begin; -1 where it did not come to that.
  int64_t launched_ns;
  int64_t finished_ns;
} zipper_c10d_bucket_report;

// Called before the last backward pass, with one plan for each bucket.
zipper_c10d_status zipper_c10d_reducer_begin(
    zipper_c10d_reducer* reducer, const int32_t* plans, uint32_t num_plans, int64_t timeout_ms, char** error);
// Launches what is not launched yet, waits for all, and fills one report for each bucket, also when it fails; then
// `failed_bucket` is the bucket at fault. `launched_early` counts the buckets that were launched before this call.
zipper_c10d_status zipper_c10d_reducer_finish(
    zipper_c10d_reducer* reducer, zipper_c10d_bucket_report* reports, uint32_t num_reports, uint32_t* launched_early,
    uint32_t* failed_bucket, char** error);
void zipper_c10d_reducer_free(zipper_c10d_reducer* reducer);

#ifdef __cplusplus
}
#endif
