// A network of integers as one operation of an XLA program: a few examples at a time go through all layers, so that
// what lies between layers stays in the processor's caches, and threads meet once.
//
// A plan says what is done: buffers, then steps (`integers.py` writes it). Bytes are unsigned here: what is stored as
// int8, plus 128. Every step's reads and writes are checked against its buffers before the first is run.

#include <pthread.h>

#include "threads.h"

#include "integer_plan.h"

static char *address(const Network *of, int64_t buffer, int64_t first, int64_t example, char *arena, int64_t *step) {
  const Buffer *one = &of->buffers[buffer];
  if (one->place == ARENA) {
    *step = of->head->arena;
    return arena + example * of->head->arena + one->at;
  }
  *step = one->bytes;
  char *base = one->place == GIVEN ? (char *)of->given[one->at] : of->found[one->at];
  return base + (first + example) * one->bytes;
}

static float as_float(int64_t bits) {
  int32_t low = (int32_t)bits;
  float real;
  memcpy(&real, &low, 4);
  return real;
}

static Leave leaving(const Geometry *g, const float *factor) {
  return (Leave){.factor = factor, .low = g->low, .high = g->high, .zero = (int)g->to_zero,
                 .is_float = (int)g->is_float};
}

// The image with its border, whose bytes are the grid's zero: that of a row's end and of the next one's begin in one.
static const uint8_t *bordered(const Geometry *g, const uint8_t *x, uint8_t *to, int64_t *row) {
  *row = g->w * g->channels;
  if (!has_border(g)) return x;
  int64_t high = padded_height(g), wide = padded_width(g), c = g->channels, zero = g->zero;
  int64_t left = g->left < wide ? g->left : wide, kept = wide - left < g->w ? wide - left : g->w;
  int64_t top = g->top < high ? g->top : high, rows = high - top < g->h ? high - top : g->h;
  const uint8_t *begin = to;
  *row = wide * c;
  filled(to, zero, (top * wide + left) * c);
  to += (top * wide + left) * c;
  for (int64_t i = 0; i < rows; i++, to += wide * c) {
    copied(to, x + i * g->w * c, kept * c);
    if (i + 1 < rows) filled(to + kept * c, zero, (wide - kept) * c);
  }
  to -= (wide - kept) * c;  // after the last row's image
  filled(to, zero, begin + high * wide * c - to);
  return begin;
}

static void conv(const Network *of, const Geometry *g, const uint8_t *x, char *out, int64_t places, int64_t step,
                 int64_t out_step, uint8_t *scratch) {
  int64_t row, rows = g->oh, each = g->outputs / g->groups, size = g->is_float ? 4 : 1;
  const int32_t *bias = (const int32_t *)(of->weights + g->table);
  const uint8_t *image = bordered(g, x, scratch, &row);
  if (rows > 1 && g->kh * g->kw * g->sy * g->sx == 1 && g->ow == g->w && image == x)  // rows follow one another
    places = rows * g->ow, rows = 1;
  Runs runs = runs_of(g, row);
  for (int64_t group = 0; group < g->groups; group++) {
    Leave how = leaving(g, (const float *)(bias + g->groups * rounded(each)) + group * rounded(each));
    const int8_t *w = (const int8_t *)of->weights + g->weights + group * rounded(each) * runs.count * runs.fours * 4;
    multiplied(image + group * (g->channels / g->groups), g->sy * row, rows, step, places, &runs, w,
               bias + group * rounded(each), &how, each, out + group * each * size, g->ow * g->outputs * size, out_step);
  }
}

static void alone(const Network *of, const Geometry *g, const uint8_t *x, char *out, uint8_t *scratch) {
  int64_t row, c = g->channels, fours = (g->kh * g->kw + 3) / 4;
  const uint8_t *image = bordered(g, x, scratch, &row);
  const int32_t *bias = (const int32_t *)(of->weights + g->table);
  Leave how = leaving(g, (const float *)(bias + in_blocks(c)));
  int columns = by_columns(g->kh, g->kw);
  int64_t entry[ENTRIES];  // in fours, where one is beyond the last any place
  memset(entry, 0, 4 * fours * sizeof(int64_t));
  for (int64_t a = 0; a < g->kh; a++)
    for (int64_t b = 0; b < g->kw; b++) entry[columns ? 4 * b + a : a * g->kw + b] = a * g->dy * row + b * g->dx * c;
  Alone all = {.x = image, .channels = c, .oh = g->oh, .ow = g->ow, .right = g->sx * c, .down = g->sy * row,
               .row = g->dy * row, .next = g->dx * c, .entry = entry, .fours = fours, .columns = columns,
               .w = (const int8_t *)of->weights + g->weights, .bias = bias, .how = &how, .out = out};
  summed_alone(&all);
}

