// What handlers in C share: how XLA is answered, and how work is shared with its own threads.

#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "xla/ffi/api/c_api.h"

// Pieces of work, taken one after the other by whichever thread is free; whoever leaves last frees it.
typedef struct {
  int (*piece)(void *data, int index);  // returns 0 where all is well
  void *data;
  int count;
  atomic_int next, done, users, failed;
} Job;

static void leave(Job *job) {
  if (atomic_fetch_sub(&job->users, 1) == 1) free(job);
}

static void work(Job *job) {
  int index;
  while ((index = atomic_fetch_add(&job->next, 1)) < job->count) {
    int status = job->piece(job->data, index);
    if (status) atomic_store(&job->failed, status);
    atomic_fetch_add(&job->done, 1);
  }
}

static void helper(void *data) {
  work(data);
  leave(data);
}

static void forget(XLA_FFI_CallFrame *frame, XLA_FFI_Error *error) {
  XLA_FFI_Error_Destroy_Args gone = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
  frame->api->XLA_FFI_Error_Destroy(&gone);
}

// Threads that XLA has for a call, at least one; without a frame the caller's alone.
static int64_t threads(XLA_FFI_CallFrame *frame) {
  int64_t found = 1;
  if (frame == NULL) return 1;
  XLA_FFI_ThreadPool_NumThreads_Args asked = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx,
                                              &found};
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_NumThreads(&asked);
  if (error != NULL) forget(frame, error);
  return error == NULL && found > 1 ? found : 1;
}

// Waiting for another thread, the so manieth time.
static void rest(int turn) {
  if (turn > 1000) sched_yield();
#if defined(__x86_64__) || defined(__i386__)
  else __builtin_ia32_pause();
#endif
}

// Does all pieces, on as many of XLA's threads as are free: whatever no other thread has begun, the caller does.
// Without a frame the caller does them all.
static int share(XLA_FFI_CallFrame *frame, int count, int (*piece)(void *, int), void *data) {
  Job *job = malloc(sizeof(Job));
  if (job == NULL) return -1;
  *job = (Job){.piece = piece, .data = data, .count = count};
  atomic_store(&job->users, 1);
  int64_t all = threads(frame);
  XLA_FFI_Error *error = NULL;
  for (int i = 1; error == NULL && i < count && i < all; i++) {
    atomic_fetch_add(&job->users, 1);
    XLA_FFI_ThreadPool_Schedule_Args task = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, helper,
                                             job};
    error = frame->api->XLA_FFI_ThreadPool_Schedule(&task);
    if (error != NULL) leave(job);
  }
  if (error != NULL) forget(frame, error);  // no threads to share with
  work(job);
  for (int turn = 0; atomic_load(&job->done) < count; turn++) rest(turn);
  int status = atomic_load(&job->failed);
  leave(job);
  return status;
}

static XLA_FFI_Error *fail(XLA_FFI_CallFrame *frame, const char *message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, message, XLA_FFI_Error_Code_INTERNAL};
  return frame->api->XLA_FFI_Error_Create(&args);
}

// Whether a call only asks for the version that a handler was built for, or for nothing that is to be done.
static int only_asks(XLA_FFI_CallFrame *frame) {
  if (frame->extension_start != NULL && frame->extension_start->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
    metadata->api_version.major_version = XLA_FFI_API_MAJOR;
    metadata->api_version.minor_version = XLA_FFI_API_MINOR;
    return 1;
  }
  return frame->stage != XLA_FFI_ExecutionStage_EXECUTE;
}

static char *argument(XLA_FFI_CallFrame *frame, int index) { return ((XLA_FFI_Buffer *)frame->args.args[index])->data; }

static inline char *result(XLA_FFI_CallFrame *frame) { return ((XLA_FFI_Buffer *)frame->rets.rets[0])->data; }

// Whether a call has two operands and a result, each of so many values, float32 or, where `halves` says so, bfloat16: a
// program that was made or changed by others may say anything, and nothing is read before this is known.
static inline int fits(XLA_FFI_CallFrame *frame, const int64_t *values, const int64_t *halves) {
  if (frame->args.size != 2 || frame->rets.size != 1) return 0;
  for (int i = 0; i < 3; i++) {
    int of_result = i == 2;
    int plain = of_result ? frame->rets.types[0] == XLA_FFI_RetType_BUFFER
                          : frame->args.types[i] == XLA_FFI_ArgType_BUFFER;
    if (!plain) return 0;
    const XLA_FFI_Buffer *buffer = of_result ? frame->rets.rets[0] : frame->args.args[i];
    if (buffer->dtype != (halves[i] ? XLA_FFI_DataType_BF16 : XLA_FFI_DataType_F32)) return 0;
    int64_t found = 1;
    for (int64_t axis = 0; axis < buffer->rank; axis++)
      if (__builtin_mul_overflow(found, buffer->dims[axis], &found)) return 0;
    if (found != values[i]) return 0;
  }
  return 1;
}

static void *room(size_t bytes) { return aligned_alloc(64, (bytes + 64) / 64 * 64); }  // never none
