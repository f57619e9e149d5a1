// A product by oneDNN as an operation of an XLA program, without Python and on XLA's own threads.
//
// `onednn.py` makes the kernels and `onednn_handlers.py` compiles this file where there is a C compiler; the functions
// of oneDNN come as addresses. The chunks of a sum are added in order, so the bits do not depend on the threads.

#include <pthread.h>

#include "threads.h"

enum { FORWARD, INPUT, WEIGHT };
enum { SRC = 1, DST = 17, SCRATCHPAD = 80 };

typedef struct {
  int number;
  void *memory;
} Arg;

// What the library is called by, in the order in which onednn_handlers.py gives it.
static struct {
  int (*stream_create)(void **, void *, unsigned);
  int (*memory_create)(void **, const void *, void *, void *);
  int (*set)(void *, void *);
  int (*execute)(const void *, void *, int, const Arg *);
  int (*get_threads)(void);
  void (*set_threads)(int);
  void *engine;
} dnnl;

// One product: the fields of `onednn_handlers.CProduct`.
typedef struct {
  int64_t kind, chunks, same;
  int64_t steps[3];  // bytes from chunk to chunk: of the two arrays with a batch, of weights that are read as they lie
  int64_t packed_bytes, scratch_bytes;
  int64_t values[3], halves[3];  // of both operands and the result: how many, and whether they are bfloat16
  int64_t numbers[3];
  void *primitive, *reorder;
  void *batched[2], *packed, *plain, *scratch;  // descriptions of memory
} Product;

// The memory that one call needs beside its operands.
typedef struct Slot {
  struct Slot *next;
  void *plain;
  float **weights;  // packed; one for all chunks, or one each where they are summed
  Arg moves[2];
  Arg (*calls)[4];
} Slot;

// One call, shared by the threads that run its chunks.
typedef struct {
  const Product *of;
  Slot *slot;
  char *one, *other;
} Call;

enum { TARGETS = 512 };
static Product products[TARGETS];
static Slot *idle[TARGETS];
static int known;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *stream(void) {
  static __thread void *own;
  if (own == NULL) dnnl.stream_create(&own, dnnl.engine, 1);
  return own;
}

static int run(const void *primitive, int count, const Arg *args) {
  int before = dnnl.get_threads();
  dnnl.set_threads(1);  // a kernel is one thread's work: more would fight with XLA's
  int status = dnnl.execute(primitive, stream(), count, args);
  dnnl.set_threads(before);
  return status;
}

static void *memory(const void *description, void *at) {
  void *made = NULL;
  dnnl.memory_create(&made, description, dnnl.engine, at);
  return made;
}

static int read_as_they_lie(const Product *of) { return of->same && of->kind != WEIGHT; }

// Returns NULL where memory is short; what was taken until then stays taken, as the run is over.
static Slot *new_slot(const Product *of) {
  Slot *slot = calloc(1, sizeof(Slot));
  int own = of->kind == WEIGHT ? of->chunks : 1;
  if (slot == NULL || (slot->weights = calloc(own, sizeof(float *))) == NULL) return NULL;
  if ((slot->calls = calloc(of->chunks, sizeof(*slot->calls))) == NULL) return NULL;
  for (int i = 0; i < own && !read_as_they_lie(of); i++) {
    if ((slot->weights[i] = room(of->packed_bytes)) == NULL) return NULL;
  }
  for (int i = 0; i < of->chunks; i++) {
    Arg *call = slot->calls[i];
    void *scratch = room(of->scratch_bytes);
    if (scratch == NULL) return NULL;
    call[0] = (Arg){of->numbers[0], memory(of->batched[0], NULL)};
    call[1] = (Arg){of->numbers[1], memory(of->packed, slot->weights[i < own ? i : 0])};
    call[2] = (Arg){of->numbers[2], memory(of->batched[1], NULL)};
    call[3] = (Arg){SCRATCHPAD, memory(of->scratch, scratch)};
  }
  slot->plain = memory(of->plain, NULL);
  void *packed = slot->calls[0][1].memory;
  slot->moves[0] = (Arg){SRC, of->kind == WEIGHT ? packed : slot->plain};
  slot->moves[1] = (Arg){DST, of->kind == WEIGHT ? slot->plain : packed};
  return slot;
}

static Slot *take(int target) {
  pthread_mutex_lock(&lock);
  Slot *slot = idle[target];
  if (slot != NULL) idle[target] = slot->next;
  pthread_mutex_unlock(&lock);
  return slot != NULL ? slot : new_slot(&products[target]);
}