// [outer, count, inner] -> [outer, inner]
static void mean(const int64_t *n, const uint8_t *x, char *out, int32_t *sums) {
  float factor = as_float(n[4]), low = n[6], high = n[7];
  for (int64_t i = 0; i < n[0]; i++, x += n[1] * n[2], out += n[2] * (n[8] ? 4 : 1)) {
    for (int64_t k = 0; k < n[2]; k++) sums[k] = (int32_t)(-n[3] * n[1]);
    for (int64_t j = 0; j < n[1]; j++)
      for (int64_t k = 0; k < n[2]; k++) sums[k] += x[j * n[2] + k];
    for (int64_t k = 0; k < n[2]; k++) {
      float real = (float)sums[k] * factor;
      if (n[8]) memcpy(out + 4 * k, &real, 4);
      else out[k] = (char)on_grid(real, low, high, (int)n[5]);
    }
  }
}

static void pool(const Geometry *g, const uint8_t *x, uint8_t *out) {
  int64_t c = g->channels;
  for (int64_t i = 0; i < g->oh; i++)
    for (int64_t j = 0; j < g->ow; j++, out += c) {
      int64_t y = i * g->sy - g->top, z = j * g->sx - g->left;
      int64_t y_end = y + g->kh < g->h ? y + g->kh : g->h, z_end = z + g->kw < g->w ? z + g->kw : g->w;
      if (y < 0) y = 0;
      if (z < 0) z = 0;
      if (y < y_end && z < z_end) largest(x + (y * g->w + z) * c, g->w * c, y_end - y, z_end - z, c, out);
      else memset(out, 0, c);
    }
}

// n: five sizes, five strides of x, five of y (in elements), where each begins, bytes of an element.
static void copy(const int64_t *n, const char *x, char *y) {
  int64_t size = n[17];
  x += n[15] * size, y += n[16] * size;
  for (int64_t a = 0; a < n[0]; a++)
    for (int64_t b = 0; b < n[1]; b++)
      for (int64_t c = 0; c < n[2]; c++)
        for (int64_t d = 0; d < n[3]; d++) {
          const char *from = x + (a * n[5] + b * n[6] + c * n[7] + d * n[8]) * size;
          char *to = y + (a * n[10] + b * n[11] + c * n[12] + d * n[13]) * size;
          if (n[9] == 1 && n[14] == 1) memmove(to, from, n[4] * size);
          else if (size == 1)
            for (int64_t e = 0; e < n[4]; e++) to[e * n[14]] = from[e * n[9]];
          else
            for (int64_t e = 0; e < n[4]; e++) memmove(to + e * n[14] * 4, from + e * n[9] * 4, 4);
        }
}

static void quantize(const int64_t *n, const float *x, uint8_t *out) {
  float inverse = as_float(n[1]), low = n[3], high = n[4];
  int zero = (int)n[2];
  for (int64_t i = 0; i < n[0]; i++) {
    float real = x[i] * inverse;
    out[i] = on_grid(real == real ? real : 0.0f, low, high, zero);
  }
}

static void dequantize(const int64_t *n, const uint8_t *x, float *out) {
  float scale = as_float(n[1]);
  for (int64_t i = 0; i < n[0]; i++) out[i] = (float)(x[i] - (int32_t)n[2]) * scale;
}

// n: entries, instructions, where these stand among the weights, entries of a row.
static void chain(const Network *of, const int64_t *n, int64_t first, int64_t example, char *arena) {
  const Instruction *code = (const Instruction *)(of->weights + n[2]);
  Chain all = {.weights = of->weights, .inner = n[3]};
  Instruction here[INSTRUCTIONS];
  int64_t buffers = 0, unused;
  for (int64_t i = 0; i < n[1]; i++) {  // buffers by their place in a list of few
    Instruction *one = &here[i];
    *one = code[i];
    int32_t *named = one->what <= BYTES ? &one->a : one->what == STORE ? &one->b : one->what == GRID ? &one->to : NULL;
    if (named == NULL) continue;
    all.at[buffers] = address(of, *named, first, example, arena, &unused);
    *named = (int32_t)buffers++;
  }
  for (int64_t at = 0; at < n[0]; at += BLOCK) run_block(here, n[1], &all, at, n[0] - at < BLOCK ? n[0] - at : BLOCK);
}

