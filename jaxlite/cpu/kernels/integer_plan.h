// The plan of a network of integers, as `integers.py` writes it, and whether it can be meant: every step's reads and
// writes lie within its buffers, and none goes on without end.

#include "integer_sums.h"
#include "vectors.h"

#include "byte_steps.h"
#include "channels.h"

enum { VERSION = 2, ARENA = 0, GIVEN = 1, FOUND = 2 };
enum { CONV, ALONE, ADD, MEAN, POOL, COPY, FILL, QUANTIZE, DEQUANTIZE, TABLE, CHAIN, REDUCE, PRODUCT_OF, KINDS };
enum { SLACK = 64, MOST_SIZE = 1 << 28, AXES = 5, OPERANDS = 64 };
static const int64_t MOST_WEIGHTS = INT64_C(1) << 40;

typedef struct {
  int64_t place, at, bytes;  // in the arena or of which operand; where in it; of one example
} Buffer;

typedef struct {
  int64_t kind, x, other, y, n[24];  // buffers that are read and written; what else the kind needs
} Step;

typedef struct {
  int64_t version, inputs, outputs, arena, weights, at_once, buffers, steps;
} Head;

typedef struct {
  const Head *head;
  const Buffer *buffers;
  const Step *steps;
  const char *given[OPERANDS];
  char *found[OPERANDS];
  const char *weights;
  int64_t batch, scratch, each;  // examples in all; bytes beside the arena; examples that go through at once
} Network;

// A convolution over two axes, or a dense layer (whose places lie side by side in one row).
typedef struct {
  int64_t h, w, channels, kh, kw, sy, sx, dy, dx, top, left, oh, ow, outputs, groups, zero, weights, table, to_zero,
      is_float, low, high;
} Geometry;

static int64_t padded_height(const Geometry *g) { return (g->oh - 1) * g->sy + (g->kh - 1) * g->dy + 1; }

static int64_t padded_width(const Geometry *g) { return (g->ow - 1) * g->sx + (g->kw - 1) * g->dx + 1; }

static int has_border(const Geometry *g) {
  return g->top || g->left || padded_height(g) > g->h || padded_width(g) > g->w;
}

static Runs runs_of(const Geometry *g, int64_t row) {
  int64_t each = g->channels / g->groups;
  if (g->groups == 1 && g->dx == 1)  // a row of the window is one run
    return (Runs){.count = g->kh, .fours = (g->kw * each + 3) / 4, .inner = 1, .row = g->dy * row};
  return (Runs){.count = g->kh * g->kw, .fours = (each + 3) / 4, .inner = g->kw, .row = g->dy * row,
                .next = g->dx * g->channels};
}

static int64_t rounded(int64_t outputs) { return (outputs + WIDE - 1) / WIDE * WIDE; }

enum { ENTRIES = 1 << 8 };  // of a window of which every channel is summed alone

static int small(const int64_t *n, int from, int to) {  // sizes: from 1 on
  for (int i = from; i < to; i++)
    if (n[i] < 1 || n[i] > MOST_SIZE) return 0;
  return 1;
}

static int within(const int64_t *n, int from, int to, int64_t low, int64_t high) {
  for (int i = from; i < to; i++)
    if (n[i] < low || n[i] > high) return 0;
  return 1;
}

// The product of some sizes of at most MOST_SIZE; more than any buffer has where it is too large.
static int64_t product_of(int count, const int64_t *sizes) {
  int64_t all = 1;
  for (int i = 0; i < count; i++)
    if (__builtin_mul_overflow(all, sizes[i], &all)) return INT64_MAX;
  return all;
}

#define SIZE(...) product_of(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (int64_t[]){__VA_ARGS__})

static int has(const Network *of, int64_t at, int64_t bytes) {
  return at >= 0 && at % 4 == 0 && bytes <= of->head->weights && at <= of->head->weights - bytes;
}

