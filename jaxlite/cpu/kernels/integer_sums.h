// Sums of products of bytes, unsigned by signed, in 16 lanes of int32, and what leaves them. Exact: no form saturates.

#include "leaving.h"

enum { WIDE = 16 };  // sums side by side, whatever the processor's vectors are

// The processor's vectors of sums, and of weights: four for each lane.
#if defined(__AVX512F__)
enum { PARTS = 1 };
#elif defined(__AVX2__)
enum { PARTS = 2 };
#else
enum { PARTS = 4 };
#endif
typedef int32_t Part __attribute__((vector_size(4 * WIDE / PARTS), aligned(4), may_alias));
typedef uint32_t Wrapping __attribute__((vector_size(4 * WIDE / PARTS), aligned(4), may_alias));

// Sums wrap around, as the zero's share in a bias may have done: what they come to is right again.
static inline __attribute__((always_inline)) Part plus(Part a, Part b) { return (Part)((Wrapping)a + (Wrapping)b); }

// Adds to each lane the products of four bytes, `x` from its lowest on, by the lane's four weights.
static inline __attribute__((always_inline)) Part products(Part sum, int32_t x, Part w) {
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
  return (Part)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(x), (__m512i)w);
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
  return (Part)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32(x), (__m256i)w);
#elif defined(__AVX512BW__) && defined(__AVX512F__)
  // `maddubs` saturates; bytes 0 and 2, then 1 and 3, as pairs of 16 bits do not.
  __m512i all = _mm512_set1_epi32(x), even = _mm512_srai_epi16(_mm512_slli_epi16((__m512i)w, 8), 8);
  __m512i few = _mm512_and_si512(all, _mm512_set1_epi16(255)), odd = _mm512_srai_epi16((__m512i)w, 8);
  sum = plus(sum, (Part)_mm512_madd_epi16(few, even));
  return plus(sum, (Part)_mm512_madd_epi16(_mm512_srli_epi16(all, 8), odd));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  __m256i all = _mm256_set1_epi32(x), even = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)w, 8), 8);
  __m256i few = _mm256_and_si256(all, _mm256_set1_epi16(255)), odd = _mm256_srai_epi16((__m256i)w, 8);
  sum = plus(sum, (Part)_mm256_madd_epi16(few, even));
  return plus(sum, (Part)_mm256_madd_epi16(_mm256_srli_epi16(all, 8), odd));
#elif defined(__SSE2__) && !defined(__AVX512F__)
  __m128i all = _mm_set1_epi32(x), even = _mm_srai_epi16(_mm_slli_epi16((__m128i)w, 8), 8);
  __m128i few = _mm_and_si128(all, _mm_set1_epi16(255)), odd = _mm_srai_epi16((__m128i)w, 8);
  sum = plus(sum, (Part)_mm_madd_epi16(few, even));
  return plus(sum, (Part)_mm_madd_epi16(_mm_srli_epi16(all, 8), odd));
#else
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "the order of bytes in a lane is that of little-endian processors"
#endif
  sum = plus(sum, (w << 24 >> 24) * (x & 255) + (w << 16 >> 24) * (x >> 8 & 255));
  return plus(sum, (w << 8 >> 24) * (x >> 16 & 255) + (w >> 24) * (x >> 24 & 255));
#endif
}

// Lets the first `count` lanes of a sum leave to `out`.
static inline __attribute__((always_inline)) void leaves(const Leave *of, const float *factor, const Part *sum, int count,
                                                        char *out) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  __mmask16 mask = (__mmask16)((1u << count) - 1);
  __m512 real = _mm512_mul_ps(_mm512_cvtepi32_ps((__m512i)sum[0]), _mm512_loadu_ps(factor));
  if (of->is_float) {
    _mm512_mask_storeu_ps((float *)out, mask, real);
    return;
  }
  real = _mm512_min_ps(_mm512_max_ps(real, _mm512_set1_ps(of->low)), _mm512_set1_ps(of->high));
  __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(real), _mm512_set1_epi32(of->zero));
  _mm512_mask_cvtepi32_storeu_epi8(out, mask, whole);
#else
  int32_t lane[WIDE];
  for (int i = 0; i < PARTS; i++) *(Part *)(lane + i * WIDE / PARTS) = sum[i];
  if (of->is_float) {
    float real[WIDE];
    for (int i = 0; i < WIDE; i++) real[i] = (float)lane[i] * factor[i];
    memcpy(out, real, 4 * (size_t)count);
    return;
  }
  uint8_t bytes[WIDE];
