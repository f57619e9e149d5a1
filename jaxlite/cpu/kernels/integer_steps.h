// What each kind of step does, of one example or of a part of it.

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

// Of so many the ones that a part of a step does.
typedef struct {
  int64_t at, end;
} Range;

typedef struct {
  int64_t index, parts;
} Part_of;

static Range range(int64_t count, Part_of part) {
  return (Range){count * part.index / part.parts, count * (part.index + 1) / part.parts};
}

// What the rows `rows` of places read of an image with its border, whose bytes are the grid's zero: that of a row's end
// and of the next one's begin in one.
static const uint8_t *bordered(const Geometry *g, const uint8_t *x, Range rows, uint8_t *to, int64_t *row) {
  *row = g->w * g->channels;
  if (!has_border(g)) return x + rows.at * g->sy * *row;
  int64_t high = (rows.end - rows.at - 1) * g->sy + (g->kh - 1) * g->dy + 1, wide = padded_width(g);
  int64_t c = g->channels, zero = g->zero, first = rows.at * g->sy - g->top, top = first < 0 ? -first : 0;
  int64_t left = g->left < wide ? g->left : wide, kept = wide - left < g->w ? wide - left : g->w;
  const uint8_t *begin = to, *end = to + high * wide * c;
  *row = wide * c;
  if (first < 0) first = 0;
  if (top > high) top = high;
  int64_t count = high - top < g->h - first ? high - top : g->h - first;
  if (count > 0) {
    filled(to, zero, (top * wide + left) * c);
    to += (top * wide + left) * c;
    for (int64_t i = 0; i < count; i++, to += wide * c) {
      copied(to, x + (first + i) * g->w * c, kept * c);
      if (i + 1 < count) filled(to + kept * c, zero, (wide - kept) * c);
    }
    to -= (wide - kept) * c;  // after the last row's image
  }
  filled(to, zero, end - to);
  return begin;
}

// `places` of a row, `step` bytes apart. A part does some rows, or places of one row, or outputs of one place.
static void conv(const Network *of, const Geometry *g, const uint8_t *x, char *out, int64_t places, int64_t step,
                 int64_t out_step, uint8_t *scratch, Part_of part) {
  const Part_of all = {0, 1};
  int64_t row, each = g->outputs / g->groups, size = g->is_float ? 4 : 1, blocks = rounded(each) / WIDE;
  Range rows = range(g->oh, g->oh > 1 ? part : all), some = range(places, g->oh == 1 && places > 1 ? part : all);
  Range outputs = range((blocks + 3) / 4, g->oh == 1 && places == 1 ? part : all);  // in fours of blocks
  const int32_t *bias = (const int32_t *)(of->weights + g->table);
  const uint8_t *image = bordered(g, x, rows, scratch, &row);
  int64_t count = rows.end - rows.at, begin = outputs.at * 4 * WIDE, end = outputs.end * 4 * WIDE;
  if (end > each) end = each;
  out += rows.at * g->ow * g->outputs * size + some.at * out_step + begin * size;
  places = some.end - some.at;
  if (count < 1 || places < 1 || begin >= end) return;
  if (count > 1 && g->kh * g->kw * g->sy * g->sx == 1 && g->ow == g->w && !has_border(g))  // rows follow one another
    places = count * g->ow, count = 1;
  Runs runs = runs_of(g, row);
  int64_t bytes = runs.count * runs.fours * 4;  // of an output
  for (int64_t group = 0; group < g->groups; group++) {
    int64_t first = group * rounded(each) + begin;
    Leave how = leaving(g, (const float *)(bias + g->groups * rounded(each)) + first);
    multiplied(image + some.at * step + group * (g->channels / g->groups), g->sy * row, count, step, places, &runs,
               (const int8_t *)of->weights + g->weights + first * bytes, bias + first, &how, end - begin,
               out + group * each * size, g->ow * g->outputs * size, out_step);
  }
}

