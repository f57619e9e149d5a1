// Steps of a plan that go through bytes one by one: tables, sums of two values, maxima.

// Of n, after the entries: zeros of both, their factors, bits of the factor of their sum, zero and ends of the grid.
// Both factors are at most 2^20, in two parts of which each product with a byte is one of 16 bits.
static void add(const int64_t *n, int64_t count, const uint8_t *a, const uint8_t *b, uint8_t *out) {
  int32_t za = (int32_t)n[1], zb = (int32_t)n[2], by_a = (int32_t)n[3], by_b = (int32_t)n[4];
  float factor = as_real((int32_t)n[5]);
  Leave how = {.low = n[7], .high = n[8], .zero = (int)n[6]};
  int64_t i = 0;
#if defined(VECTOR)
  const Bytes none = VECTOR(set1_epi32)(0), start = VECTOR(set1_epi32)(-za * by_a - zb * by_b);
  const Bytes few = VECTOR(set1_epi32)((by_a & 255) | (by_b & 255) << 16);
  const Bytes many = VECTOR(set1_epi32)(by_a >> 8 | by_b >> 8 << 16);
  Reals by[4];
  for (int j = 0; j < 4; j++) by[j] = VECTOR(set1_ps)(factor);
  for (; i + SIDE <= count; i += SIDE) {
    Bytes left = read_bytes(a + i), right = read_bytes(b + i), sum[4];
    Bytes pairs[2] = {VECTOR(unpacklo_epi8)(left, right), VECTOR(unpackhi_epi8)(left, right)};
    for (int j = 0; j < 4; j++) {
      Bytes both = j % 2 ? VECTOR(unpackhi_epi8)(pairs[j / 2], none) : VECTOR(unpacklo_epi8)(pairs[j / 2], none);
      Bytes high = VECTOR(slli_epi32)(VECTOR(madd_epi16)(both, many), 8);
      sum[j] = VECTOR(add_epi32)(VECTOR(add_epi32)(start, high), VECTOR(madd_epi16)(both, few));
    }
    write_bytes(out + i, as_bytes(&how, sum, by));
  }
#endif
  for (; i < count; i++) {
    int32_t sum = (a[i] - za) * by_a + (b[i] - zb) * by_b;
    out[i] = on_grid((float)sum * factor, how.low, how.high, how.zero);
  }
}

// Bytes by the 256 entries of a table.
static void looked_up(int64_t count, const uint8_t *x, const uint8_t *entries, uint8_t *out) {
  int64_t i = 0;
#if defined(__AVX512VBMI__) && defined(__AVX512BW__)
  Bytes part[4];
  for (int j = 0; j < 4; j++) part[j] = read_bytes(entries + 64 * j);
  for (; i + SIDE <= count; i += SIDE) {
    Bytes at = read_bytes(x + i), low = _mm512_permutex2var_epi8(part[0], at, part[1]);
    Bytes high = _mm512_permutex2var_epi8(part[2], at, part[3]);
    write_bytes(out + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(at), low, high));
  }
#endif
  for (; i < count; i++) out[i] = entries[x[i]];
}

// The largest of each channel in `rows` by `entries` pixels, of `c` bytes each.
static void largest(const uint8_t *x, int64_t row, int64_t rows, int64_t entries, int64_t c, uint8_t *out) {
  int64_t k = 0;
#if defined(__SSE2__)
  for (; k + 16 <= c; k += 16) {
    __m128i most = _mm_loadu_si128((const __m128i *)(x + k));
    for (int64_t a = 0; a < rows; a++)
      for (int64_t b = 0; b < entries; b++)
        most = _mm_max_epu8(most, _mm_loadu_si128((const __m128i *)(x + a * row + b * c + k)));
    _mm_storeu_si128((__m128i *)(out + k), most);
  }
#endif
  for (; k < c; k++) {
    uint8_t most = 0;
    for (int64_t a = 0; a < rows; a++)
      for (int64_t b = 0; b < entries; b++) {
        uint8_t one = x[a * row + b * c + k];
        most = most > one ? most : one;
      }
    out[k] = most;
  }
}
