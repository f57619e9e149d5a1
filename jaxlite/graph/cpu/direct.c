// Convolutions over up to three axes as an operation of an XLA program, on XLA's own threads and without a library.
//
// A few neighbouring pixels by a few vectors of channels are summed in registers (the gradient of the weights: a few
// entries of a window by a few vectors). Rows of the image are laid out with their padding in a buffer of the thread's
// own; there the entries of a window's row lie side by side, pixel by pixel and channel by channel, so that the sum
// over them is one run. `direct.py` compiles this file where there is a C compiler.

#include <string.h>

#include "threads.h"

#if defined(__AVX512F__)
enum { LANES = 16, REGISTERS = 32 };
#elif defined(__AVX__)
enum { LANES = 8, REGISTERS = 16 };
#elif defined(__x86_64__) || defined(__i386__)
enum { LANES = 4, REGISTERS = 16 };
#else
enum { LANES = 4, REGISTERS = 32 };
#endif

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));

enum { FORWARD, INPUT, WEIGHT };
enum { TILE = 128 << 10, PIECES = 16 };  // bytes of a buffer, which the second cache holds; pieces that a call has

// One product: the fields of `direct.spec`. Strides are in floats, axes in the order N C D H W and O I D H W.
typedef struct {
  int64_t kind, chunks, batch, inputs, outputs, groups;  // channels of one group
  int64_t image[3], kernel[3], result[3], stride[3], dilation[3], low[3];
  int64_t x[5], w[5], y[5];
} Spec;

// What is summed into the places `phase`, `phase + apart`, ... of one axis: place i reads the source at
// i * step + first + j * gap, for each of the window's entries `entry + j * entry_step`.
typedef struct {
  int64_t phase, apart, count, step, entries, first, gap, entry, entry_step;
} Axis;

static Axis axis(const Spec *of, int a, int phase) {
  int64_t kernel = of->kernel[a], dilation = of->dilation[a], stride = of->stride[a], low = of->low[a];
  if (of->kind != INPUT) return (Axis){0, 1, of->result[a], stride, kernel, -low, dilation, 0, 1};
  // An entry reaches a place of the image from the result at (place + low - entry * dilation) / stride, if that is whole.
  Axis found = {.phase = phase, .apart = stride, .step = 1, .gap = 1};
  found.count = (of->image[a] - phase + stride - 1) / stride;
  for (int64_t entry = kernel - 1; entry >= 0; entry--) {
    int64_t at = phase + low - entry * dilation;
    if (at % stride) continue;
    if (found.entries == 0) found.entry = entry, found.first = at / stride;
    if (found.entries == 1) found.entry_step = entry - found.entry, found.gap = at / stride - found.first;
    found.entries++;
  }
  return found;
}

// All three axes, for one phase of each.
typedef struct {
  Axis d, h, w;
} Axes;

static int64_t phases(const Spec *of, int a) { return of->kind == INPUT ? of->stride[a] : 1; }

static int64_t all_phases(const Spec *of) { return phases(of, 0) * phases(of, 1) * phases(of, 2); }

static Axes axes(const Spec *of, int64_t phase) {
  int64_t w = phases(of, 2), h = phases(of, 1);
  return (Axes){axis(of, 0, phase / w / h), axis(of, 1, phase / w % h), axis(of, 2, phase % w)};
}

static int64_t entries(const Axes *of) { return of->d.entries * of->h.entries * of->w.entries; }

// What is multiplied: planes of rows of pixels, each `channels` floats in a run.
typedef struct {
  const float *at;
  int64_t plane, row;  // floats from one to the next
} Rows;

static __thread float *buffers[3];
static __thread size_t sizes[3];

static float *buffer(int which, size_t floats) {
  if (sizes[which] < floats) {
    free(buffers[which]);
    buffers[which] = room(4 * floats);
    sizes[which] = buffers[which] == NULL ? 0 : floats;
  }
  return buffers[which];
}

// One row of pixels from an array in any layout; `wide` floats a pixel, those beyond `channels` zero.
static void lay_row(float *to, const float *from, int64_t pixels, int64_t channels, int64_t wide, int64_t along, int64_t across) {
  if (across == 1 && along == channels && wide == channels) {
    memcpy(to, from, 4 * pixels * channels);
    return;
  }
  for (int64_t p = 0; p < pixels; p++, to += wide, from += along) {
    if (across == 1) memcpy(to, from, 4 * channels);
    else for (int64_t c = 0; c < channels; c++) to[c] = from[c * across];
    for (int64_t c = channels; c < wide; c++) to[c] = 0;
  }
}