static int sound_geometry(const Network *of, const Geometry *g, int64_t kind, int64_t *x, int64_t *y,
                          int64_t *scratch) {
  const int64_t *n = (const int64_t *)g;
  if (!small(n, 0, 9) || !within(n, 9, 11, 0, MOST_SIZE) || !small(n, 11, 15)) return 0;
  if (g->top >= g->kh * g->dy || g->left >= g->kw * g->dx) return 0;
  *x = SIZE(g->h, g->w, g->channels);
  *y = SIZE(g->oh, g->ow, g->outputs, g->is_float && kind != POOL ? 4 : 1);
  int64_t high = padded_height(g), wide = padded_width(g);
  if (high > MOST_SIZE || wide > MOST_SIZE) return 0;
  if (kind == POOL) return g->outputs == g->channels;
  if (g->channels % g->groups || g->outputs % g->groups) return 0;
  if (kind == ALONE && (g->groups != g->channels || g->outputs != g->channels || g->kh * g->kw > ENTRIES)) return 0;
  if (!within(n, 15, 16, 0, 255) || !within(n, 18, 19, 0, 255) || !within(n, 20, 22, -255, 255)) return 0;
  *scratch = SIZE(high, wide, g->channels);
  if (*scratch > MOST_SIZE) return 0;
  int64_t each = kind == ALONE ? 1 : g->groups;
  int64_t lanes = kind == ALONE ? in_blocks(g->channels) : rounded(g->outputs / g->groups);
  Runs runs = runs_of(g, 1);
  int64_t bytes = kind == ALONE ? SIZE((g->kh * g->kw + 3) / 4, lanes, 4) : SIZE(each, lanes, runs.count, runs.fours, 4);
  return bytes <= of->head->weights && has(of, g->weights, bytes) && has(of, g->table, SIZE(each, lanes, 8));
}

// How many elements a copy touches, from the first it may on; -1 where it begins before.
static int64_t reach(const int64_t *sizes, const int64_t *strides, int64_t begin) {
  if (begin < 0 || begin > MOST_SIZE) return -1;
  int64_t last = begin;
  for (int i = 0; i < AXES; i++) {
    if (strides[i] < 0 || strides[i] > MOST_SIZE) return -1;
    last += (sizes[i] - 1) * strides[i];
    if (last > MOST_SIZE) return -1;
  }
  return last + 1;
}

// Whether floats of every example lie where floats may: an operand's examples lie one after the other.
static int holds_floats(const Buffer *of) { return of->place == ARENA || of->bytes % 4 == 0; }

static int sound_chain(const Network *of, const int64_t *n) {
  if (!small(n, 0, 2) || n[1] > INSTRUCTIONS || !small(n, 3, 4) || !has(of, n[2], n[1] * 16)) return 0;
  const Instruction *code = (const Instruction *)(of->weights + n[2]);
  int buffers = 0, stores = 0;
  for (int64_t i = 0; i < n[1]; i++) {
    const Instruction *one = &code[i];
    if (one->what < 0 || one->what >= OPERATIONS) return 0;
    int32_t named = one->what <= BYTES ? one->a : one->what == STORE ? one->b : one->what == GRID ? one->to : -1;
    int registers[3] = {one->to, one->a, one->b};
    if (one->what < PLUS) registers[1] = registers[2] = 0;
    if (one->what == STORE || one->what == GRID) registers[1] = one->a, registers[0] = 0;
    if (one->what >= NEGATIVE) registers[2] = 0;
    for (int j = 0; j < 3; j++)
      if (registers[j] < 0 || registers[j] >= REGISTERS_OF_BLOCKS) return 0;
    if (one->what <= BYTES || one->what == STORE || one->what == GRID) {
      if (++buffers > 32 || named < 0 || named >= of->head->buffers) return 0;
      const Buffer *buffer = &of->buffers[named];
      int64_t entries = one->what == ROWS ? (n[0] + n[3] - 1) / n[3] : n[0];
      int size = one->what == BYTES || one->what == GRID ? 1 : 4;
      if (buffer->bytes < entries * size || (size == 4 && !holds_floats(buffer))) return 0;
      if ((one->what == STORE || one->what == GRID) && buffer->place == GIVEN) return 0;
      stores += one->what >= STORE;
    }
    if (one->what == PERIODIC && (one->b < 1 || one->b > MOST_SIZE || !has(of, one->a, 4 * (int64_t)one->b))) return 0;
    if (one->what == BYTES && (one->b < 0 || one->b > 255)) return 0;
  }
  return stores > 0;
}

