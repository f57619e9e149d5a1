/* The models of entropy_numpy.py, operation for operation: whole numbers alone, so that both give the same bytes on
   every machine.

   A bit costs by its probability, which is mixed of what several contexts have counted so far: each gives log2 of its
   ones over its zeros, and a mixer weighs them (logistic regression in fixed point, learned as it goes). Some bits
   (lanes) are predicted before any of them is learned from, so that NumPy can do them at once. */

#include <stdint.h>

#define LANES 64
#define INPUTS 9   /* of a mixer at most, the last one constant */
#define SETS 3     /* of weights that a mixer adds up, at most */
#define LIMIT 1000 /* above it a pair of counts is halved */
#define MOST 3071  /* of a logit, in 1/256 of an octave */
#define NODES 384  /* of the tree that a whole number is a leaf of */
#define DENSITIES(version) (version == 1 ? 912 : 3897) /* cells that know no row and no column, of a map of zeros; */
#define SHARED (897 * NODES) /* of symbols */

typedef struct {
  int64_t low, high, code; /* of 32 bits */
  int64_t at, size;        /* of bytes */
  int64_t decodes;
  uint8_t *bytes;
  const int32_t *logs, *odds; /* 256 log2(5 n + 2); 65536 / (1 + 2^(-x / 256)) */
} Coder;

/* Some lanes between prediction and learning. */
typedef struct {
  int64_t cell[LANES][INPUTS], logit[LANES][INPUTS], set[LANES][SETS], chance[LANES];
  int bit[LANES];
} Step;

static int next_byte(Coder *c) {
  const int found = c->at < c->size ? c->bytes[c->at] : 0; /* zeros at the end are not stored */
  c->at++;
  return found;
}

/* Whether there was room; of what is read, whether it can still be what was written. */
static int sound(const Coder *c) { return c->at <= c->size + (c->decodes ? 8 : 0); }

static int coded(Coder *c, int bit, int64_t chance) {
  const int64_t wide = c->high - c->low;
  const int64_t middle = c->low + (wide >> 16) * chance + (((wide & 0xffff) * chance) >> 16);
  if (c->decodes) bit = c->code <= middle;
  if (bit) c->high = middle;
  else c->low = middle + 1;
  while (!((c->low ^ c->high) & 0xff000000)) {
    if (c->decodes) c->code = (c->code << 8 & 0xffffffff) | next_byte(c);
    else {
      if (c->at < c->size) c->bytes[c->at] = (uint8_t)(c->high >> 24);
      c->at++;
    }
    c->low = c->low << 8 & 0xffffffff;
    c->high = (c->high << 8 & 0xffffffff) | 255;
  }
  return bit;
}

static int64_t shifted(int64_t x, int by) { return x >= 0 ? x >> by : ~(~x >> by); } /* toward minus infinity */

static void predict(const Coder *c, Step *s, int lane, const uint16_t *counts, const int64_t *weights, int inputs,
                    int sets) {
  int64_t total = 0;
  for (int k = 0; k < inputs; k++) {
    int64_t logit = 256;
    if (k < inputs - 1) {
      const uint16_t *pair = counts + 2 * s->cell[lane][k];
      logit = c->logs[pair[1]] - c->logs[pair[0]];
    }
    s->logit[lane][k] = logit;
    int64_t weight = 0;
    for (int j = 0; j < sets; j++) weight += weights[s->set[lane][j] * INPUTS + k];
    total += weight * logit;
  }
  total = shifted(total, 24);
  total = total > MOST ? MOST : total < -MOST ? -MOST : total;
  s->chance[lane] = c->odds[total + MOST];
}

static void learn(const Step *s, int lanes, uint16_t *counts, int64_t *weights, int inputs, int sets, int rate) {
  for (int lane = 0; lane < lanes; lane++) {
    const int64_t error = ((int64_t)s->bit[lane] << 16) - s->chance[lane];
    for (int k = 0; k < inputs; k++) {
      const int64_t slope = shifted(error * s->logit[lane][k], rate);
      for (int j = 0; j < sets; j++) weights[s->set[lane][j] * INPUTS + k] += slope;
    }
    for (int k = 0; k < inputs - 1; k++) counts[2 * s->cell[lane][k] + s->bit[lane]]++;
  }
  for (int lane = 0; lane < lanes; lane++)
    for (int k = 0; k < inputs - 1; k++) {
      uint16_t *pair = counts + 2 * s->cell[lane][k];
      if (pair[0] > LIMIT || pair[1] > LIMIT) pair[0] >>= 1, pair[1] >>= 1;
    }
}

static int level(int64_t ones, int64_t all) { /* of a density: 0 .. 7, finer where it is low */
  int64_t share = (ones * 256 + 32) / (all + 2);
  int found = 0;
  while (share > 3 && found < 7) share >>= 1, found++;
  return found;
}

