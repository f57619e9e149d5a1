// A network of integers as one operation of an XLA program: a few examples at a time go through all layers, so that
// what lies between layers stays in the processor's caches, and threads meet once.
//
// A plan says what is done: buffers, then steps (`integers.py` writes it). Bytes are unsigned here: what is stored as
// int8, plus 128. Every step's reads and writes are checked against its buffers before the first is run.

#include <pthread.h>

#include "threads.h"

#include "integer_plan.h"

#include "integer_steps.h"

// What a thread computes in is kept for its next call and freed with it.
typedef struct {
  int64_t bytes;
  char *room;
} Kept;

static pthread_key_t of_thread;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int has_key;

static void forgotten(void *kept) {
  if (kept != NULL) free(((Kept *)kept)->room);
  free(kept);
}

static void with_key(void) { has_key = pthread_key_create(&of_thread, forgotten) == 0; }

// The calling thread's bytes, at least so many, of which none was never written; NULL where there is no memory.
static char *kept_room(int64_t bytes) {
  pthread_once(&once, with_key);
  Kept *kept = has_key ? pthread_getspecific(of_thread) : NULL;
  if (kept != NULL && kept->bytes >= bytes) return kept->room;
  if (!has_key) return NULL;
  if (kept == NULL) {
    kept = calloc(1, sizeof(Kept));
    if (kept == NULL || pthread_setspecific(of_thread, kept)) return free(kept), NULL;
  }
  free(kept->room);
  *kept = (Kept){.bytes = 0, .room = room(bytes)};
  if (kept->room == NULL) return NULL;
  kept->bytes = bytes;
  return memset(kept->room, 0, bytes);
}

// The calling thread's room for some examples and for what a step needs beside; NULL without memory.
static char *arena_of(const Network *of, char **scratch) {
  int64_t arena = of->head->arena * of->each;
  char *kept = kept_room(arena + of->scratch + 2 * SLACK);
  *scratch = kept + (arena + SLACK + 63) / 64 * 64;
  return kept;
}

static int piece(void *data, int index) {
  const Network *of = data;
  int64_t first = index * of->each, examples = of->batch - first < of->each ? of->batch - first : of->each;
  char *scratch, *arena = arena_of(of, &scratch);
  if (arena == NULL) return -1;
  for (int64_t i = 0; i < of->head->steps; i++) run_step(of, &of->steps[i], first, examples, arena, scratch);
  return 0;
}

// Where there are fewer examples than threads, each step is shared: its parts are taken in order, and one is begun when
// all of the steps before it are done.
typedef struct {
  const Network *of;
  const int *begins;  // of each step its first part among all of an example, and how many they are
  char *arena;
  atomic_int done;
} Team;

static int part_of_step(void *data, int index) {
  Team *team = data;
  const Network *of = team->of;
  int64_t steps = of->head->steps, low = 0, high = steps;
  int each = team->begins[steps], example = index / each, part = index % each;
  while (high - low > 1) {  // the last step that begins here or before
    int64_t middle = (low + high) / 2;
    if (team->begins[middle] <= part) low = middle;
    else high = middle;
  }
  char *scratch, *own = arena_of(of, &scratch);
  for (int turn = 0; atomic_load(&team->done) < example * each + team->begins[low]; turn++) rest(turn);
  Part_of mine = {part - team->begins[low], team->begins[low + 1] - team->begins[low]};
  if (own != NULL) run_part(of, &of->steps[low], example, 0, team->arena, scratch, mine);
  atomic_fetch_add(&team->done, 1);  // even then: others wait for it
  return own == NULL ? -1 : 0;
}

// About nanoseconds, of `work_of`: what is worth sharing, and a part of it. On a busy machine the others of a team may
// be held up for milliseconds, which a network that takes less alone should not wait for.
#if !defined(SHARED_FROM)
#define SHARED_FROM 1000000
#define PART_FROM 8000
#endif

// 1 where steps are not to be shared.
static int run_team(Network *of, XLA_FFI_CallFrame *frame, int64_t members) {
  int64_t steps = of->head->steps, all = 0, parts = 0;
  for (int64_t i = 0; i < steps; i++) all += work_of(&of->steps[i]);
  if (members < 2 || of->batch > members / 2 || all < SHARED_FROM) return 1;
  int *begins = malloc((steps + 1) * sizeof(int));
  if (begins == NULL) return -1;
  for (int64_t i = 0; i < steps; i++) {
    int64_t most = work_of(&of->steps[i]) / PART_FROM;
    begins[i] = (int)parts;
    parts += most < 2 ? 1 : most < 2 * members ? most < members ? most : members : 2 * members;
    if (parts > INT32_MAX / of->batch / 2) break;
  }
  begins[steps] = (int)parts;
  char *scratch;
  of->each = 1;
  Team team = {.of = of, .begins = begins, .arena = arena_of(of, &scratch)};
  int status = -1;
  if (parts > INT32_MAX / of->batch / 2) status = 1;
  else if (team.arena != NULL) status = share(frame, (int)(parts * of->batch), part_of_step, &team);
  free(begins);
  return status;
}

