// Convolutions over up to three axes as an operation of an XLA program, on XLA's own threads and without a library.
//
// A few neighboring pixels by a few vectors of channels are summed in registers (the gradient of the weights: a few
// entries of a window by a few vectors). Rows of the image are laid out with their padding in a buffer of the thread's
// own; there the entries of a window's row lie side by side, pixel by pixel and channel by channel, so that the sum
// over them is one run. Here: how weights are packed, and how the work is cut and shared. `direct.py` compiles this
// file where there is a C compiler.

#include <string.h>

#include "threads.h"
#include "windows.h"

#include "sums.h"

enum { TILE = 128 << 10, PIECES = 16 };  // bytes of a buffer, which the second cache holds; pieces that a call has

typedef struct {
  const Spec *of;
  const float *source, *slope;  // the image, or for its gradient the result's; for the weights' both
  float *out, *packed;
  const int64_t *from, *to, *space;  // strides of source and out; sizes of the source
  int64_t groups;                    // that are gone through; one where each is one channel, a lane of its own
  int64_t channels, made, size;      // of one group: channels of source and out, floats of its packed weights
  int64_t depths, rows, blocks;      // places along the first axis; along the second at once, and how many times
  int64_t pieces;                    // that are shared
} Call;

// Of one group: [phase][block of channels][window's plane][row][entry][channel of the source][lane]; of the places of
// one phase all windows' entries, so that phases together hold each weight once.
static void pack(const Spec *of, const float *w, float *to) {
  int64_t inner = of->kind == INPUT ? of->outputs : of->inputs, outer = of->kind == INPUT ? of->inputs : of->outputs;
  int64_t along = of->kind == INPUT ? of->w[0] : of->w[1], across = of->kind == INPUT ? of->w[1] : of->w[0];
  for (int64_t phase = 0; phase < all_phases(of); phase++) {
    Axes at = axes(of, phase);
    for (int64_t k = 0, lanes; k < outer; k += lanes) {
      lanes = vectors(outer - k) * LANES;
      int64_t real = outer - k < lanes ? outer - k : lanes;
      for (int64_t entry = 0; entry < entries(&at); entry++) {
        int64_t a = entry / at.w.entries / at.h.entries, b = entry / at.w.entries % at.h.entries,
                c = entry % at.w.entries;
        const float *from = w + k * across + (at.d.entry + a * at.d.entry_step) * of->w[2];
        from += (at.h.entry + b * at.h.entry_step) * of->w[3] + (at.w.entry + c * at.w.entry_step) * of->w[4];
        for (int64_t i = 0; i < inner; i++, from += along, to += lanes) {
          if (across == 1) memcpy(to, from, 4 * real);
          else
            for (int64_t lane = 0; lane < real; lane++) to[lane] = from[lane * across];
          for (int64_t lane = real; lane < lanes; lane++) to[lane] = 0;
        }
      }
    }
  }
}

static void put(float *to, int64_t across, const float *from, int64_t lanes) {
  if (across == 1) memcpy(to, from, 4 * lanes);
  else
    for (int64_t lane = 0; lane < lanes; lane++) to[lane * across] = from[lane];
}

// Whether each group is one channel, in and out.
static int alone(const Spec *of) { return of->groups > 1 && of->inputs == 1 && of->outputs == 1; }

// Of weights of one channel each: [phase][entry][channel].
static void pack_alone(const Spec *of, const float *w, float *to) {
  for (int64_t phase = 0; phase < all_phases(of); phase++) {
    Axes at = axes(of, phase);
    for (int64_t entry = 0; entry < entries(&at); entry++) {
      int64_t a = entry / at.w.entries / at.h.entries, b = entry / at.w.entries % at.h.entries,
              c = entry % at.w.entries;
      const float *from =
          w + (at.d.entry + a * at.d.entry_step) * of->w[2] + (at.h.entry + b * at.h.entry_step) * of->w[3];
      from += (at.w.entry + c * at.w.entry_step) * of->w[4];
      for (int64_t k = 0; k < of->groups; k++) *to++ = from[k * of->w[0]];
    }
  }
}

// Lays pixels out where channels lie apart, a few pixels of each channel at once: `pixels` of `wide` floats, row by row.
static void spread(float *out, const float *from, int64_t pixels, int64_t wide, int64_t channels, int64_t across,
                   int64_t a_row, int64_t down, int64_t along) {
  int64_t at[16];
  for (int64_t p = 0; p < pixels; p += 16, from += 16 * wide) {
    int64_t few = pixels - p < 16 ? pixels - p : 16;
    for (int64_t i = 0; i < few; i++) at[i] = (p + i) / a_row * down + (p + i) % a_row * along;
    for (int64_t c = 0; c < channels; c++)
      for (int64_t i = 0; i < few; i++) out[at[i] + c * across] = from[i * wide + c];
  }
}