static int fine(int64_t ones, int64_t all) { /* likewise: 0 .. 20, two an octave */
  const int64_t share = (ones * 1024 + 128) / (all + 4);
  int found = 0;
  while (share >> (found + 1)) found++;
  return found ? 2 * found + (int)(share >> (found - 1) & 1) : 0;
}

int64_t entropy_zeros(Coder *c, uint8_t *flags, int64_t rows, int64_t columns, int64_t lanes, int64_t near,
                      int64_t far, int64_t margin, const int64_t *units, uint16_t *counts, int64_t *weights,
                      int64_t *seen_rows, int64_t *seen_columns, int64_t rate, int64_t version) {
  Step s;
  const int64_t width = columns + 2;
  const int inputs = version == 1 ? 7 : 9, sets = version == 1 ? 2 : 3;
  const int64_t gap = far == near ? near : far > near ? far - near : near - far;
  for (int64_t first = 0; first < rows; first += lanes) {
    const int64_t band = rows - first < lanes ? rows - first : lanes;
    for (int64_t step = 0; step < columns + band - 1; step++) {
      const int64_t start = step - columns + 1 > 0 ? step - columns + 1 : 0;
      const int64_t stop = step + 1 < band ? step + 1 : band;
      for (int64_t row = start; row < stop; row++) {
        const int lane = (int)(row - start);
        const int64_t r = first + row, column = step - row;
        const uint8_t *here = flags + (margin + r) * width + column + 2;
        const int left = here[-1], lefter = here[-2], above_left = here[-near * width - 1];
        const int n = here[-near * width], f = here[-far * width];
        const int nn = here[-2 * near * width], ff = here[-2 * far * width], nf = here[-(near + far) * width];
        const int by_row = level(seen_rows[r], column), by_column = level(seen_columns[column], r);
        const int around = n + f + nn + ff + nf;
        int64_t *cell = s.cell[lane];
        cell[0] = DENSITIES(version) + r;
        cell[1] = DENSITIES(version) + rows + column;
        cell[2] = n | f << 1 | nn << 2 | ff << 3 | nf << 4 | left << 5 | lefter << 6 | above_left << 7;
        cell[3] = 256 + (by_row * 8 + by_column) * 6 + around;
        cell[4] = 640 + units[r] * 8 + by_column;
        s.set[lane][0] = around;
        s.set[lane][1] = 8 + by_row;
        if (version == 1) {
          cell[5] = 768 + (around * 8 + by_row) * 3 + left + lefter;
        } else { /* what rows above, columns beside and the corner know, too */
          int64_t ones = 4 * seen_rows[r], all = 4 * column, some = 2 * seen_columns[column], of = 2 * r;
          for (int k = 0; k < 2; k++) {
            const int64_t q = r - (k ? far : near);
            if (q < 0) continue;
            const int64_t known = q < first ? columns : step - (q - first) < columns ? step - (q - first) : columns;
            ones += seen_rows[q], all += known;
          }
          for (int k = -2; k <= 2; k++)
            if (k && column + k >= 0 && column + k < columns) some += seen_columns[column + k], of += r;
          const int rowwise = fine(ones, all), columnwise = fine(some, of);
          const int corner = here[-gap * width];
          cell[5] = 768 + columnwise * 8 + around;
          cell[6] = 936 + (((n + f) * 2 + nf) * 2 + corner) * 63 + (left + lefter) * 21 + rowwise;
          cell[7] = 1692 + ((n + f + nf + corner) * 21 + rowwise) * 21 + columnwise;
          s.set[lane][2] = 16 + columnwise;
        }
        predict(c, &s, lane, counts, weights, inputs, sets);
      }
      for (int64_t row = start; row < stop; row++) {
        const int64_t r = first + row, column = step - row;
        uint8_t *here = flags + (margin + r) * width + column + 2;
        const int bit = coded(c, *here, s.chance[row - start]);
        s.bit[row - start] = bit;
        *here = (uint8_t)bit;
        seen_rows[r] += bit;
        seen_columns[column] += bit;
      }
      learn(&s, (int)(stop - start), counts, weights, inputs, sets, (int)rate);
      if (!sound(c)) return 1;
    }
  }
  return 0;
}

/* On the way from the root of a number's tree to its leaf; kind: 0 zero or not, 1 sign, 2 how many bits, 3 these. */
typedef struct {
  int kind, node, left, sign;
  int64_t size;
} Walk;

static int bit_length(int64_t x) {
  int found = 0;
  while (x) x >>= 1, found++;
  return found;
}

static int wanted(const Walk *w, int64_t value) {
  const int64_t size = value < 0 ? -value : value;
  if (w->kind == 0) return value != 0;
  if (w->kind == 1) return value < 0;
  if (w->kind == 2) return bit_length(size) > w->left + 1;
  return size >> (w->left - 1) & 1;
}