// What the next piece of work reads, fetched line by line while this one is multiplied.
typedef struct {
  const char *at, *end;
  int64_t each;  // bytes a time
} Ahead;

// Of an array in rows of pixels, and only there, what lies in one plane from one row to another; in so many times.
static Ahead ahead(const float *from, const int64_t *strides, const int64_t *space, int64_t plane, int64_t top, int64_t bottom,
                   int64_t times) {
  if (strides[1] != 1 || plane < 0 || plane >= space[0]) return (Ahead){NULL, NULL, 0};
  from += plane * strides[2];
  const char *at = (char *)(from + (top < 0 ? 0 : top) * strides[3]);
  const char *end = (char *)(from + (bottom > space[1] ? space[1] : bottom) * strides[3]);
  return (Ahead){at, end, end > at ? (end - at) / times + 64 : 0};
}

static void fetch(Ahead *of) {
  for (const char *stop = of->at + of->each; of->at < stop && of->at < of->end; of->at += 64) __builtin_prefetch(of->at, 0, 2);
}

// What the window reads for one place along the first axis, `count` along the second from `begin` on, and all along the
// third.
static Rows lay(const float *from, const int64_t *strides, const int64_t *space, int64_t channels, const Axes *of, int64_t depth,
                int64_t begin, int64_t count) {
  const Axis *d = &of->d, *h = &of->h, *w = &of->w;
  int64_t near = depth * d->step + d->first, deep = (d->entries - 1) * d->gap + 1;
  int64_t top = begin * h->step + h->first, high = (count - 1) * h->step + (h->entries - 1) * h->gap + 1;
  int64_t left = w->first, wide = (w->count - 1) * w->step + (w->entries - 1) * w->gap + 1;
  int inside = near >= 0 && top >= 0 && left >= 0;
  inside = inside && near + deep <= space[0] && top + high <= space[1] && left + wide <= space[2];
  if (inside && strides[1] == 1 && strides[4] == channels) {
    return (Rows){from + near * strides[2] + top * strides[3] + left * channels, d->gap * strides[2], strides[3]};
  }
  int64_t row = wide * channels;
  float *to = buffer(0, d->entries * high * row);
  if (to == NULL) return (Rows){NULL, 0, 0};
  int64_t start = left < 0 ? -left : 0, end = space[2] - left < wide ? space[2] - left : wide;
  if (start > wide) start = wide;
  if (end < start) end = start;
  for (int64_t line = 0; line < d->entries * high; line++, to += row) {
    int64_t plane = near + line / high * d->gap, i = top + line % high;
    if (plane < 0 || plane >= space[0] || i < 0 || i >= space[1] || start == end) {
      memset(to, 0, 4 * row);
      continue;
    }
    const float *pixels = from + plane * strides[2] + i * strides[3] + (left + start) * strides[4];
    memset(to, 0, 4 * start * channels);
    lay_row(to + start * channels, pixels, end - start, channels, channels, strides[4], strides[1]);
    memset(to + end * channels, 0, 4 * (wide - end) * channels);
  }
  return (Rows){to - d->entries * high * row, high * row, row};
}

// A window as runs: its planes and rows, the runs of a row, and how long a run is.
typedef struct {
  int64_t planes, plane_gap, rows, row_gap, runs, run_gap, length;
} Window;

static Window window(const Axes *of, int64_t channels, Rows rows) {
  Window found = {of->d.entries, rows.plane, of->h.entries, of->h.gap * rows.row, 1, 0, of->w.entries * channels};
  if (of->w.gap == 1 || of->w.entries == 1) return found;
  found.runs = of->w.entries, found.run_gap = of->w.gap * channels, found.length = channels;
  return found;
}

static int64_t runs(const Window *of) { return of->planes * of->rows * of->runs; }

static int64_t begins(const Window *of, int64_t run) {
  return run / of->runs / of->rows * of->plane_gap + run / of->runs % of->rows * of->row_gap + run % of->runs * of->run_gap;
}