static int64_t units(const Call *call) {
  return all_phases(call->of) * call->groups * call->of->batch * call->depths * call->blocks;
}

// Some rows of places of one image, group and phase, at one place along the first axis.
static int unit(const Call *call, int64_t index, int64_t next) {
  const Spec *of = call->of;
  int64_t block = index % call->blocks, depth = index / call->blocks % call->depths;
  int64_t image = index / call->blocks / call->depths % of->batch,
          rest = index / call->blocks / call->depths / of->batch;
  int64_t group = rest % call->groups, phase = rest / call->groups;
  const float *packed = call->packed + group * call->size,
              *source = call->source + group * call->channels * call->from[1];
  Axes at = axes(of, 0);
  for (int64_t before = 0; before < phase; at = axes(of, ++before))
    packed += entries(&at) * (alone(of) ? call->made : call->channels * rounded(call->made));
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
  if (alone(of)) {
    const int64_t *entry = offsets(&at, rows, call->channels);
    if (entry == NULL) return -1;
    sums_alone(rows.at, pixel, high * at.w.count, entry, entries(&at), packed, call->made, out, at.w.count, down,
               along);
    return 0;
  }
  Window all = window(&at, call->channels, rows);
  int64_t pixels = high * at.w.count, wide = rounded(call->made);
  float some[12 * 4 * LANES], *apart = across == 1 ? NULL : buffer(3, pixels * wide);
  if (across != 1 && apart == NULL) return -1;
  int64_t plane = next / call->blocks % call->depths * at.d.step + at.d.first + (at.d.entries - 1) * at.d.gap;
  int64_t top = next % call->blocks * call->rows * at.h.step + at.h.first;
  const float *soon = source + next / call->blocks / call->depths % of->batch * call->from[0];
  Ahead more = ahead(soon, call->from, call->space, plane, top, top + high * at.h.step + (at.h.entries - 1) * at.h.gap,
                     tiles(pixels, most(vectors(call->made))));
  for (int64_t k = 0, lanes; k < call->made; k += lanes) {
    int v = vectors(call->made - k);
    lanes = v * LANES;
    int64_t real = call->made - k < lanes ? call->made - k : lanes, parts = tiles(pixels, most(v));
    int straight = apart != NULL || (real == lanes && (down == at.w.count * along || high == 1));
    float *first = apart != NULL ? apart : out;
    int64_t step = apart != NULL ? wide : along;
    for (int64_t part = 0; part < parts; part++) {
      int64_t p = part * pixels / parts, count = (part + 1) * pixels / parts - p;
      fetch(&more);
      sums[v][count](rows.at, pixel + p, &all, packed, straight ? first + p * step + k : some, straight ? step : lanes);
      for (int64_t i = 0; i < count && !straight; i++)
        memcpy(out + (p + i) / at.w.count * down + (p + i) % at.w.count * along + k, some + i * lanes, 4 * real);
    }
    packed += entries(&at) * call->channels * lanes;
  }
  if (apart != NULL) spread(out, apart, pixels, wide, call->made, across, at.w.count, down, along);
  return 0;
}

static int piece(void *data, int index) {
  const Call *call = data;
  int64_t all = units(call), end = (index + 1) * all / call->pieces;
  int status = 0;
  for (int64_t at = index * all / call->pieces; at < end && !status; at++)
    status = unit(call, at, at + 1 < end ? at + 1 : at);
  return status;
}