#if defined(__SSE2__)
  __m128i whole[4];
  for (int i = 0; i < 4; i++) {
    __m128 real = _mm_cvtepi32_ps(_mm_loadu_si128((const __m128i *)(lane + 4 * i)));
    real = _mm_mul_ps(real, _mm_loadu_ps(factor + 4 * i));
    real = _mm_min_ps(_mm_max_ps(real, _mm_set1_ps(of->low)), _mm_set1_ps(of->high));
    whole[i] = _mm_add_epi32(_mm_cvtps_epi32(real), _mm_set1_epi32(of->zero));
  }
  __m128i low = _mm_packs_epi32(whole[0], whole[1]), high = _mm_packs_epi32(whole[2], whole[3]);
  _mm_storeu_si128((__m128i *)bytes, _mm_packus_epi16(low, high));
#else
  for (int i = 0; i < WIDE; i++) bytes[i] = on_grid((float)lane[i] * factor[i], of->low, of->high, of->zero);
#endif
  memcpy(out, bytes, count);
#endif
}

// Where a window's bytes lie, from its first on: runs, each padded with weights of 0 to a multiple of four.
typedef struct {
  int64_t count, fours;    // runs; groups of four bytes in each
  int64_t inner;           // runs in a row of the window
  int64_t row, next;       // bytes from one row of the window to the next, from one run to the next
} Runs;

// Sums of whole blocks become bytes four vectors at a time, where both are of one width.
#if defined(VECTOR) && (!defined(__AVX512F__) || defined(__AVX512BW__))
#define BLOCKS_LEAVE
enum { TOGETHER = 4 / PARTS };  // blocks

// One block of several.
static inline __attribute__((always_inline)) void block_leaves(Bytes all, int which, char *out) {
#if defined(__AVX512F__)
  __m128i found = which == 1   ? _mm512_extracti32x4_epi32(all, 1)
                  : which == 2 ? _mm512_extracti32x4_epi32(all, 2)
                  : which == 3 ? _mm512_extracti32x4_epi32(all, 3)
                               : _mm512_castsi512_si128(all);
#elif defined(__AVX2__)
  __m128i found = which ? _mm256_extracti128_si256(all, 1) : _mm256_castsi256_si128(all);
#else
  __m128i found = all;
  (void)which;
#endif
  _mm_storeu_si128((__m128i *)out, found);
}
#endif

// What leaves of places by blocks that are not whole, or floats.
static void some_leave(const Leave *of, const float *factor, const int32_t *lanes, int64_t places, int64_t blocks,
                       int64_t left, char *out, int64_t out_step) {
  int64_t size = of->is_float ? 4 : 1;
  for (int64_t p = 0; p < places; p++)
    for (int64_t v = 0; v < blocks; v++, lanes += WIDE) {
      int64_t count = left - v * WIDE < WIDE ? left - v * WIDE : WIDE;
      leaves(of, factor + v * WIDE, (const Part *)lanes, (int)count, out + p * out_step + v * WIDE * size);
    }
}

#if defined(BLOCKS_LEAVE)
#define WHOLE_BLOCKS(P, V)                                                                                           \
  if (of->is_float && left >= V * WIDE) {                                                                            \
    WRITTEN_OUT(12) for (int p = 0; p < P; p++)                                                                      \
      WRITTEN_OUT(4) for (int n = 0; n < N; n++) {                                                                   \
        Reals real = VECTOR(mul_ps)(VECTOR(cvtepi32_ps)((Bytes)sum[p][n]), read_reals(factor + n * EACH));           \
        memcpy(out + p * out_step + 4 * n * EACH, &real, sizeof(real));                                              \
      }                                                                                                              \
    return;                                                                                                          \
  }                                                                                                                  \
  if (left >= V * WIDE) {                                                                                            \
    WRITTEN_OUT(16) for (int i = 0; i < P * V; i += TOGETHER) {                                                      \
      Bytes each[4];                                                                                                 \
      Reals by[4];                                                                                                   \
      WRITTEN_OUT(4) for (int j = 0; j < 4; j++) {                                                                   \
        int n = i + j / PARTS < P * V ? i + j / PARTS : P * V - 1, part = j % PARTS;                                 \
        each[j] = (Bytes)sum[n / V][n % V * PARTS + part];                                                           \
        by[j] = read_reals(factor + n % V * WIDE + part * EACH);                                                     \
      }                                                                                                              \
      Bytes found = in_order(as_bytes(of, each, by));                                                                  \
      if (V % TOGETHER == 0) write_bytes(out + i / V * out_step + i % V * WIDE, found);                              \
      else                                                                                                           \
        WRITTEN_OUT(4) for (int j = 0; j < TOGETHER; j++)                                                            \
          if (i + j < P * V) block_leaves(found, j, out + (i + j) / V * out_step + (i + j) % V * WIDE);              \
    }                                                                                                                \
    return;                                                                                                          \
  }
#else
#define WHOLE_BLOCKS(P, V)
#endif