// More examples at once read the weights less often, fewer leave every thread something to do.
static int run_network(Network *of, XLA_FFI_CallFrame *frame, int64_t members) {
  if (of->batch < 1) return 0;
  int status = run_team(of, frame, members);
  if (status < 1) return status;
  int64_t most = (of->batch + 2 * members - 1) / (2 * members);
  of->each = of->head->at_once < most ? of->head->at_once : most;
  if (of->batch / (INT32_MAX / 2) >= of->each) return 1;  // more pieces than there are numbers for
  return share(frame, (int)((of->batch + of->each - 1) / of->each), piece, of);
}

// Runs a plan on the caller's thread alone, as `members` would share it: 0 where all went well, 1 where the plan cannot
// be meant, -1 without memory.
int jaxlite_network(const int64_t *plan, int64_t words, int64_t batch, const char *weights, const char **given,
                    char **found, int64_t members) {
  Network of = {.weights = weights, .batch = batch};
  if (members < 1 || !parted(&of, plan, words) || !sound(&of)) return 1;
  for (int64_t i = 0; i < of.head->inputs; i++) of.given[i] = given[i];
  for (int64_t i = 0; i < of.head->outputs; i++) of.found[i] = found[i];
  return run_network(&of, NULL, members);
}

// Bytes of an array whose first axis is the batch, of one example; -1 where it is none of the batch or of no such kind.
static int64_t of_example(const XLA_FFI_Buffer *one, int64_t batch) {
  int64_t bytes = one->dtype == XLA_FFI_DataType_F32 ? 4 : one->dtype == XLA_FFI_DataType_S8 ? 1 : -1;
  if (bytes < 0 || one->rank < 1 || batch < 1 || one->dims[0] % batch) return -1;
  for (int64_t axis = 0; axis < one->rank; axis++)
    if (__builtin_mul_overflow(bytes, axis ? one->dims[axis] : one->dims[0] / batch, &bytes)) return -1;
  return bytes;
}

static int all_arrays(const XLA_FFI_CallFrame *frame) {
  for (int64_t i = 0; i < frame->args.size; i++)
    if (frame->args.types[i] != XLA_FFI_ArgType_BUFFER) return 0;
  for (int64_t i = 0; i < frame->rets.size; i++)
    if (frame->rets.types[i] != XLA_FFI_RetType_BUFFER) return 0;
  return 1;
}

// Whether two runs of bytes share one.
static int meet(const void *a, int64_t a_bytes, const void *b, int64_t b_bytes) {
  uintptr_t from = (uintptr_t)a, to = (uintptr_t)b;
  return from < to + (uintptr_t)b_bytes && to < from + (uintptr_t)a_bytes;
}

XLA_FFI_Error *jaxlite_integers(XLA_FFI_CallFrame *frame) {
  if (only_asks(frame)) return NULL;
  Network of = {0};
  if (frame->attrs.size != 1 || frame->attrs.types[0] != XLA_FFI_AttrType_ARRAY)
    return fail(frame, "integers: no plan");
  const XLA_FFI_Array *plan = frame->attrs.attrs[0];
  if (plan->dtype != XLA_FFI_DataType_S64 || !parted(&of, plan->data, plan->size))
    return fail(frame, "integers: this program was compiled for another version");
  const Head *head = of.head;
  if (!within(&head->inputs, 0, 2, 1, OPERANDS) || frame->args.size != head->inputs + 1 ||
      frame->rets.size != head->outputs || !all_arrays(frame))
    return fail(frame, "integers: other operands than the plan's");
  const XLA_FFI_Buffer *weights = frame->args.args[head->inputs], *first = frame->args.args[0];
  of.weights = weights->data;
  if (weights->dtype != XLA_FFI_DataType_S8 || weights->rank != 1 || weights->dims[0] != head->weights || !sound(&of))
    return fail(frame, "integers: a plan that cannot be run");
  if (first->rank < 1) return fail(frame, "integers: operands of other sizes");
  of.batch = first->dims[0];
  if (of.batch == 0) return NULL;
  for (int64_t i = 0; i < head->buffers; i++) {
    const Buffer *one = &of.buffers[i];
    if (one->place == ARENA) continue;
    const XLA_FFI_Buffer *array = one->place == GIVEN ? frame->args.args[one->at] : frame->rets.rets[one->at];
    if (of_example(array, of.batch) != one->bytes) return fail(frame, "integers: operands of other sizes");
    if (one->place == FOUND && meet(array->data, one->bytes * of.batch, weights->data, head->weights))
      return fail(frame, "integers: a result lies in the weights, which would change what was checked");
  }
  for (int64_t i = 0; i < head->inputs; i++) of.given[i] = argument(frame, (int)i);
  for (int64_t i = 0; i < head->outputs; i++) of.found[i] = ((XLA_FFI_Buffer *)frame->rets.rets[i])->data;
  return run_network(&of, frame, threads(frame)) ? fail(frame, "integers: no memory for a network") : NULL;
}
