// Channels that are summed each alone, as many at a time as a vector of BITS has bytes: `channels.h` includes this text
// once for each width that the processor has.

#define JOINED_(name, bits) name##_##bits
#define JOINED(name, bits) JOINED_(name, bits)
#define OF_WIDTH(name) JOINED(name, BITS)
#if BITS == 512
#define LANES(name) _mm512_##name
#define READ(at) _mm512_loadu_si512(at)
#define REALS(at) _mm512_loadu_ps(at)
typedef __m512i OF_WIDTH(Vector);
typedef __m512 OF_WIDTH(Real);
#elif BITS == 256
#define LANES(name) _mm256_##name
#define READ(at) _mm256_loadu_si256((const __m256i *)(at))
#define REALS(at) _mm256_loadu_ps(at)
typedef __m256i OF_WIDTH(Vector);
typedef __m256 OF_WIDTH(Real);
#else
#define LANES(name) _mm_##name
#define READ(at) _mm_loadu_si128((const __m128i *)(at))
#define REALS(at) _mm_loadu_ps(at)
typedef __m128i OF_WIDTH(Vector);
typedef __m128 OF_WIDTH(Real);
#endif

// Adds to each lane the products of its four bytes, unsigned by signed.
static inline __attribute__((always_inline)) OF_WIDTH(Vector) OF_WIDTH(dot)(OF_WIDTH(Vector) sum, OF_WIDTH(Vector) x,
                                                                            OF_WIDTH(Vector) w) {
#if defined(__AVX512VNNI__) && (BITS == 512 || defined(__AVX512VL__))
  return LANES(dpbusd_epi32)(sum, x, w);
#elif defined(__AVXVNNI__) && BITS < 512
  return LANES(dpbusd_avx_epi32)(sum, x, w);
#else
  OF_WIDTH(Vector) even = LANES(srai_epi16)(LANES(slli_epi16)(w, 8), 8), odd = LANES(srai_epi16)(w, 8);
  OF_WIDTH(Vector) of_even = LANES(srli_epi16)(LANES(slli_epi16)(x, 8), 8), of_odd = LANES(srli_epi16)(x, 8);
  sum = LANES(add_epi32)(sum, LANES(madd_epi16)(of_even, even));
  return LANES(add_epi32)(sum, LANES(madd_epi16)(of_odd, odd));
#endif
}

// Of each channel its bytes in four entries.
static inline __attribute__((always_inline)) void OF_WIDTH(four)(const uint8_t *a, const uint8_t *b, const uint8_t *c,
                                                                 const uint8_t *d, OF_WIDTH(Vector) *found) {
  OF_WIDTH(Vector) of_a = READ(a), of_b = READ(b), of_c = READ(c), of_d = READ(d);
  OF_WIDTH(Vector) ab = LANES(unpacklo_epi8)(of_a, of_b), cd = LANES(unpacklo_epi8)(of_c, of_d);
  found[0] = LANES(unpacklo_epi16)(ab, cd), found[1] = LANES(unpackhi_epi16)(ab, cd);
  ab = LANES(unpackhi_epi8)(of_a, of_b), cd = LANES(unpackhi_epi8)(of_c, of_d);
  found[2] = LANES(unpacklo_epi16)(ab, cd), found[3] = LANES(unpackhi_epi16)(ab, cd);
}

static inline __attribute__((always_inline)) void OF_WIDTH(sums_leave)(const Leave *how, OF_WIDTH(Vector) *sum,
                                                                       const float *factor, int64_t left, char *out) {
  enum { COUNT = BITS / 8 };
  if (how->is_float) {
    int32_t lane[4 * COUNT / 4];
    WRITTEN_OUT(4)
    for (int j = 0; j < 4; j++) memcpy(lane + j * COUNT / 4, &sum[j], COUNT);
    reals_alone(lane, COUNT, factor, left, out);
    return;
  }
  OF_WIDTH(Real) high = LANES(set1_ps)(how->high);
  int32_t low = (int32_t)how->low + how->zero;
  OF_WIDTH(Vector) zero = LANES(set1_epi16)((short)how->zero);
  WRITTEN_OUT(4)
  for (int j = 0; j < 4; j++) {  // as `as_bytes`
    OF_WIDTH(Real) real = LANES(mul_ps)(LANES(cvtepi32_ps)(sum[j]), REALS(factor + 16 * j));
    sum[j] = LANES(cvtps_epi32)(LANES(min_ps)(high, real));
  }
  OF_WIDTH(Vector) first = LANES(adds_epi16)(LANES(packs_epi32)(sum[0], sum[1]), zero);
  OF_WIDTH(Vector) last = LANES(adds_epi16)(LANES(packs_epi32)(sum[2], sum[3]), zero);
  last = LANES(packus_epi16)(first, last);
  last = LANES(max_epu8)(last, LANES(set1_epi8)((char)(low < 0 ? 0 : low)));
  if (left >= COUNT) memcpy(out, &last, COUNT);
  else memcpy(out, &last, left);
}

