// Floats between integers: chains of operations entry by entry, block by block so that what lies between stays in
// registers or the first cache; sums and maxima over axes; products of two values. Functions are within a few units of
// the last place of the exact ones.

#include <stdint.h>
#include <string.h>

enum { BLOCK = 512, REGISTERS_OF_BLOCKS = 16, INSTRUCTIONS = 256 };

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

// e^x as 2^n, n whole, times what this returns: a series of what is left of x.
static inline float exp_within(float x, float *n) {
  *n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  float r = (x - *n * 0.693359375f) + *n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720, p = p * r + 1.0f / 120, p = p * r + 1.0f / 24, p = p * r + 1.0f / 6;
  p = p * r + 0.5f, p = p * r + 1.0f;
  return p * r + 1.0f;
}

static inline float power_of_two(int32_t n) { return as_real((n + 127) << 23); }

static inline float exp_of(float real) {
  float x = real < 89.0f ? real : 89.0f, n;
  x = x > -104.0f ? x : -104.0f;
  float p = exp_within(x, &n);
  int32_t half = (int32_t)n >> 1;  // two powers, so that neither overflows first
  p = p * power_of_two(half) * power_of_two((int32_t)n - half);
  return real == real ? p : real;
}

static inline float tanh_of(float x) {
  float s = x * x, n, e = exp_within(2 * (x < 10.0f ? (x > -10.0f ? x : -10.0f) : 10.0f), &n);
  e *= power_of_two((int32_t)n);
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
  INDEPENDENT       \
  for (int64_t i = 0; i < count; i++) to[i] = (value)

// Of two operands, of which one may be the same for all entries.
#define OF_BOTH(WHAT)                         \
  if (b->all) EACH(WHAT(x[i], b->value));     \
  else if (a->all) EACH(WHAT(a->value, y[i])); \
  else EACH(WHAT(x[i], y[i]))

#define SUM_OF(a, b) ((a) + (b))
#define LESS_OF(a, b) ((a) - (b))
#define PRODUCT_OF_TWO(a, b) ((a) * (b))
#define SHARE_OF(a, b) ((a) / (b))
#define SMALLER_OF(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))

// Where a register's entries are: in a block of its own, or where they lie; or one for all.
typedef struct {
  const float *at;
  float value;
  int all;
} Held;

// One block of a chain of instructions, entries from `first` on.
static void run_block(const Instruction *code, int64_t length, const Chain *of, int64_t first, int64_t count) {
  float reg[REGISTERS_OF_BLOCKS][BLOCK] __attribute__((aligned(64)));
  Held held[REGISTERS_OF_BLOCKS];
  for (int i = 0; i < REGISTERS_OF_BLOCKS; i++) held[i] = (Held){.at = reg[i]};
  for (const Instruction *one = code; one < code + length; one++) {
    int number = (uint32_t)one->to % REGISTERS_OF_BLOCKS;
    const Held *a = &held[(uint32_t)one->a % REGISTERS_OF_BLOCKS], *b = &held[(uint32_t)one->b % REGISTERS_OF_BLOCKS];
    if (one->what >= STORE && (a->all && (one->what < PLUS || one->what >= NEGATIVE || b->all))) {
      float *all = reg[a - held], value = a->value;  // as entries
      for (int64_t i = 0; i < count; i++) all[i] = value;
      held[a - held] = (Held){.at = all};
    }
    float *to = reg[number];
    const float *x = a->at, *y = b->at;
    switch (one->what) {
      case LOAD: held[number] = (Held){.at = (const float *)of->at[one->a] + first}; continue;
      case CONSTANT: held[number] = (Held){.at = to, .value = as_real(one->a), .all = 1}; continue;
      case ROWS: {
        const float *from = (const float *)of->at[one->a];
        int64_t row = first / of->inner, end = (row + 1) * of->inner - first;
        for (int64_t i = 0; i < count; row++, end += of->inner) {
          float value = from[row];
          for (int64_t stop = end < count ? end : count; i < stop; i++) to[i] = value;
        }
        break;
      }
      case BYTES: {
        const uint8_t *from = (const uint8_t *)of->at[one->a] + first;
        EACH((float)(from[i] - one->b));
        break;
      }
      case PERIODIC: {
        const float *from = (const float *)(of->weights + one->a);
        int64_t at = first % one->b;
        if (one->b - at >= count) {
          held[number] = (Held){.at = from + at};
          continue;
        }
        for (int64_t i = 0; i < count; at = 0) {
          int64_t some = one->b - at < count - i ? one->b - at : count - i;
          memcpy(to + i, from + at, 4 * some);
          i += some;
        }
        break;
      }
      case STORE: memmove((char *)of->at[one->b] + 4 * first, x, 4 * count); continue;
      case GRID: {
        float low = (one->b >> 8 & 511) - 256, high = (one->b >> 17 & 511) - 256;
        reals_leave(x, count, low, high, one->b & 255, (uint8_t *)of->at[one->to] + first);
        continue;
      }
      case PLUS: OF_BOTH(SUM_OF); break;
      case MINUS: OF_BOTH(LESS_OF); break;
      case TIMES: OF_BOTH(PRODUCT_OF_TWO); break;
      case OVER: OF_BOTH(SHARE_OF); break;
      case MOST: OF_BOTH(larger); break;
      case LEAST: OF_BOTH(SMALLER_OF); break;
      case NEGATIVE: EACH(-x[i]); break;
      case SQUARE: EACH(x[i] * x[i]); break;
      case ROOT: EACH(__builtin_sqrtf(x[i])); break;
      case INVERSE_ROOT: EACH(1.0f / __builtin_sqrtf(x[i])); break;
      case EXP: EACH(exp_of(x[i])); break;
      case TANH: EACH(tanh_of(x[i])); break;
      case LOGISTIC: EACH(1.0f / (1.0f + exp_of(-x[i]))); break;
      case ABSOLUTE: EACH(__builtin_fabsf(x[i])); break;
    }
    held[number] = (Held){.at = to};
  }
}

typedef float Lanes __attribute__((vector_size(4 * WIDE / PARTS), aligned(4), may_alias));
typedef int32_t Chosen __attribute__((vector_size(4 * WIDE / PARTS), aligned(4), may_alias));

// Lane by lane the sum, or the larger, which is NaN where one is.
static inline Lanes together(int is_sum, Lanes a, Lanes b) {
  if (is_sum) return a + b;
  Chosen first = (a > b) | (a != a);
  return (Lanes)(((Chosen)a & first) | ((Chosen)b & ~first));
}

// Of `count` floats, in lanes of their own that are put together at the end: by halves.
static inline float of_row(int is_sum, const float *x, int64_t count) {
  enum { EACH_LANE = WIDE / PARTS };
  int64_t whole = count / WIDE * WIDE;
  float all = x[0];
  if (whole) {
    Lanes lane[PARTS];
    for (int part = 0; part < PARTS; part++) lane[part] = *(const Lanes *)(x + part * EACH_LANE);
    for (int64_t j = WIDE; j < whole; j += WIDE)
      for (int part = 0; part < PARTS; part++)
        lane[part] = together(is_sum, lane[part], *(const Lanes *)(x + j + part * EACH_LANE));
    for (int half = PARTS / 2; half; half /= 2)
      for (int part = 0; part < half; part++) lane[part] = together(is_sum, lane[part], lane[part + half]);
    Lanes last = lane[0];
#if defined(__AVX512F__)
    last = together(is_sum, last, (Lanes)_mm512_shuffle_f32x4((__m512)last, (__m512)last, 0x4E));
    last = together(is_sum, last, (Lanes)_mm512_shuffle_f32x4((__m512)last, (__m512)last, 0xB1));
#elif defined(__AVX2__)
    last = together(is_sum, last, (Lanes)_mm256_permute2f128_ps((__m256)last, (__m256)last, 1));
#endif
    float four[EACH_LANE];
    *(Lanes *)four = last;
    for (int half = 2; half; half /= 2)
      for (int i = 0; i < half; i++) four[i] = is_sum ? four[i] + four[i + half] : larger(four[i], four[i + half]);
    all = four[0];
  }
  for (int64_t j = whole ? whole : 1; j < count; j++) all = is_sum ? all + x[j] : larger(all, x[j]);
  return all;
}

// [outer, count, inner] -> [outer, inner]: the largest (kind 0), the sum (1) or the mean (2).
static void reduced(int kind, int64_t outer, int64_t count, int64_t inner, const float *x, float *out) {
  for (int64_t o = 0; o < outer; o++, x += count * inner, out += inner) {
    if (inner == 1) {
      float all = kind ? of_row(1, x, count) : of_row(0, x, count);
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

// Of one operand of a product: sizes of a batch of its own, places, and what is summed; how far apart; bytes or floats.
typedef struct {
  int64_t batch_step, step, sum_step, is_bytes, zero;
} Operand;

static inline float entry_of(const Operand *of, const char *at, int64_t index) {
  return (float)(((const uint8_t *)at)[index] - (int32_t)of->zero);
}

enum { ROWS_AT_ONCE = PARTS == 1 ? 8 : PARTS == 2 ? 4 : 2 };

// R rows, `apart` floats from one to the next and `along` within each, by one block of lanes.
#define LANES_OF(NAME, R)                                                                                          \
  static void NAME(const float *packed, int64_t wide, const float *row, int64_t apart, int64_t along, int64_t k,   \
                   float (*lane)[WIDE]) {                                                                          \
    enum { EACH_LANE = WIDE / PARTS };                                                                             \
    Lanes sum[R][PARTS];                                                                                           \
    for (int r = 0; r < R; r++)                                                                                    \
      for (int part = 0; part < PARTS; part++) sum[r][part] = (Lanes){0};                                          \
    for (int64_t s = 0; s < k; s++, packed += wide, row += along)                                                  \
      for (int part = 0; part < PARTS; part++)                                                                     \
        for (int r = 0; r < R; r++) sum[r][part] += row[r * apart] * *(const Lanes *)(packed + part * EACH_LANE);  \
    for (int r = 0; r < R; r++)                                                                                    \
      for (int part = 0; part < PARTS; part++) *(Lanes *)(lane[r] + part * EACH_LANE) = sum[r][part];              \
  }
LANES_OF(lanes_of_one, 1)
LANES_OF(lanes_of_some, ROWS_AT_ONCE)

// The second operand as k rows of n places, filled up with 0.
static void packed_rows(const Operand *of, const char *from, int64_t n, int64_t wide, int64_t k, float *packed) {
  for (int64_t s = 0; s < k; s++)
    for (int64_t j = n; j < wide; j++) packed[s * wide + j] = 0;
  if (of->is_bytes) {
    const uint8_t *bytes = (const uint8_t *)from;
    for (int64_t s = 0; s < k; s++)
      for (int64_t j = 0; j < n; j++)
        packed[s * wide + j] = (float)(bytes[j * of->step + s * of->sum_step] - (int32_t)of->zero);
    return;
  }
  const float *x = (const float *)from;
  if (of->step == 1) {
    for (int64_t s = 0; s < k; s++) memcpy(packed + s * wide, x + s * of->sum_step, 4 * n);
    return;
  }
  for (int64_t j = 0; j < n; j++)
    for (int64_t s = 0; s < k; s++) packed[s * wide + j] = x[j * of->step + s * of->sum_step];
}

// [batch, m, n] of sums over k; `packed` holds k rows of n rounded up, and a few rows of m.
static void multiplied_values(const Operand *a, const Operand *b, int64_t batch, int64_t m, int64_t n, int64_t k,
                              const char *x, const char *y, float *out, float *packed) {
  int64_t wide = (n + WIDE - 1) / WIDE * WIDE;
  float *few = packed + k * wide;
  for (int64_t at = 0; at < batch; at++, out += m * n) {
    packed_rows(b, y + at * b->batch_step * (b->is_bytes ? 1 : 4), n, wide, k, packed);
    for (int64_t i = 0, rows; i < m; i += rows) {
      rows = m - i < ROWS_AT_ONCE ? 1 : ROWS_AT_ONCE;
      int64_t first = at * a->batch_step + i * a->step, apart = a->step, along = a->sum_step;
      const float *row = (const float *)x + first;  // floats are read where they lie
      if (a->is_bytes) {
        for (int64_t r = 0; r < rows; r++)
          for (int64_t s = 0; s < k; s++) few[s * rows + r] = entry_of(a, x, first + r * apart + s * along);
        row = few, apart = 1, along = rows;
      }
      for (int64_t j = 0; j < wide; j += WIDE) {
        float lane[ROWS_AT_ONCE][WIDE];
        if (rows == 1) lanes_of_one(packed + j, wide, row, apart, along, k, lane);
        else lanes_of_some(packed + j, wide, row, apart, along, k, lane);
        for (int64_t r = 0; r < rows; r++) memcpy(out + (i + r) * n + j, lane[r], 4 * (n - j < WIDE ? n - j : WIDE));
      }
    }
  }
}