// How far an operand of a product reaches, in bytes; more than any buffer has where it cannot be meant.
static int64_t of_operand(const Operand *of, int64_t batch, int64_t places, int64_t sums) {
  int64_t sizes[AXES] = {1, 1, batch, places, sums}, steps[AXES] = {0, 0, of->batch_step, of->step, of->sum_step};
  int64_t found = reach(sizes, steps, 0);
  if (found < 1 || of->zero < 0 || of->zero > 255) return INT64_MAX;
  return found * (of->is_bytes ? 1 : 4);
}

// Bytes that a step reads of one example and of another, and writes; whether it can be meant.
static int sound_step(const Network *of, const Step *step, int64_t *x, int64_t *other, int64_t *y, int64_t *scratch) {
  const int64_t *n = step->n;
  *other = *scratch = *x = *y = 0;
  switch (step->kind) {
    case CONV:
    case ALONE:
    case POOL: return sound_geometry(of, (const Geometry *)n, step->kind, x, y, scratch);
    case ADD:
      *x = *other = *y = n[0];
      return small(n, 0, 1) && within(n, 1, 3, 0, 255) && within(n, 3, 5, 0, 1 << 20) && within(n, 6, 7, 0, 255) &&
             within(n, 7, 9, -255, 255);
    case MEAN:
      if (!small(n, 0, 3) || !within(n, 3, 4, 0, 255) || !within(n, 5, 6, 0, 255) || !within(n, 6, 8, -255, 255))
        return 0;
      *x = SIZE(n[0], n[1], n[2]), *y = SIZE(n[0], n[2], n[8] ? 4 : 1), *scratch = 4 * n[2];
      return n[1] < 1 << 22;
    case COPY: {
      if (!small(n, 0, AXES) || (n[17] != 1 && n[17] != 4)) return 0;
      int64_t read = reach(n, n + 5, n[15]), written = reach(n, n + 10, n[16]);
      *x = read * n[17], *y = written * n[17];
      return read > 0 && SIZE(n[0], n[1], n[2], n[3], n[4]) <= written;  // none is written twice
    }
    case FILL: *y = n[0]; return small(n, 0, 1) && within(n, 1, 2, 0, 255);
    case QUANTIZE:
      *x = 4 * n[0], *y = n[0];
      return small(n, 0, 1) && within(n, 2, 3, 0, 255) && within(n, 3, 5, -255, 255);
    case DEQUANTIZE: *x = n[0], *y = 4 * n[0]; return small(n, 0, 1) && within(n, 2, 3, 0, 255);
    case CHAIN: return sound_chain(of, n);
    case REDUCE:
      *x = SIZE(n[0], n[1], n[2], 4), *y = SIZE(n[0], n[2], 4);
      return small(n, 0, 3) && within(n, 3, 4, 0, 2);
    case PRODUCT_OF: {
      if (!small(n, 0, 4) || !within(n, 15, 16, 0, 255) || !within(n, 16, 18, -255, 255)) return 0;
      int64_t wide = (n[2] + WIDE - 1) / WIDE * WIDE, count = SIZE(n[0], n[1], n[2]);
      *x = of_operand((const Operand *)(n + 4), n[0], n[1], n[3]);
      *other = of_operand((const Operand *)(n + 9), n[0], n[2], n[3]);
      *y = SIZE(n[0], n[1], n[2], n[18] ? 4 : 1);
      *scratch = SIZE(n[3], wide + ROWS_AT_ONCE, 4);
      if (*scratch > MOST_SIZE || count > MOST_SIZE) return 0;
      *scratch += n[18] ? 0 : 4 * count;
      return n[14] || n[18];
    }
    case TABLE: *x = *y = n[0]; return small(n, 0, 1) && has(of, n[1], 256);
  }
  return 0;
}