// P pixels by V vectors of sums: the window's entries at each pixel times the packed weights.
#define SUMS(P, V) \
  static void sums_##P##_##V(const float *x, const int64_t *at, const Window *of, const float *w, float *out, int64_t step) { \
    Vector sum[P][V]; \
    const float *pixel[P]; \
    for (int p = 0; p < P; p++) pixel[p] = x + at[p]; \
    for (int p = 0; p < P; p++) for (int v = 0; v < V; v++) sum[p][v] = (Vector){0}; \
    for (int64_t run = 0; run < runs(of); run++) { \
      int64_t begin = begins(of, run); \
      for (int64_t j = begin; j < begin + of->length; j++, w += V * LANES) { \
        for (int p = 0; p < P; p++) \
          for (int v = 0; v < V; v++) sum[p][v] += pixel[p][j] * ((const Vector *)w)[v]; \
      } \
    } \
    for (int p = 0; p < P; p++) for (int v = 0; v < V; v++) ((Vector *)(out + p * step))[v] = sum[p][v]; \
  }

// P entries of a window by V vectors of the weights' gradient, over all pixels, added to what is there. Where a pixel's
// window begins stands in a table: rows may be short, and a loop over each would be left more often than it is run.
#define SLOPES(P, V) \
  static void slopes_##P##_##V(const float *x, const int64_t *at, const float *g, int64_t step, int64_t pixels, float *out) { \
    Vector sum[P][V]; \
    for (int p = 0; p < P; p++) for (int v = 0; v < V; v++) sum[p][v] = ((Vector *)(out + p * V * LANES))[v]; \
    for (int64_t i = 0; i < pixels; i++, g += step) { \
      const float *from = x + at[i]; \
      for (int p = 0; p < P; p++) \
        for (int v = 0; v < V; v++) sum[p][v] += from[p] * ((const Vector *)g)[v]; \
    } \
    for (int p = 0; p < P; p++) for (int v = 0; v < V; v++) ((Vector *)(out + p * V * LANES))[v] = sum[p][v]; \
  }

// As many sums as there are registers for, beside the vectors that they are made of.
#define UP_TO_3(DO, V) DO(1, V) DO(2, V) DO(3, V)
#define UP_TO_6(DO, V) UP_TO_3(DO, V) DO(4, V) DO(5, V) DO(6, V)
#define UP_TO_12(DO, V) UP_TO_6(DO, V) DO(7, V) DO(8, V) DO(9, V) DO(10, V) DO(11, V) DO(12, V)
#define ALL(DO) UP_TO_12(DO, 1) UP_TO_12(DO, 2) UP_TO_6(DO, 4)
ALL(SUMS)
ALL(SLOPES)

typedef void (*Sums)(const float *, const int64_t *, const Window *, const float *, float *, int64_t);
typedef void (*Slopes)(const float *, const int64_t *, const float *, int64_t, int64_t, float *);
#define SUMS_NAME(P, V) [V][P] = sums_##P##_##V,
#define SLOPES_NAME(P, V) [V][P] = slopes_##P##_##V,
static const Sums sums[5][13] = {ALL(SUMS_NAME)};
static const Slopes slopes[5][13] = {ALL(SLOPES_NAME)};

static int most(int vectors) { return vectors == 1 ? 12 : (REGISTERS == 32 ? 24 : vectors == 2 ? 12 : 8) / vectors; }

// Vectors of the next block of channels: the widest that wastes none.
static int vectors(int64_t left) { return left >= 4 * LANES ? 4 : left > LANES ? 2 : 1; }

static int64_t rounded(int64_t channels) {
  int64_t wide = 0;
  while (wide < channels) wide += vectors(channels - wide) * LANES;
  return wide;
}

// How many tiles of equal size, but for one, a length is cut into.
static int64_t tiles(int64_t length, int at_most) { return (length + at_most - 1) / at_most; }

typedef struct {
  const Spec *of;
  const float *source, *slope;  // the image, or for its gradient the result's; for the weights' both
  float *out, *packed;
  const int64_t *from, *to, *space;  // strides of source and out; sizes of the source
  int64_t channels, made, size;      // of one group: channels of source and out, floats of its packed weights
  int64_t depths, rows, blocks;      // places along the first axis; along the second at once, and how many times
  int64_t pieces;                    // that are shared
} Call;