static void give(int target, Slot *slot) {
  pthread_mutex_lock(&lock);
  slot->next = idle[target];
  idle[target] = slot;
  pthread_mutex_unlock(&lock);
}

// Weights from their own layout into the kernel's, or back.
static int move(const Product *of, Slot *slot, char *weights) {
  if (read_as_they_lie(of)) {
    int status = 0;
    for (int i = 0; i < of->chunks; i++) status |= dnnl.set(slot->calls[i][1].memory, weights + i * of->steps[2]);
    return status;
  }
  int status = dnnl.set(slot->plain, weights);
  return status ? status : run(of->reorder, 2, slot->moves);
}

static int chunk(void *data, int index) {
  const Call *call = data;
  Arg *args = call->slot->calls[index];
  int status = dnnl.set(args[0].memory, call->one + index * call->of->steps[0]);
  if (!status) status = dnnl.set(args[2].memory, call->other + index * call->of->steps[1]);
  return status ? status : run(call->of->primitive, 4, args);
}

enum { NO_MEMORY = -1 };

// Without a frame all chunks run on the caller's thread.
static int multiply(int target, XLA_FFI_CallFrame *frame, char *first, char *second, char *out) {
  const Product *of = &products[target];
  Slot *slot = take(target);
  if (slot == NULL) return NO_MEMORY;
  int status = of->kind == WEIGHT ? 0 : move(of, slot, second);
  Call call = {of, slot, first, of->kind == WEIGHT ? second : out};
  if (!status) status = share(frame, of->chunks, chunk, &call);
  if (!status && of->kind == WEIGHT) {
    float *sum = slot->weights[0];
    for (int i = 1; i < of->chunks; i++) {
      const float *more = slot->weights[i];
      for (int64_t at = 0; at < of->packed_bytes / 4; at++) sum[at] += more[at];
    }
    status = move(of, slot, out);
  }
  give(target, slot);
  return status;
}

static XLA_FFI_Error *handle(int target, XLA_FFI_CallFrame *frame) {
  if (only_asks(frame)) return NULL;
  if (!fits(frame, products[target].values, products[target].halves))
    return fail(frame, "onednn: a product of other sizes than it was made for");
  int status = multiply(target, frame, argument(frame, 0), argument(frame, 1), result(frame));
  if (!status) return NULL;
  return fail(frame, status == NO_MEMORY ? "onednn: no memory for a product" : "onednn: a product failed");
}

#define ONE(n) \
  static XLA_FFI_Error *at_##n(XLA_FFI_CallFrame *frame) { return handle(n, frame); }
#define NAME(n) at_##n,
#define ROW(DO, p)                                                                                                     \
  DO(p##0)                                                                                                             \
  DO(p##1) DO(p##2) DO(p##3) DO(p##4) DO(p##5) DO(p##6) DO(p##7) DO(p##8) DO(p##9) DO(p##a) DO(p##b) DO(p##c) DO(p##d) \
      DO(p##e) DO(p##f)
#define PAGE(DO, p)                                                                                               \
  ROW(DO, p##0)                                                                                                   \
  ROW(DO, p##1) ROW(DO, p##2) ROW(DO, p##3) ROW(DO, p##4) ROW(DO, p##5) ROW(DO, p##6) ROW(DO, p##7) ROW(DO, p##8) \
      ROW(DO, p##9) ROW(DO, p##a) ROW(DO, p##b) ROW(DO, p##c) ROW(DO, p##d) ROW(DO, p##e) ROW(DO, p##f)
PAGE(ONE, 0x0)
PAGE(ONE, 0x1)
static XLA_FFI_Error *(*const handlers[TARGETS])(XLA_FFI_CallFrame *) = {PAGE(NAME, 0x0) PAGE(NAME, 0x1)};

void jaxlite_setup(void **functions) {
  void **table = (void **)&dnnl;
  for (unsigned i = 0; i < sizeof(dnnl) / sizeof(void *); i++) table[i] = functions[i];
}

// Returns the handler of a product; NULL where there is no room for more.
void *jaxlite_handler(const Product *product) {
  pthread_mutex_lock(&lock);
  void *handler = NULL;
  if (known < TARGETS) {
    products[known] = *product;
    handler = (void *)handlers[known++];
  }
  pthread_mutex_unlock(&lock);
  return handler;
}

// Runs a product outside of any program; returns 0 where all went well.
int jaxlite_run(const void *handler, char *first, char *second, char *out) {
  for (int target = 0; target < known; target++) {
    if ((void *)handlers[target] == handler) return multiply(target, NULL, first, second, out);
  }
  return NO_MEMORY;
}