static void alone(const Network *of, const Geometry *g, const uint8_t *x, char *out, uint8_t *scratch, Part_of part) {
  int64_t row, c = g->channels, fours = (g->kh * g->kw + 3) / 4;
  Range rows = range(g->oh, part);
  if (rows.at == rows.end) return;
  const uint8_t *image = bordered(g, x, rows, scratch, &row);
  const int32_t *bias = (const int32_t *)(of->weights + g->table);
  Leave how = leaving(g, (const float *)(bias + in_blocks(c)));
  int columns = by_columns(g->kh, g->kw);
  int64_t entry[ENTRIES];  // in fours, where one is beyond the last any place
  memset(entry, 0, 4 * fours * sizeof(int64_t));
  for (int64_t a = 0; a < g->kh; a++)
    for (int64_t b = 0; b < g->kw; b++) entry[columns ? 4 * b + a : a * g->kw + b] = a * g->dy * row + b * g->dx * c;
  Alone all = {.x = image, .channels = c, .oh = rows.end - rows.at, .ow = g->ow, .right = g->sx * c,
               .down = g->sy * row, .row = g->dy * row, .next = g->dx * c, .entry = entry, .fours = fours,
               .columns = columns, .w = (const int8_t *)of->weights + g->weights, .bias = bias, .how = &how,
               .out = out + rows.at * g->ow * c * (g->is_float ? 4 : 1)};
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

static void pool(const Geometry *g, const uint8_t *x, uint8_t *out, Part_of part) {
  int64_t c = g->channels;
  Range rows = range(g->oh, part);
  out += rows.at * g->ow * c;
  for (int64_t i = rows.at; i < rows.end; i++)
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
static void chain(const Network *of, const int64_t *n, int64_t first, int64_t example, char *arena, Part_of part) {
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
  Range blocks = range((n[0] + BLOCK - 1) / BLOCK, part);
  for (int64_t at = blocks.at * BLOCK; at < blocks.end * BLOCK; at += BLOCK)
    run_block(here, n[1], &all, at, n[0] - at < BLOCK ? n[0] - at : BLOCK);
}

// n: sizes of batch, places of both and sum, two operands, then how sums leave: bits of a factor (0: as they are), zero
// and ends of the grid, or floats.
static void product_of_values(const int64_t *n, const char *x, const char *other, char *y, float *scratch,
                              Part_of part) {
  const Operand *a = (const Operand *)(n + 4), *b = (const Operand *)(n + 9);
  Range some = range(n[0], part);
  int64_t count = (some.end - some.at) * n[1] * n[2], wide = (n[2] + WIDE - 1) / WIDE * WIDE;
  x += some.at * a->batch_step * (a->is_bytes ? 1 : 4), other += some.at * b->batch_step * (b->is_bytes ? 1 : 4);
  y += some.at * n[1] * n[2] * (n[18] ? 4 : 1);
  float *out = n[18] ? (float *)y : scratch + n[3] * (wide + ROWS_AT_ONCE);
  multiplied_values(a, b, some.end - some.at, n[1], n[2], n[3], x, other, out, scratch);
  if (n[14] == 0) return;
  float factor = as_float(n[14]);
  for (int64_t i = 0; i < count; i++) out[i] *= factor;
  if (!n[18]) reals_leave(out, count, n[16], n[17], (int)n[15], (uint8_t *)y);
}

// A part of a step, of one example.
static void run_part(const Network *of, const Step *step, int64_t first, int64_t example, char *arena, char *scratch,
                     Part_of part) {
  const int64_t *n = step->n;
  const Geometry *g = (const Geometry *)n;
  int64_t unused;
  char *x = address(of, step->x, first, example, arena, &unused);
  char *y = address(of, step->y, first, example, arena, &unused);
  char *other = address(of, step->other, first, example, arena, &unused);
  uint8_t *ux = (uint8_t *)x, *uy = (uint8_t *)y;
  switch (step->kind) {
    case CONV:
      conv(of, g, ux, y, g->ow, g->sx * g->channels, g->outputs * (g->is_float ? 4 : 1), (uint8_t *)scratch, part);
      return;
    case ALONE: alone(of, g, ux, y, (uint8_t *)scratch, part); return;
    case POOL: pool(g, ux, uy, part); return;
    case CHAIN: chain(of, n, first, example, arena, part); return;
    case PRODUCT_OF: product_of_values(n, x, other, y, (float *)scratch, part); return;
    case ADD: {
      Range some = range(n[0], part);
      add(n, some.end - some.at, ux + some.at, (uint8_t *)other + some.at, uy + some.at);
      return;
    }
    case TABLE: {
      Range some = range(n[0], part);
      looked_up(some.end - some.at, ux + some.at, (const uint8_t *)of->weights + n[1], uy + some.at);
      return;
    }
    case REDUCE: {
      Range some = range(n[0], part);
      float *from = (float *)x + some.at * n[1] * n[2], *to = (float *)y + some.at * n[2];
      reduced((int)n[3], some.end - some.at, n[1], n[2], from, to);
      return;
    }
  }
  if (part.index) return;
  switch (step->kind) {
    case MEAN: mean(n, ux, y, (int32_t *)scratch); return;
    case COPY: copy(n, x, y); return;
    case FILL: memset(y, (int)n[1], n[0]); return;
    case QUANTIZE: quantize(n, (float *)x, uy); return;
    case DEQUANTIZE: dequantize(n, ux, (float *)y); return;
  }
}

static void run_step(const Network *of, const Step *step, int64_t first, int64_t examples, char *arena, char *scratch) {
  const Geometry *g = (const Geometry *)step->n;
  const Part_of all = {0, 1};
  if (step->kind == CONV && g->oh == 1 && g->kh == 1 && !has_border(g) && g->ow < 4 && examples > 1) {
    int64_t size = g->is_float ? 4 : 1, x_step, y_step;
    const uint8_t *x = (uint8_t *)address(of, step->x, first, 0, arena, &x_step);
    char *y = address(of, step->y, first, 0, arena, &y_step);
    for (int64_t j = 0; j < g->ow; j++)  // places of one kind in all examples
      conv(of, g, x + j * g->sx * g->channels, y + j * g->outputs * size, examples, x_step, y_step, NULL, all);
    return;
  }
  for (int64_t e = 0; e < examples; e++) run_part(of, step, first, e, arena, scratch, all);
}

// About how many nanoseconds a step takes of an example, to share it or not; 0 where it has no parts.
static int64_t work_of(const Step *step) {
  const int64_t *n = step->n, most = INT64_C(1) << 40;
  const Geometry *g = (const Geometry *)n;
  int64_t found = 0;
  switch (step->kind) {
    case CONV: found = SIZE(g->oh, g->ow, g->outputs, g->kh, g->kw, g->channels / g->groups) / 100; break;
    case ALONE: found = SIZE(g->oh, g->ow, g->outputs, g->kh, g->kw) / 30; break;
    case POOL: found = SIZE(g->oh, g->ow, g->outputs, g->kh, g->kw) / 50; break;
    case ADD: found = n[0] / 20; break;
    case TABLE: found = n[0] / 50; break;
    case CHAIN: found = n[0] * n[1] / 12; break;
    case REDUCE: found = SIZE(n[0], n[1], n[2]) / 3; break;
    case PRODUCT_OF: found = SIZE(n[0], n[1], n[2], n[3]) / 15; break;
  }
  return found < most ? found : most;
}