// Adds to the gradient of one group's weights what some rows of one image give, at one place along the first axis.
static int add(const Call *call, const Axes *of_all, int64_t image, int64_t group, int64_t depth, int64_t begin,
               float *sum) {
  const Spec *of = call->of;
  const Axis *h = &of_all->h, *w = &of_all->w;
  int64_t high = begin + call->rows < h->count ? call->rows : h->count - begin,
          wide = alone(of) ? call->made : rounded(call->made);
  const float *source = call->source + group * call->channels * of->x[1],
              *result = call->slope + group * call->made * of->y[1];
  Rows x = lay(source + image * of->x[0], of->x, of->image, call->channels, of_all, depth, begin, high);
  const int64_t *pixel = table(of_all, high, call->channels, x.row);
  const float *slope = result + image * of->y[0] + depth * of->y[2] + begin * of->y[3];
  int64_t step = of->y[4];
  if (of->y[1] != 1 || wide != call->made || of->y[3] != w->count * step) {
    float *to = buffer(2, high * w->count * wide);
    for (int64_t i = 0; to != NULL && i < high; i++)
      lay_row(to + i * w->count * wide, slope + i * of->y[3], w->count, call->made, wide, step, of->y[1]);
    slope = to, step = wide;
  }
  if (x.at == NULL || pixel == NULL || slope == NULL) return -1;
  if (alone(of)) {
    const int64_t *entry = offsets(of_all, x, call->channels);
    if (entry == NULL) return -1;
    slopes_alone(x.at, pixel, high * w->count, entry, entries(of_all), slope, step, call->made, sum);
    return 0;
  }
  Window all = window(of_all, call->channels, x);
  int64_t times = tiles(call->made, 4 * LANES) * runs(&all) * tiles(all.length, most(vectors(call->made)));
  int last = begin + high >= h->count;  // rows of this image, or the first ones of the next
  int64_t after = last && image + 1 < of->batch ? image + 1 : image, top = last ? 0 : begin + high;
  int64_t plane = depth * of_all->d.step + of_all->d.first + (of_all->d.entries - 1) * of_all->d.gap;
  Ahead more[2] = {
      ahead(source + after * of->x[0], of->x, of->image, plane, top * h->step + h->first, (top + high) * h->step,
            times),
      ahead(result + after * of->y[0], of->y, of->result, depth, top, top + high, times),
  };
  for (int64_t k = 0, lanes; k < call->made; k += lanes) {
    int v = vectors(call->made - k);
    lanes = v * LANES;
    int64_t parts = tiles(all.length, most(v));
    for (int64_t run = 0; run < runs(&all); run++, sum += all.length * lanes) {
      const float *from = x.at + begins(&all, run);
      for (int64_t part = 0; part < parts; part++) {
        int64_t p = part * all.length / parts, count = (part + 1) * all.length / parts - p;
        fetch(&more[0]), fetch(&more[1]);
        slopes[v][count](from + p, pixel, slope + k, step, high * w->count, sum + p * lanes);
      }
    }
  }
  return 0;
}

