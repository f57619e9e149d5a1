// How sums leave: to bytes on a grid, or to floats; and bytes by the processor's widest vectors, in one text for every
// width. Lanes of 128 bits are worked on each alone: what is unpacked within them is packed again in order.

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// What is said of the loop that follows: that it is written out, so that what it counts stays in registers; that no
// turn reads what another writes.
#if defined(__clang__)
#define WRITTEN_OUT(turns) _Pragma("clang loop unroll(full)")
#define INDEPENDENT
#else
#define SAID(what) _Pragma(#what)
#define WRITTEN_OUT(turns) SAID(GCC unroll turns)
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

// What leaves sums: bytes on a grid, or floats.
typedef struct {
  const float *factor;  // of each output
  float low, high;      // ends of the grid, counted from its zero
  int zero, is_float;
} Leave;

// The nearest whole number of a value of small size, ties to even, whatever the compiler does with `rint`.
static inline float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

static inline uint8_t on_grid(float real, float low, float high, int zero) {
  real = real > low ? real : low;  // before it is rounded: the ends are whole
  real = real < high ? real : high;
  return (uint8_t)((int)nearest(real) + zero);
}

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define VECTOR(name) _mm512_##name
#define WHOLE(name) _mm512_##name##_si512
typedef __m512i Bytes;
typedef __m512 Reals;
#elif defined(__AVX2__)
#define VECTOR(name) _mm256_##name
#define WHOLE(name) _mm256_##name##_si256
typedef __m256i Bytes;
typedef __m256 Reals;
#elif defined(__SSE2__)
#define VECTOR(name) _mm_##name
#define WHOLE(name) _mm_##name##_si128
typedef __m128i Bytes;
typedef __m128 Reals;
#endif

#if defined(VECTOR)
static inline Bytes read_bytes(const void *at) { return WHOLE(loadu)((const Bytes *)at); }
static inline Reals read_reals(const float *at) { return VECTOR(loadu_ps)(at); }
static inline void write_bytes(void *at, Bytes all) { WHOLE(storeu)((Bytes *)at, all); }

enum { SIDE = sizeof(Bytes) };  // bytes side by side

// `to` and `from` may be of any size and lie anywhere, but apart.
static inline void copied(uint8_t *to, const uint8_t *from, int64_t count) {
  if (count < 16) {
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
    return;
  }
  int64_t i = 0;
  for (; i + SIDE <= count; i += SIDE) write_bytes(to + i, read_bytes(from + i));
  for (; i < count; i += 16) {  // the last ones again
    int64_t at = i + 16 <= count ? i : count - 16;
    _mm_storeu_si128((__m128i *)(to + at), _mm_loadu_si128((const __m128i *)(from + at)));
  }
}

static inline void filled(uint8_t *to, int value, int64_t count) {
  if (count < 16) {
    for (int64_t i = 0; i < count; i++) to[i] = (uint8_t)value;
    return;
  }
  int64_t i = 0;
  Bytes all = VECTOR(set1_epi8)((char)value);
  for (; i + SIDE <= count; i += SIDE) write_bytes(to + i, all);
  for (; i < count; i += 16) {
    int64_t at = i + 16 <= count ? i : count - 16;
    _mm_storeu_si128((__m128i *)(to + at), _mm_set1_epi8((char)value));
  }
}

// Four vectors of reals as bytes of a grid: of each lane first those of the first vector. The last conversion
// saturates, so that only the upper end has to be there before; what is no number is below all.
static inline __attribute__((always_inline)) Bytes packed_reals(const Leave *of, const Reals *real) {
  Reals high = VECTOR(set1_ps)(of->high);
  int32_t low = (int32_t)of->low + of->zero;
  Bytes whole[4], zero = VECTOR(set1_epi16)((short)of->zero);
  for (int i = 0; i < 4; i++) whole[i] = VECTOR(cvtps_epi32)(VECTOR(min_ps)(high, real[i]));
  Bytes first = VECTOR(adds_epi16)(VECTOR(packs_epi32)(whole[0], whole[1]), zero);
  Bytes last = VECTOR(adds_epi16)(VECTOR(packs_epi32)(whole[2], whole[3]), zero);
  return VECTOR(max_epu8)(VECTOR(packus_epi16)(first, last), VECTOR(set1_epi8)((char)(low < 0 ? 0 : low)));
}

// The same of sums, each times its factor.
static inline __attribute__((always_inline)) Bytes as_bytes(const Leave *of, const Bytes *sum, const Reals *by) {
  Reals real[4];
  for (int i = 0; i < 4; i++) real[i] = VECTOR(mul_ps)(VECTOR(cvtepi32_ps)(sum[i]), by[i]);
  return packed_reals(of, real);
}

// Four vectors that were packed, one after the other.
static inline __attribute__((always_inline)) Bytes in_order(Bytes packed) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), packed);
#elif defined(__AVX2__)
  return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#else
  return packed;
#endif
}
#else
static inline void copied(uint8_t *to, const uint8_t *from, int64_t count) { memcpy(to, from, count); }

static inline void filled(uint8_t *to, int value, int64_t count) { memset(to, value, count); }
#endif

// Floats, scaled already, onto a grid; what is no number is 0 there.
static void reals_leave(const float *x, int64_t count, float low, float high, int zero, uint8_t *out) {
  int64_t i = 0;
#if defined(VECTOR)
  const Leave how = {.low = low, .high = high, .zero = zero};
  for (; i + SIDE <= count; i += SIDE) {
    Reals real[4];
    for (int j = 0; j < 4; j++) {
      Reals one = read_reals(x + i + j * SIDE / 4);
      real[j] = (Reals)((one == one) & (__typeof__(one == one))one);
    }
    write_bytes(out + i, in_order(packed_reals(&how, real)));
  }
#endif
  for (; i < count; i++) out[i] = on_grid(x[i] == x[i] ? x[i] : 0.0f, low, high, zero);
}
