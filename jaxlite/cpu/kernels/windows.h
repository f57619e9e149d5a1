// A convolution's windows: which entries of its source each place reads, and those entries laid out in rows of pixels.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FORWARD, INPUT, WEIGHT };

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
  // An entry reaches a place of the image from the result at (place + low - entry * dilation) / stride, if that is
  // whole.
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

static __thread float *buffers[4];
static __thread size_t sizes[4];

static float *buffer(int which, size_t floats) {
  if (sizes[which] < floats) {
    free(buffers[which]);
    buffers[which] = room(4 * floats);
    sizes[which] = buffers[which] == NULL ? 0 : floats;
  }
  return buffers[which];
}

// One row of pixels from an array in any layout; `wide` floats a pixel, those beyond `channels` zero.
static void lay_row(float *to, const float *from, int64_t pixels, int64_t channels, int64_t wide, int64_t along,
                    int64_t across) {
  if (across == 1 && along == channels && wide == channels) {
    memcpy(to, from, 4 * pixels * channels);
    return;
  }
  for (int64_t p = 0; p < pixels; p++) {
    if (across == 1) memcpy(to + p * wide, from + p * along, 4 * channels);
    for (int64_t c = channels; c < wide; c++) to[p * wide + c] = 0;
  }
  if (across == 1) return;
  // Pixel by pixel, channels that lie a power of two apart would push each other out of the cache.
  for (int64_t c = 0; c < channels; c++)
    for (int64_t p = 0; p < pixels; p++) to[p * wide + c] = from[c * across + p * along];
}

// What the next piece of work reads, fetched line by line while this one is multiplied.
typedef struct {
  const char *at, *end;
  int64_t each;  // bytes a time
} Ahead;

// Of an array in rows of pixels, and only there, what lies in one plane from one row to another; in so many times.
static Ahead ahead(const float *from, const int64_t *strides, const int64_t *space, int64_t plane, int64_t top,
                   int64_t bottom, int64_t times) {
  if (strides[1] != 1 || plane < 0 || plane >= space[0]) return (Ahead){NULL, NULL, 0};
  from += plane * strides[2];
  const char *at = (char *)(from + (top < 0 ? 0 : top) * strides[3]);
  const char *end = (char *)(from + (bottom > space[1] ? space[1] : bottom) * strides[3]);
  return (Ahead){at, end, end > at ? (end - at) / times + 64 : 0};
}

static void fetch(Ahead *of) {
  for (const char *stop = of->at + of->each; of->at < stop && of->at < of->end; of->at += 64)
    __builtin_prefetch(of->at, 0, 2);
}

// What the window reads for one place along the first axis, `count` along the second from `begin` on, and all along the
// third.
static Rows lay(const float *from, const int64_t *strides, const int64_t *space, int64_t channels, const Axes *of,
                int64_t depth, int64_t begin, int64_t count) {
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
  return run / of->runs / of->rows * of->plane_gap + run / of->runs % of->rows * of->row_gap +
         run % of->runs * of->run_gap;
}

// Where each pixel's window begins among the rows, one after the other.
static int64_t *table(const Axes *of, int64_t high, int64_t channels, int64_t row) {
  int64_t *at = (int64_t *)buffer(1, 2 * high * of->w.count);
  for (int64_t i = 0, next = 0; at != NULL && i < high; i++)
    for (int64_t j = 0; j < of->w.count; j++) at[next++] = i * of->h.step * row + j * of->w.step * channels;
  return at;
}

// Where each entry of a window stands from where the window begins.
static int64_t *offsets(const Axes *of, Rows rows, int64_t channels) {
  int64_t *at = (int64_t *)buffer(3, 2 * entries(of)), next = 0;
  for (int64_t a = 0; at != NULL && a < of->d.entries; a++)
    for (int64_t b = 0; b < of->h.entries; b++)
      for (int64_t c = 0; c < of->w.entries; c++)
        at[next++] = a * rows.plane + b * of->h.gap * rows.row + c * of->w.gap * channels;
  return at;
}