// n: sizes of batch, places of both and sum, two operands, then how sums leave: bits of a factor (0: as they are), zero
// and ends of the grid, or floats.
static void product_of_values(const int64_t *n, const char *x, const char *other, char *y, float *scratch) {
  const Operand *a = (const Operand *)(n + 4), *b = (const Operand *)(n + 9);
  int64_t count = n[0] * n[1] * n[2], wide = (n[2] + WIDE - 1) / WIDE * WIDE;
  float *out = n[18] ? (float *)y : scratch + n[3] * (wide + ROWS_AT_ONCE);
  multiplied_values(a, b, n[0], n[1], n[2], n[3], x, other, out, scratch);
  if (n[14] == 0) return;
  float factor = as_float(n[14]), low = n[16], high = n[17];
  for (int64_t i = 0; i < count; i++) {
    float real = out[i] * factor;
    if (n[18]) ((float *)y)[i] = real;
    else ((uint8_t *)y)[i] = on_grid(real == real ? real : 0.0f, low, high, (int)n[15]);
  }
}

static void run_step(const Network *of, const Step *step, int64_t first, int64_t examples, char *arena, char *scratch) {
  const int64_t *n = step->n;
  const Geometry *g = (const Geometry *)n;
  int64_t x_step, y_step, other_step = 0;
  char *x = address(of, step->x, first, 0, arena, &x_step), *y = address(of, step->y, first, 0, arena, &y_step);
  int both = step->kind == ADD || step->kind == PRODUCT_OF;
  char *other = both ? address(of, step->other, first, 0, arena, &other_step) : NULL;
  if (step->kind == CONV && g->oh == 1 && g->kh == 1 && !has_border(g) && g->ow < 4 && examples > 1) {
    int64_t size = g->is_float ? 4 : 1;
    for (int64_t j = 0; j < g->ow; j++)  // places of one kind in all examples
      conv(of, g, (uint8_t *)x + j * g->sx * g->channels, y + j * g->outputs * size, examples, x_step, y_step, NULL);
    return;
  }
  for (int64_t e = 0; e < examples; e++, x += x_step, y += y_step, other += other_step) {
    uint8_t *ux = (uint8_t *)x, *uy = (uint8_t *)y;
    switch (step->kind) {
      case CONV:
        conv(of, g, ux, y, g->ow, g->sx * g->channels, g->outputs * (g->is_float ? 4 : 1), (uint8_t *)scratch);
        break;
      case ALONE: alone(of, g, ux, y, (uint8_t *)scratch); break;
      case ADD: add(n, ux, (uint8_t *)other, uy); break;
      case MEAN: mean(n, ux, y, (int32_t *)scratch); break;
      case POOL: pool(g, ux, uy); break;
      case COPY: copy(n, x, y); break;
      case FILL: memset(y, (int)n[1], n[0]); break;
      case QUANTIZE: quantize(n, (float *)x, uy); break;
      case DEQUANTIZE: dequantize(n, ux, (float *)y); break;
      case TABLE: looked_up(n[0], ux, (const uint8_t *)of->weights + n[1], uy); break;
      case CHAIN: chain(of, n, first, e, arena); break;
      case REDUCE: reduced((int)n[3], n[0], n[1], n[2], (float *)x, (float *)y); break;
      case PRODUCT_OF: product_of_values(n, x, other, y, (float *)scratch); break;
    }
  }
}

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

static int piece(void *data, int index) {
  const Network *of = data;
  int64_t each = of->each, first = index * each;
  int64_t examples = of->batch - first < each ? of->batch - first : each;
  int64_t bytes = of->head->arena * each + of->scratch + 2 * SLACK;
  char *kept = kept_room(bytes);
  if (kept == NULL) return -1;
  char *scratch = kept + (of->head->arena * each + SLACK + 63) / 64 * 64;
  for (int64_t i = 0; i < of->head->steps; i++) run_step(of, &of->steps[i], first, examples, kept, scratch);
  return 0;
}

// More examples at once read the weights less often, fewer leave every thread something to do.
static int run_network(Network *of, XLA_FFI_CallFrame *frame) {
  if (of->batch < 1) return 0;
  int64_t most = (of->batch + 2 * threads(frame) - 1) / (2 * threads(frame));
  of->each = of->head->at_once < most ? of->head->at_once : most;
  if (of->batch / (INT32_MAX / 2) >= of->each) return 1;  // more pieces than there are numbers for
  return share(frame, (int)((of->batch + of->each - 1) / of->each), piece, of);
}

// Runs a plan on the caller's thread alone: 0 where all went well, 1 where the plan cannot be meant, -1 without memory.
int jaxlite_network(const int64_t *plan, int64_t words, int64_t batch, const char *weights, const char **given,
                    char **found) {
  Network of = {.weights = weights, .batch = batch};
  if (!parted(&of, plan, words) || !sound(&of)) return 1;
  for (int64_t i = 0; i < of.head->inputs; i++) of.given[i] = given[i];
  for (int64_t i = 0; i < of.head->outputs; i++) of.found[i] = found[i];
  return run_network(&of, NULL);
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
  return run_network(&of, frame) ? fail(frame, "integers: no memory for a network") : NULL;
}