// P places by V blocks of lanes.
#define PRODUCT(P, V)                                                                                                \
  static void product_##P##_##V(const uint8_t *x, int64_t step, const Runs *runs, const int8_t *w, int64_t apart,   \
                                const int32_t *bias, const float *factor, const Leave *of, int64_t left, char *out, \
                                int64_t out_step) {                                                                  \
    enum { N = V * PARTS, EACH = WIDE / PARTS };                                                                     \
    Part sum[P][N];                                                                                                  \
    for (int n = 0; n < N; n++)                                                                                      \
      for (int p = 0; p < P; p++) sum[p][n] = *(const Part *)(bias + n * EACH);                                      \
    int64_t left_runs = runs->count, in_row = runs->inner;                                                           \
    do {                                                                                                             \
      const uint8_t *at = x, *end = x + 4 * runs->fours;                                                             \
      do {                                                                                                           \
        Part by[N];                                                                                                  \
        for (int n = 0; n < N; n++) by[n] = *(const Part *)(w + n / PARTS * apart + n % PARTS * 4 * EACH);           \
        for (int p = 0; p < P; p++) {                                                                                \
          int32_t bytes;                                                                                             \
          memcpy(&bytes, at + p * step, 4);                                                                          \
          for (int n = 0; n < N; n++) sum[p][n] = products(sum[p][n], bytes, by[n]);                                 \
        }                                                                                                            \
        w += 4 * WIDE, at += 4;                                                                                      \
      } while (at != end);                                                                                           \
      x += runs->next;                                                                                               \
      if (--in_row == 0) x += runs->row - runs->inner * runs->next, in_row = runs->inner;                            \
    } while (--left_runs);                                                                                           \
    WHOLE_BLOCKS(P, V)                                                                                               \
    int32_t lanes[P * V * WIDE];                                                                                     \
    for (int p = 0; p < P; p++)                                                                                      \
      for (int n = 0; n < N; n++) *(Part *)(lanes + p * V * WIDE + n * EACH) = sum[p][n];                            \
    some_leave(of, factor, lanes, P, V, left, out, out_step);                                                        \
  }

enum { MOST_NEAR = 24 << 10 };  // bytes of weights that are to stay in the nearest cache

// As many places and blocks at once as there are registers for their sums.
#if defined(__AVX512F__)
enum { WIDEST = 4, PLACES_1 = 12, PLACES_2 = 12, PLACES_4 = 6 };
#elif defined(__AVX2__)
enum { WIDEST = 1, PLACES_1 = 5, PLACES_2 = 1, PLACES_4 = 1 };
#else
enum { WIDEST = 1, PLACES_1 = 2, PLACES_2 = 1, PLACES_4 = 1 };
#endif

#define INTEGERS_UP_TO_6(DO, V) DO(1, V) DO(2, V) DO(3, V) DO(4, V) DO(5, V) DO(6, V)
#define INTEGERS_UP_TO_12(DO, V) \
  INTEGERS_UP_TO_6(DO, V) DO(7, V) DO(8, V) DO(9, V) DO(10, V) DO(11, V) DO(12, V)
#define ALL_INTEGERS(DO) INTEGERS_UP_TO_12(DO, 1) INTEGERS_UP_TO_12(DO, 2) INTEGERS_UP_TO_6(DO, 4)
ALL_INTEGERS(PRODUCT)

typedef void (*Product)(const uint8_t *, int64_t, const Runs *, const int8_t *, int64_t, const int32_t *, const float *,
                        const Leave *, int64_t, char *, int64_t);
#define PRODUCT_NAME(P, V) [V][P] = product_##P##_##V,
static const Product product[5][13] = {ALL_INTEGERS(PRODUCT_NAME)};

// `rows` rows of `places` places, `step` bytes apart, times all weights of a group: blocks of lanes after one another,
// each for all places, so that its weights stay in the nearest cache.
static void multiplied(const uint8_t *x, int64_t down, int64_t rows, int64_t step, int64_t places, const Runs *runs,
                       const int8_t *w, const int32_t *bias, const Leave *of, int64_t outputs, char *out,
                       int64_t out_down, int64_t out_step) {
  int64_t apart = runs->count * runs->fours * 4 * WIDE, size = of->is_float ? 4 : 1;
  for (int64_t o = 0, blocks; o < outputs; o += blocks * WIDE, w += blocks * apart) {
    int64_t left = outputs - o;
    blocks = left > 3 * WIDE ? 4 : left > WIDE ? 2 : 1;  // none is wasted
    if (blocks == 4 && 4 * apart > MOST_NEAR) blocks = 2;
    if (blocks > WIDEST) blocks = WIDEST;
    int64_t most = blocks == 4 ? PLACES_4 : blocks == 2 ? PLACES_2 : PLACES_1, tiles = (places + most - 1) / most;
    for (int64_t i = 0; i < rows; i++)
      for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t p = tile * places / tiles, count = (tile + 1) * places / tiles - p;
        product[blocks][count](x + i * down + p * step, step, runs, w, apart, bias + o, of->factor + o, of, left,
                               out + i * out_down + p * out_step + o * size, out_step);
      }
  }
}