// Whether a step reads floats of its first or other operand, or writes them.
static int has_floats(const Step *step, int which) {
  const int64_t *n = step->n;
  switch (step->kind) {
    case CONV:
    case ALONE: return which == 2 && ((const Geometry *)n)->is_float;
    case MEAN: return which == 2 && n[8];
    case QUANTIZE: return which == 0;
    case DEQUANTIZE: return which == 2;
    case REDUCE: return which != 1;
    case PRODUCT_OF: return !(which == 2 ? !n[18] : ((const Operand *)(n + (which ? 9 : 4)))->is_bytes);
  }
  return 0;
}

static int sound(Network *of) {
  const Head *head = of->head;
  if (!within(&head->inputs, 0, 2, 1, OPERANDS) || !within(&head->arena, 0, 1, 0, MOST_SIZE)) return 0;
  if (!within(&head->weights, 0, 1, 0, MOST_WEIGHTS) || !within(&head->at_once, 0, 3, 1, 1 << 20)) return 0;
  if (head->arena % 64 || (head->at_once > 1 && head->arena > MOST_SIZE / head->at_once)) return 0;
  for (int64_t i = 0; i < head->buffers; i++) {
    const Buffer *one = &of->buffers[i];
    if (one->place < ARENA || one->place > FOUND || one->bytes < 1 || one->bytes > MOST_SIZE || one->at < 0) return 0;
    if (one->place == ARENA && (one->at % 4 || one->at > head->arena || one->bytes > head->arena - one->at)) return 0;
    if (one->place == GIVEN && one->at >= head->inputs) return 0;
    if (one->place == FOUND && one->at >= head->outputs) return 0;
  }
  for (int64_t i = 0; i < head->steps; i++) {
    const Step *step = &of->steps[i];
    int64_t x, other, y, scratch;
    if (!within(&step->x, 0, 3, 0, head->buffers - 1)) return 0;
    if (!sound_step(of, step, &x, &other, &y, &scratch)) return 0;
    const Buffer *from = &of->buffers[step->x], *to = &of->buffers[step->y];
    if (x > from->bytes || other > of->buffers[step->other].bytes || y > to->bytes) return 0;
    int padded = step->kind == CONV || step->kind == ALONE;  // reads a few bytes beside: of the arena alone
    if (to->place == GIVEN || (padded && from->place != ARENA)) return 0;
    if (has_floats(step, 0) && !holds_floats(from)) return 0;
    if (has_floats(step, 1) && !holds_floats(&of->buffers[step->other])) return 0;
    if (has_floats(step, 2) && !holds_floats(to)) return 0;
    if (scratch > of->scratch) of->scratch = scratch;
  }
  return 1;
}

// The plan's parts in `words` numbers; 0 where they are not as many as it says.
static int parted(Network *of, const int64_t *plan, int64_t words) {
  int64_t head = sizeof(Head) / 8, buffer = sizeof(Buffer) / 8, step = sizeof(Step) / 8;
  of->head = (const Head *)plan;
  if (words < head || of->head->version != VERSION) return 0;
  if (!within(&of->head->buffers, 0, 2, 1, 1 << 20)) return 0;
  if (words != head + of->head->buffers * buffer + of->head->steps * step) return 0;
  of->buffers = (const Buffer *)(plan + head);
  of->steps = (const Step *)(plan + head + of->head->buffers * buffer);
  return 1;
}