// Of one group: [phase][block of channels][window's plane][row][entry][channel of the source][lane]; of the places of one phase all
// windows' entries, so that phases together hold each weight once.
static void pack(const Spec *of, const float *w, float *to) {
  int64_t inner = of->kind == INPUT ? of->outputs : of->inputs, outer = of->kind == INPUT ? of->inputs : of->outputs;
  int64_t along = of->kind == INPUT ? of->w[0] : of->w[1], across = of->kind == INPUT ? of->w[1] : of->w[0];
  for (int64_t phase = 0; phase < all_phases(of); phase++) {
    Axes at = axes(of, phase);
    for (int64_t k = 0, lanes; k < outer; k += lanes) {
      lanes = vectors(outer - k) * LANES;
      int64_t real = outer - k < lanes ? outer - k : lanes;
      for (int64_t entry = 0; entry < entries(&at); entry++) {
        int64_t a = entry / at.w.entries / at.h.entries, b = entry / at.w.entries % at.h.entries, c = entry % at.w.entries;
        const float *from = w + k * across + (at.d.entry + a * at.d.entry_step) * of->w[2];
        from += (at.h.entry + b * at.h.entry_step) * of->w[3] + (at.w.entry + c * at.w.entry_step) * of->w[4];
        for (int64_t i = 0; i < inner; i++, from += along, to += lanes) {
          if (across == 1) memcpy(to, from, 4 * real);
          else for (int64_t lane = 0; lane < real; lane++) to[lane] = from[lane * across];
          for (int64_t lane = real; lane < lanes; lane++) to[lane] = 0;
        }
      }
    }
  }
}

// Where each pixel's window begins among the rows, one after the other.
static int64_t *table(const Axes *of, int64_t high, int64_t channels, int64_t row) {
  int64_t *at = (int64_t *)buffer(1, 2 * high * of->w.count);
  for (int64_t i = 0, next = 0; at != NULL && i < high; i++)
    for (int64_t j = 0; j < of->w.count; j++) at[next++] = i * of->h.step * row + j * of->w.step * channels;
  return at;
}

static void put(float *to, int64_t across, const float *from, int64_t lanes) {
  if (across == 1) memcpy(to, from, 4 * lanes);
  else for (int64_t lane = 0; lane < lanes; lane++) to[lane * across] = from[lane];
}

static int64_t units(const Call *call) {
  return all_phases(call->of) * call->of->groups * call->of->batch * call->depths * call->blocks;
}

// Some rows of places of one image, group and phase, at one place along the first axis.
static int unit(const Call *call, int64_t index, int64_t next) {
  const Spec *of = call->of;
  int64_t block = index % call->blocks, depth = index / call->blocks % call->depths;
  int64_t image = index / call->blocks / call->depths % of->batch, rest = index / call->blocks / call->depths / of->batch;
  int64_t group = rest % of->groups, phase = rest / of->groups;
  const float *packed = call->packed + group * call->size, *source = call->source + group * call->channels * call->from[1];
  Axes at = axes(of, 0);
  for (int64_t before = 0; before < phase; at = axes(of, ++before))
    packed += entries(&at) * call->channels * rounded(call->made);
  int64_t begin = block * call->rows, high = at.h.count - begin < call->rows ? at.h.count - begin : call->rows;
  if (depth >= at.d.count || high <= 0 || at.w.count == 0) return 0;
  float *out = call->out + image * call->to[0] + group * call->made * call->to[1];
  out += (at.d.phase + depth * at.d.apart) * call->to[2];
  out += (at.h.phase + begin * at.h.apart) * call->to[3] + at.w.phase * call->to[4];
  int64_t down = at.h.apart * call->to[3], along = at.w.apart * call->to[4], across = call->to[1];
  if (entries(&at) == 0) {  // a stride that outgrows the window leaves places that nothing reaches
    for (int64_t i = 0; i < high; i++)
      for (int64_t j = 0; j < at.w.count; j++)
        for (int64_t k = 0; k < call->made; k++) out[i * down + j * along + k * across] = 0;
    return 0;
  }
  Rows rows = lay(source + image * call->from[0], call->from, call->space, call->channels, &at, depth, begin, high);
  const int64_t *pixel = table(&at, high, call->channels, rows.row);
  if (rows.at == NULL || pixel == NULL) return -1;
  Window all = window(&at, call->channels, rows);
  float some[12 * 4 * LANES];
  int64_t pixels = high * at.w.count;
  int64_t plane = next / call->blocks % call->depths * at.d.step + at.d.first + (at.d.entries - 1) * at.d.gap;
  int64_t top = next % call->blocks * call->rows * at.h.step + at.h.first;
  const float *soon = source + next / call->blocks / call->depths % of->batch * call->from[0];
  Ahead more = ahead(soon, call->from, call->space, plane, top, top + high * at.h.step + (at.h.entries - 1) * at.h.gap,
                     tiles(pixels, most(vectors(call->made))));
  for (int64_t k = 0, lanes; k < call->made; k += lanes) {
    int v = vectors(call->made - k);
    lanes = v * LANES;
    int64_t real = call->made - k < lanes ? call->made - k : lanes, parts = tiles(pixels, most(v));
    int straight = across == 1 && real == lanes && (down == at.w.count * along || high == 1);
    for (int64_t part = 0; part < parts; part++) {
      int64_t p = part * pixels / parts, count = (part + 1) * pixels / parts - p;
      fetch(&more);
      sums[v][count](rows.at, pixel + p, &all, packed, straight ? out + p * along + k : some, straight ? along : lanes);
      for (int64_t i = 0; i < count && !straight; i++)
        put(out + (p + i) / at.w.count * down + (p + i) % at.w.count * along + k * across, across, some + i * lanes, real);
    }
    packed += entries(&at) * call->channels * lanes;
  }
  return 0;
}

