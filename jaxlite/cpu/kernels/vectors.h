// Floats between integers: chains of operations entry by entry, block by block so that what lies between stays in
// registers or the first cache; sums and maxima over axes; products of two values. Functions are within a few units of
// the last place of the exact ones.

#include <stdint.h>
#include <string.h>

enum { BLOCK = 256, REGISTERS_OF_BLOCKS = 16, INSTRUCTIONS = 256 };

// An instruction: what is done, the register that takes it, and two numbers: registers, or what else it needs.
enum {
  LOAD,      // entries of buffer a, from where the block begins
  ROWS,      // of buffer a one entry for every `inner`
  BYTES,     // bytes of buffer a, less b
  CONSTANT,  // the float whose bits a is
  PERIODIC,  // floats among the weights from byte a on, b of them, again and again
  STORE,     // register a into buffer b
  GRID,      // register a, scaled already, onto the grid whose zero and ends b holds, into the buffer that `to` names
  PLUS, MINUS, TIMES, OVER, MOST, LEAST,
  NEGATIVE, SQUARE, ROOT, INVERSE_ROOT, EXP, TANH, LOGISTIC, ABSOLUTE,
  OPERATIONS
};

typedef struct {
  int32_t what, to, a, b;
} Instruction;

static inline float as_real(int32_t bits) {
  float real;
  memcpy(&real, &bits, 4);
  return real;
}

// e^x: a power of two, in two halves so that neither overflows first, times a series of what is left.
static inline float exp_of(float real) {
  float x = real < 89.0f ? real : 89.0f;
  x = x > -104.0f ? x : -104.0f;
  float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720, p = p * r + 1.0f / 120, p = p * r + 1.0f / 24, p = p * r + 1.0f / 6;
  p = p * r + 0.5f, p = p * r + 1.0f, p = p * r + 1.0f;
  int32_t half = (int32_t)n >> 1;
  p = p * as_real((half + 127) << 23) * as_real(((int32_t)n - half + 127) << 23);
  return real == real ? p : real;
}

static inline float tanh_of(float x) {
  float s = x * x, e = exp_of(2 * (x < 10.0f ? (x > -10.0f ? x : -10.0f) : 10.0f));
  float near = x * (1 + s * (-1.0f / 3 + s * (2.0f / 15 + s * (-17.0f / 315 + s * (62.0f / 2835)))));
  float far = (e - 1) / (e + 1), found = s < 0.09f ? near : far;
  return x == x ? found : x;
}

static inline float larger(float a, float b) { return a > b || a != a ? a : b; }  // NaN, where one is

typedef struct {
  const char *at[32];  // of each buffer, this example's
  const char *weights;
  int64_t inner;
} Chain;

#define EACH(value) \
  for (int64_t i = 0; i < count; i++) to[i] = (value)

// One block of a chain of instructions, entries from `first` on.
static void run_block(const Instruction *code, int64_t length, const Chain *of, int64_t first, int64_t count) {
  float reg[REGISTERS_OF_BLOCKS][BLOCK] __attribute__((aligned(64)));
  for (const Instruction *one = code; one < code + length; one++) {
    float *to = reg[(uint32_t)one->to % REGISTERS_OF_BLOCKS];
    const float *a = reg[(uint32_t)one->a % REGISTERS_OF_BLOCKS], *b = reg[(uint32_t)one->b % REGISTERS_OF_BLOCKS];
    switch (one->what) {
      case LOAD: memcpy(to, of->at[one->a] + 4 * first, 4 * count); break;
      case ROWS: {
        const float *from = (const float *)of->at[one->a];
        for (int64_t i = 0; i < count;) {
          int64_t row = (first + i) / of->inner, end = (row + 1) * of->inner - first;
          for (end = end < count ? end : count; i < end; i++) to[i] = from[row];
        }
        break;
      }
      case BYTES: {
        const uint8_t *from = (const uint8_t *)of->at[one->a] + first;
        EACH((float)(from[i] - one->b));
        break;
      }
      case CONSTANT: {
        float value = as_real(one->a);
        EACH(value);
        break;
      }
      case PERIODIC: {
        const float *from = (const float *)(of->weights + one->a);
        for (int64_t i = 0; i < count;) {
          int64_t at = (first + i) % one->b, some = one->b - at < count - i ? one->b - at : count - i;
          memcpy(to + i, from + at, 4 * some);
          i += some;
        }
        break;
      }
      case STORE: memcpy((char *)of->at[one->b] + 4 * first, a, 4 * count); break;
      case GRID: {
        uint8_t *out = (uint8_t *)of->at[one->to] + first;
        int zero = one->b & 255;
        float low = (one->b >> 8 & 511) - 256, high = (one->b >> 17 & 511) - 256;
        for (int64_t i = 0; i < count; i++) {
          float real = a[i] == a[i] ? a[i] : 0.0f;
          out[i] = on_grid(real, low, high, zero);
        }
        break;
      }
      case PLUS: EACH(a[i] + b[i]); break;
      case MINUS: EACH(a[i] - b[i]); break;
      case TIMES: EACH(a[i] * b[i]); break;
      case OVER: EACH(a[i] / b[i]); break;
      case MOST: EACH(larger(a[i], b[i])); break;
      case LEAST: EACH(a[i] < b[i] || a[i] != a[i] ? a[i] : b[i]); break;
      case NEGATIVE: EACH(-a[i]); break;
      case SQUARE: EACH(a[i] * a[i]); break;
      case ROOT: EACH(__builtin_sqrtf(a[i])); break;
      case INVERSE_ROOT: EACH(1.0f / __builtin_sqrtf(a[i])); break;
      case EXP: EACH(exp_of(a[i])); break;
      case TANH: EACH(tanh_of(a[i])); break;
      case LOGISTIC: EACH(1.0f / (1.0f + exp_of(-a[i]))); break;
      case ABSOLUTE: EACH(__builtin_fabsf(a[i])); break;
    }
  }
}