/* Goes on by a bit; 0 where no number lies. */
static int walked(Walk *w, int bit, int whole) {
  if (w->kind == 0) {
    w->kind = bit ? 1 : 4, w->node = 1;
  } else if (w->kind == 1) {
    w->sign = bit ? -1 : 1, w->size = 1, w->kind = 2, w->left = 0, w->node = 2;
  } else if (w->kind == 2) {
    if (bit && w->left == 31) return 0;
    if (bit) w->left++, w->node = 2 + w->left;
    else w->kind = w->left ? 3 : 4, w->node = 40 + 8 * w->left + 1;
  } else {
    w->left--;
    w->size = w->size << 1 | bit;
    if (!whole) w->node = w->node << 1 | bit;
    else w->node = w->size < 8 ? 40 + 8 * (bit_length(w->size) + w->left - 1) + (int)w->size : 304 + w->left;
    if (!w->left) w->kind = 4;
  }
  return 1;
}

static int64_t mark(int64_t value, int whole) { /* of a number that stands near, as context */
  const int64_t size = value < 0 ? -value : value;
  return !whole || size < 8 ? size : bit_length(size) + 4 < 15 ? bit_length(size) + 4 : 15;
}

int64_t entropy_symbols(Coder *c, int64_t *values, int64_t n, int64_t lanes, int64_t whole, const int64_t *narrow,
                        const int64_t *wide, const int64_t *before, uint16_t *counts,
                        int64_t *weights, int64_t rate, int64_t told) {
  Step s;
  Walk walks[LANES];
  int64_t contexts[LANES][INPUTS], signs[LANES][5];
  for (int64_t first = 0; first < n; first += lanes) {
    int count = (int)(first + lanes < n ? lanes : n - first);
    int open[LANES];
    const int all = count;
    for (int lane = 0; lane < all; lane++) {
      const int64_t i = first + lane;
      int64_t near[2], *context = contexts[lane];
      int64_t sign[6];
      for (int k = 0; k < told; k++) {
        const int64_t at = before[k * n + i], value = at >= 0 && at < first ? values[at] : 0;
        if (k < 2) near[k] = mark(value, (int)whole);
        sign[k] = (value > 0) - (value < 0);
      }
      if (told > 2) {
        const int64_t one = 3 * sign[0] + sign[1] + 4, other = 3 * sign[2] + sign[3] + 4;
        signs[lane][0] = 145 + one;
        signs[lane][1] = 162 + 2 * (sign[0] + sign[1]) + sign[2] + sign[3] + sign[4] + sign[5];
        signs[lane][2] = 171 + other;
        signs[lane][3] = 180 + 3 * sign[4] + sign[5] + 4;
        signs[lane][4] = 641 + 9 * one + other;
      }
      context[0] = SHARED + narrow[i] * 16;
      context[1] = SHARED + narrow[n + i] * 16;
      context[2] = 0;
      context[3] = NODES * (1 + wide[i]);
      context[4] = NODES * (65 + wide[n + i]);
      context[5] = NODES * (129 + near[0]);
      context[6] = NODES * (385 + (whole ? near[0] + near[1] * 16 : (near[0] * 37 + near[1] * 101) & 511));
      walks[lane] = (Walk){whole == 0 ? 3 : whole == 1 ? 0 : 1, whole == 1 ? 0 : 1, whole ? 0 : 8, 1, 0};
      open[lane] = lane;
    }
    while (count) {
      for (int j = 0; j < count; j++) {
        const int64_t *context = contexts[open[j]];
        const int node = walks[open[j]].node;
        for (int k = 0; k < 2; k++) s.cell[j][k] = context[k] + (node < 15 ? node : 15);
        for (int k = 2; k < 7; k++) s.cell[j][k] = context[k] + node;
        if (told > 2 && walks[open[j]].kind == 1)
          for (int k = 2; k < 7; k++) s.cell[j][k] = NODES * signs[open[j]][k - 2] + node;
        s.set[j][0] = whole ? (node < 40 ? node : 40) : 41 + walks[open[j]].left;
        s.set[j][1] = 50;
        predict(c, &s, j, counts, weights, 8, 2);
      }
      int bad = 0, kept = 0;
      for (int j = 0; j < count; j++) {
        Walk *walk = walks + open[j];
        s.bit[j] = coded(c, c->decodes ? 0 : wanted(walk, values[first + open[j]]), s.chance[j]);
        bad |= !walked(walk, s.bit[j], (int)whole);
        if (walk->kind != 4) open[kept++] = open[j];
      }
      learn(&s, count, counts, weights, 8, 2, (int)rate);
      if (bad || !sound(c)) return 1;
      count = kept;
    }
    if (c->decodes)
      for (int lane = 0; lane < all; lane++) values[first + lane] = walks[lane].sign * walks[lane].size;
  }
  return 0;
}