static int piece(void *data, int index) {
  const Call *call = data;
  int64_t all = units(call), end = (index + 1) * all / call->pieces;
  int status = 0;
  for (int64_t at = index * all / call->pieces; at < end && !status; at++) status = unit(call, at, at + 1 < end ? at + 1 : at);
  return status;
}

// Adds to the gradient of one group's weights what some rows of one image give, at one place along the first axis.
static int add(const Call *call, const Axes *of_all, int64_t image, int64_t group, int64_t depth, int64_t begin, float *sum) {
  const Spec *of = call->of;
  const Axis *h = &of_all->h, *w = &of_all->w;
  int64_t high = begin + call->rows < h->count ? call->rows : h->count - begin, wide = rounded(of->outputs);
  const float *source = call->source + group * of->inputs * of->x[1], *result = call->slope + group * of->outputs * of->y[1];
  Rows x = lay(source + image * of->x[0], of->x, of->image, of->inputs, of_all, depth, begin, high);
  const int64_t *pixel = table(of_all, high, of->inputs, x.row);
  const float *slope = result + image * of->y[0] + depth * of->y[2] + begin * of->y[3];
  int64_t step = of->y[4];
  if (of->y[1] != 1 || wide != of->outputs || of->y[3] != w->count * step) {
    float *to = buffer(2, high * w->count * wide);
    for (int64_t i = 0; to != NULL && i < high; i++)
      lay_row(to + i * w->count * wide, slope + i * of->y[3], w->count, of->outputs, wide, step, of->y[1]);
    slope = to, step = wide;
  }
  if (x.at == NULL || pixel == NULL || slope == NULL) return -1;
  Window all = window(of_all, of->inputs, x);
  int64_t times = tiles(of->outputs, 4 * LANES) * runs(&all) * tiles(all.length, most(vectors(of->outputs)));
  int last = begin + high >= h->count;  // rows of this image, or the first ones of the next
  int64_t after = last && image + 1 < of->batch ? image + 1 : image, top = last ? 0 : begin + high;
  int64_t plane = depth * of_all->d.step + of_all->d.first + (of_all->d.entries - 1) * of_all->d.gap;
  Ahead more[2] = {
    ahead(source + after * of->x[0], of->x, of->image, plane, top * h->step + h->first, (top + high) * h->step, times),
    ahead(result + after * of->y[0], of->y, of->result, depth, top, top + high, times),
  };
  for (int64_t k = 0, lanes; k < of->outputs; k += lanes) {
    int v = vectors(of->outputs - k);
    lanes = v * LANES;
    int64_t parts = tiles(all.length, most(v));
    for (int64_t run = 0; run < runs(&all); run++, sum += all.length * lanes) {
      for (int64_t part = 0; part < parts; part++) {
        int64_t p = part * all.length / parts, count = (part + 1) * all.length / parts - p;
        fetch(&more[0]), fetch(&more[1]);
        slopes[v][count](x.at + begins(&all, run) + p, pixel, slope + k, step, high * w->count, sum + p * lanes);
      }
    }
  }
  return 0;
}

// The gradient of the weights over one chunk of the batch, packed as `pack` does it.
static int chunk(void *data, int index) {
  const Call *call = data;
  Axes at = axes(call->of, 0);
  int64_t groups = call->of->groups, each = call->of->batch / call->of->chunks;
  float *sum = call->packed + index * groups * call->size;
  memset(sum, 0, 4 * groups * call->size);
  int status = 0;
  for (int64_t image = index * each; image < (index + 1) * each; image++)
    for (int64_t group = 0; group < groups; group++)
      for (int64_t depth = 0; depth < at.d.count; depth++)
        for (int64_t begin = 0; begin < at.h.count && !status; begin += call->rows)
          status = add(call, &at, image, group, depth, begin, sum + group * call->size);
  return status;
}