// [outer, count, inner] -> [outer, inner]: the largest (kind 0), the sum (1) or the mean (2).
static void reduced(int kind, int64_t outer, int64_t count, int64_t inner, const float *x, float *out) {
  for (int64_t o = 0; o < outer; o++, x += count * inner, out += inner) {
    if (inner == 1) {  // lanes of their own, added at the end
      float lane[WIDE], all = x[0];
      int64_t whole = count / WIDE * WIDE;
      if (whole) memcpy(lane, x, sizeof(lane));
      for (int64_t j = WIDE; j < whole; j += WIDE)
        for (int i = 0; i < WIDE; i++) lane[i] = kind ? lane[i] + x[j + i] : larger(lane[i], x[j + i]);
      if (whole) all = lane[0];
      for (int i = 1; i < WIDE && whole; i++) all = kind ? all + lane[i] : larger(all, lane[i]);
      for (int64_t j = whole ? whole : 1; j < count; j++) all = kind ? all + x[j] : larger(all, x[j]);
      out[0] = kind == 2 ? all / count : all;
      continue;
    }
    memmove(out, x, 4 * inner);
    for (int64_t j = 1; j < count; j++) {
      const float *from = x + j * inner;
      if (kind) for (int64_t k = 0; k < inner; k++) out[k] += from[k];
      else for (int64_t k = 0; k < inner; k++) out[k] = larger(out[k], from[k]);
    }
    for (int64_t k = 0; k < inner && kind == 2; k++) out[k] /= count;
  }
}

typedef float Lanes __attribute__((vector_size(4 * WIDE / PARTS), aligned(4), may_alias));

// Of one operand of a product: sizes of a batch of its own, places, and what is summed; how far apart; bytes or floats.
typedef struct {
  int64_t batch_step, step, sum_step, is_bytes, zero;
} Operand;

static inline float entry_of(const Operand *of, const char *at, int64_t index) {
  return of->is_bytes ? (float)(((const uint8_t *)at)[index] - (int32_t)of->zero) : ((const float *)at)[index];
}

enum { ROWS_AT_ONCE = PARTS == 1 ? 8 : PARTS == 2 ? 4 : 2 };

// R rows by one block of lanes.
#define LANES_OF(NAME, R)                                                                                          \
  static void NAME(const float *packed, int64_t wide, const float *row, int64_t k, float (*lane)[WIDE]) {         \
    enum { EACH_LANE = WIDE / PARTS };                                                                             \
    Lanes sum[R][PARTS];                                                                                           \
    for (int r = 0; r < R; r++)                                                                                    \
      for (int part = 0; part < PARTS; part++) sum[r][part] = (Lanes){0};                                          \
    for (int64_t s = 0; s < k; s++, packed += wide, row += R)                                                      \
      for (int part = 0; part < PARTS; part++)                                                                     \
        for (int r = 0; r < R; r++) sum[r][part] += row[r] * *(const Lanes *)(packed + part * EACH_LANE);          \
    for (int r = 0; r < R; r++)                                                                                    \
      for (int part = 0; part < PARTS; part++) *(Lanes *)(lane[r] + part * EACH_LANE) = sum[r][part];              \
  }
LANES_OF(lanes_of_one, 1)
LANES_OF(lanes_of_some, ROWS_AT_ONCE)

// [batch, m, n] of sums over k; `packed` holds k rows of n rounded up, and a few rows of m.
static void multiplied_values(const Operand *a, const Operand *b, int64_t batch, int64_t m, int64_t n, int64_t k,
                              const char *x, const char *y, float *out, float *packed) {
  int64_t wide = (n + WIDE - 1) / WIDE * WIDE;
  float *row = packed + k * wide;
  for (int64_t at = 0; at < batch; at++, out += m * n) {
    for (int64_t s = 0; s < k; s++)
      for (int64_t j = 0; j < wide; j++)
        packed[s * wide + j] = j < n ? entry_of(b, y, at * b->batch_step + j * b->step + s * b->sum_step) : 0;
    for (int64_t i = 0, rows; i < m; i += rows) {
      rows = m - i < ROWS_AT_ONCE ? 1 : ROWS_AT_ONCE;
      for (int64_t r = 0; r < rows; r++)
        for (int64_t s = 0; s < k; s++)
          row[s * rows + r] = entry_of(a, x, at * a->batch_step + (i + r) * a->step + s * a->sum_step);
      for (int64_t j = 0; j < wide; j += WIDE) {
        float lane[ROWS_AT_ONCE][WIDE];
        if (rows == 1) lanes_of_one(packed + j, wide, row, k, lane);
        else lanes_of_some(packed + j, wide, row, k, lane);
        for (int64_t r = 0; r < rows; r++) memcpy(out + (i + r) * n + j, lane[r], 4 * (n - j < WIDE ? n - j : WIDE));
      }
    }
  }
}