// P places of a row whose windows of 3 by 3 begin S entries apart.
static inline __attribute__((always_inline)) void OF_WIDTH(columns)(int P, int S, const Alone *of, const uint8_t *x,
                                                                    const int8_t *w, OF_WIDTH(Vector) sum[][4]) {
  WRITTEN_OUT(9)
  for (int column = 0; column < (P - 1) * S + 3; column++, x += of->next) {
    OF_WIDTH(Vector) found[4];
    OF_WIDTH(four)(x, x + of->row, x + 2 * of->row, x + 2 * of->row, found);
    WRITTEN_OUT(4)
    for (int p = 0; p < P; p++) {
      int entry = column - p * S;
      if (entry < 0 || entry > 2) continue;
      WRITTEN_OUT(4)
      for (int j = 0; j < 4; j++) sum[p][j] = OF_WIDTH(dot)(sum[p][j], found[j], READ(w + 256 * entry + 64 * j));
    }
  }
}

#define LET_LEAVE(P)                                                \
  WRITTEN_OUT(4)                                                    \
  for (int p = 0; p < P; p++, out += of->channels * size)           \
    OF_WIDTH(sums_leave)(of->how, sum[p], factor, left, out);
#define START(P)                                                    \
  OF_WIDTH(Vector) sum[P][4];                                       \
  WRITTEN_OUT(4)                                                    \
  for (int p = 0; p < P; p++)                                       \
    WRITTEN_OUT(4)                                                  \
    for (int j = 0; j < 4; j++) sum[p][j] = READ(bias + 16 * j);

// The channels from `k` on.
static void OF_WIDTH(alone)(const Alone *of, int64_t k) {
  int64_t at = k / 64 * 64 + k % 64 / 16 * 4, left = of->channels - k, size = of->how->is_float ? 4 : 1;
  const int8_t *w = of->w + k / 64 * 256 * of->fours + k % 64;
  const int32_t *bias = of->bias + at;
  const float *factor = of->how->factor + at;
  char *out = of->out + k * size;
  for (int64_t i = 0; i < of->oh; i++) {
    const uint8_t *x = of->x + i * of->down + k;
    int64_t j = 0;
#define COLUMNS(P, S)                                                            \
  for (; j + P <= of->ow; j += P, x += P * of->right) {                          \
    START(P)                                                                     \
    OF_WIDTH(columns)(P, S, of, x, w, sum);                                      \
    LET_LEAVE(P)                                                                 \
  }
    if (of->columns && of->right == of->next) {
#if BITS == 512
      COLUMNS(4, 1)
#endif
      COLUMNS(2, 1)
    } else if (of->columns && of->right == 2 * of->next) {
      COLUMNS(2, 2)
    }
    if (of->columns) {
      COLUMNS(1, 1)
    }
    for (; j < of->ow; j++, x += of->right) {
      const int64_t *entry = of->entry;
      const int8_t *by = w;
      START(1)
      for (int64_t four = 0; four < of->fours; four++, entry += 4, by += 256) {
        OF_WIDTH(Vector) found[4];
        OF_WIDTH(four)(x + entry[0], x + entry[1], x + entry[2], x + entry[3], found);
        for (int v = 0; v < 4; v++) sum[0][v] = OF_WIDTH(dot)(sum[0][v], found[v], READ(by + 64 * v));
      }
      LET_LEAVE(1)
    }
  }
}

#undef COLUMNS
#undef START
#undef LET_LEAVE
#undef REALS
#undef READ
#undef LANES
#undef OF_WIDTH
#undef JOINED
#undef JOINED_