// The gradient of the weights over one chunk of the batch, packed as `pack` does it.
static int chunk(void *data, int index) {
  const Call *call = data;
  Axes at = axes(call->of, 0);
  int64_t groups = call->groups, each = call->of->batch / call->of->chunks;
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
  int64_t size = call->groups * call->size;
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

static void unpack_alone(const Spec *of, const float *from, float *out) {
  for (int64_t place = 0; place < of->kernel[0] * of->kernel[1] * of->kernel[2]; place++) {
    int64_t row = place / of->kernel[2];
    float *to =
        out + row / of->kernel[1] * of->w[2] + row % of->kernel[1] * of->w[3] + place % of->kernel[2] * of->w[4];
    for (int64_t k = 0; k < of->groups; k++) to[k * of->w[0]] = *from++;
  }
}

// Runs one product; returns 0 where there was memory for it. Without a frame on this thread alone.
int jaxlite_product(const Spec *of, const float *first, const float *second, float *out, XLA_FFI_CallFrame *frame) {
  int weight = of->kind == WEIGHT, input = of->kind == INPUT;
  Call call = {.of = of, .source = first, .slope = second, .out = out};
  call.from = input ? of->y : of->x, call.to = input ? of->x : of->y;
  call.space = input ? of->result : of->image;
  call.channels = input ? of->outputs : of->inputs, call.made = input ? of->inputs : of->outputs;
  call.groups = of->groups;
  call.size = of->kernel[0] * of->kernel[1] * of->kernel[2] * call.channels * rounded(call.made);
  if (alone(of)) {
    call.groups = 1, call.channels = call.made = of->groups;
    call.size = of->kernel[0] * of->kernel[1] * of->kernel[2] * of->groups;
  }
  call.packed = room(4 * call.size * call.groups * (weight ? of->chunks : 1));
  if (call.packed == NULL) return -1;
  Axes at = axes(of, 0);
  int64_t planes = at.d.entries > 0 ? at.d.entries : 1;
  int64_t row = 4 * planes * call.channels * (call.space[2] + of->kernel[2] * of->dilation[2]) * at.h.step;
  call.depths = at.d.count;
  call.rows = TILE / row < at.h.count ? TILE / row : at.h.count;
  int64_t few =
      (call.groups * of->batch * call.depths * at.h.count + PIECES - 1) / PIECES;  // few images: pieces of an image
  if (!weight && call.rows > few) call.rows = few;
  if (call.rows < 1) call.rows = 1;
  call.blocks = (at.h.count + call.rows - 1) / call.rows;
  int status;
  if (weight) {
    status = share(frame, of->chunks, chunk, &call);
    if (!status) add_chunks(&call);
    if (alone(of)) unpack_alone(of, call.packed, out);
    else
      for (int64_t g = 0; g < of->groups; g++)
        unpack(of, call.packed + g * call.size, out + g * of->outputs * of->w[0]);
  } else {
    if (alone(of)) pack_alone(of, second, call.packed);
    else
      for (int64_t g = 0; g < of->groups; g++)
        pack(of, second + g * of->outputs * of->w[0], call.packed + g * call.size);
    call.pieces = units(&call) < PIECES ? units(&call) : PIECES;
    status = share(frame, call.pieces, piece, &call);
  }
  free(call.packed);
  return status;
}

static int times(int64_t *sum, int64_t by) { return __builtin_mul_overflow(*sum, by, sum); }

// Whether an array has no value beyond `count`, which its sizes make, and none twice.
static int dense(const int64_t *sizes, const int64_t *strides, int64_t *count) {
  int64_t last = 0;
  *count = 1;
  for (int i = 0; i < 5; i++) {
    int64_t far = sizes[i] - 1;
    if (sizes[i] < 1 || strides[i] < 0 || times(count, sizes[i]) || times(&far, strides[i])) return 0;
    if (__builtin_add_overflow(last, far, &last)) return 0;
  }
  return last == *count - 1;
}

enum { MOST = 1 << 30 };  // of what moves a window: sums of a few are far from where they would wrap around

// Whether a description can be meant: with operands of `values` values nothing is then read or written beside them.
static int sound(const Spec *of, int64_t *values) {
  if (of->kind < FORWARD || of->kind > WEIGHT || of->groups < 1 || of->batch < 1 || of->inputs < 1 || of->outputs < 1)
    return 0;
  if (of->chunks < 1 || of->batch % of->chunks) return 0;
  if (alone(of) && (of->x[1] != 1 || of->y[1] != 1)) return 0;
  int64_t inputs = of->inputs, outputs = of->outputs, laid = 1, pieces = of->groups;
  if (times(&inputs, of->groups) || times(&outputs, of->groups)) return 0;
  for (int a = 0; a < 3; a++) {
    if (of->stride[a] < 1 || of->stride[a] > MOST || of->dilation[a] < 1 || of->dilation[a] > MOST) return 0;
    if (of->low[a] < 0 || of->low[a] > MOST || of->image[a] > MOST || of->kernel[a] > MOST || of->result[a] > MOST)
      return 0;
    int64_t image = of->image[a], kernel = of->kernel[a], result = of->result[a];
    int64_t window = (kernel - 1) * of->dilation[a] + 1, all = (result - 1) * of->stride[a] + window;
    if (image < 1 || kernel < 1 || result < 1 || all > MOST) return 0;
    if (times(&pieces, of->stride[a]) || times(&pieces, image + result)) return 0;
    if (times(&laid, all + image + window + of->stride[a] + of->dilation[a])) return 0;
  }
  int64_t x[5] = {of->batch, inputs, of->image[0], of->image[1], of->image[2]};
  int64_t w[5] = {outputs, of->inputs, of->kernel[0], of->kernel[1], of->kernel[2]};
  int64_t y[5] = {of->batch, outputs, of->result[0], of->result[1], of->result[2]}, found[3];
  if (!dense(x, of->x, &found[0]) || !dense(w, of->w, &found[1]) || !dense(y, of->y, &found[2])) return 0;
  if (times(&laid, inputs > outputs ? inputs : outputs) || laid > INT64_MAX >> 8) return 0;  // floats of rows
  if (times(&pieces, of->batch) || pieces > INT64_MAX >> 8) return 0;
  static const int order[3][3] = {{0, 1, 2}, {2, 1, 0}, {0, 2, 1}};
  for (int i = 0; i < 3; i++) values[i] = found[order[of->kind][i]];
  return 1;
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
  const int64_t halves[3] = {0, 0, 0};
  int64_t values[3];
  if (!sound(of, values) || !fits(frame, values, halves))
    return fail(frame, "direct: a product of other sizes than it says");
  const float *first = (float *)argument(frame, 0), *second = (float *)argument(frame, 1);
  int status = jaxlite_product(of, first, second, (float *)result(frame), frame);
  return status ? fail(frame, "direct: no memory for a convolution") : NULL;
}