static void add_chunks(const Call *call) {
  int64_t size = call->of->groups * call->size;
  for (int64_t i = 1; i < call->of->chunks; i++)
    for (int64_t at = 0; at < size; at++) call->packed[at] += call->packed[i * size + at];
}

// Lays the gradient of one group's weights out as the weights lie.
static void unpack(const Spec *of, const float *from, float *out) {
  int64_t places = of->kernel[0] * of->kernel[1] * of->kernel[2];
  for (int64_t k = 0, lanes; k < of->outputs; k += lanes) {
    lanes = vectors(of->outputs - k) * LANES;
    int64_t real = of->outputs - k < lanes ? of->outputs - k : lanes;
    for (int64_t place = 0; place < places; place++) {
      int64_t row = place / of->kernel[2];
      float *to = out + k * of->w[0] + row / of->kernel[1] * of->w[2] + row % of->kernel[1] * of->w[3];
      to += place % of->kernel[2] * of->w[4];
      for (int64_t c = 0; c < of->inputs; c++, to += of->w[1], from += lanes) put(to, of->w[0], from, real);
    }
  }
}

// Runs one product; returns 0 where there was memory for it. Without a frame on this thread alone.
int jaxlite_product(const Spec *of, const float *first, const float *second, float *out, XLA_FFI_CallFrame *frame) {
  int weight = of->kind == WEIGHT, input = of->kind == INPUT;
  Call call = {.of = of, .source = first, .slope = second, .out = out};
  call.from = input ? of->y : of->x, call.to = input ? of->x : of->y;
  call.space = input ? of->result : of->image;
  call.channels = input ? of->outputs : of->inputs, call.made = input ? of->inputs : of->outputs;
  call.size = of->kernel[0] * of->kernel[1] * of->kernel[2] * call.channels * rounded(call.made);
  call.packed = room(4 * call.size * of->groups * (weight ? of->chunks : 1));
  if (call.packed == NULL) return -1;
  Axes at = axes(of, 0);
  int64_t planes = at.d.entries > 0 ? at.d.entries : 1;
  int64_t row = 4 * planes * call.channels * (call.space[2] + of->kernel[2] * of->dilation[2]) * at.h.step;
  call.depths = at.d.count;
  call.rows = TILE / row < at.h.count ? TILE / row : at.h.count;
  int64_t few = (of->groups * of->batch * call.depths * at.h.count + PIECES - 1) / PIECES;  // few images: pieces of an image
  if (!weight && call.rows > few) call.rows = few;
  if (call.rows < 1) call.rows = 1;
  call.blocks = (at.h.count + call.rows - 1) / call.rows;
  int status;
  if (weight) {
    status = share(frame, of->chunks, chunk, &call);
    if (!status) add_chunks(&call);
    for (int64_t g = 0; g < of->groups; g++) unpack(of, call.packed + g * call.size, out + g * of->outputs * of->w[0]);
  } else {
    for (int64_t g = 0; g < of->groups; g++) pack(of, second + g * of->outputs * of->w[0], call.packed + g * call.size);
    call.pieces = units(&call) < PIECES ? units(&call) : PIECES;
    status = share(frame, call.pieces, piece, &call);
  }
  free(call.packed);
  return status;
}

static const Spec *spec(XLA_FFI_CallFrame *frame) {
  if (frame->attrs.size != 1 || frame->attrs.types[0] != XLA_FFI_AttrType_ARRAY) return NULL;
  const XLA_FFI_Array *found = frame->attrs.attrs[0];
  return found->size * sizeof(int64_t) == sizeof(Spec) ? found->data : NULL;
}

XLA_FFI_Error *jaxlite_direct(XLA_FFI_CallFrame *frame) {
  if (only_asks(frame)) return NULL;
  const Spec *of = spec(frame);
  if (of == NULL) return fail(frame, "direct: this program was compiled for another version");
  const float *first = (float *)argument(frame, 0), *second = (float *)argument(frame, 1);
  int status = jaxlite_product(of, first, second, (float *)result(frame), frame);
  return status ? fail(frame, "direct: no memory for a convolution") : NULL;
}
