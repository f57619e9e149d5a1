// The arithmetic: sums that stay in registers, over windows that `windows.h` has laid out.

#if defined(__AVX512F__)
enum { LANES = 16, REGISTERS = 32 };
#elif defined(__AVX__)
enum { LANES = 8, REGISTERS = 16 };
#elif defined(__x86_64__) || defined(__i386__)
enum { LANES = 4, REGISTERS = 16 };
#else
enum { LANES = 4, REGISTERS = 32 };
#endif

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));

// P pixels by V vectors of sums: the window's entries at each pixel times the packed weights.
#define SUMS(P, V)                                                                                            \
  static void sums_##P##_##V(const float *x, const int64_t *at, const Window *of, const float *w, float *out, \
                             int64_t step) {                                                                  \
    Vector sum[P][V];                                                                                         \
    const float *pixel[P];                                                                                    \
    for (int p = 0; p < P; p++) pixel[p] = x + at[p];                                                         \
    for (int p = 0; p < P; p++)                                                                               \
      for (int v = 0; v < V; v++) sum[p][v] = (Vector){0};                                                    \
    for (int64_t run = 0; run < runs(of); run++) {                                                            \
      int64_t begin = begins(of, run);                                                                        \
      for (int64_t j = begin; j < begin + of->length; j++, w += V * LANES) {                                  \
        for (int p = 0; p < P; p++)                                                                           \
          for (int v = 0; v < V; v++) sum[p][v] += pixel[p][j] * ((const Vector *)w)[v];                      \
      }                                                                                                       \
    }                                                                                                         \
    for (int p = 0; p < P; p++)                                                                               \
      for (int v = 0; v < V; v++) ((Vector *)(out + p * step))[v] = sum[p][v];                                \
  }

// P entries of a window by V vectors of the weights' gradient, over all pixels, added to what is there. Where a pixel's
// window begins stands in a table: rows may be short, and a loop over each would be left more often than it is run.
#define SLOPES(P, V)                                                                                            \
  static void slopes_##P##_##V(const float *x, const int64_t *at, const float *g, int64_t step, int64_t pixels, \
                               float *out) {                                                                    \
    Vector sum[P][V];                                                                                           \
    for (int p = 0; p < P; p++)                                                                                 \
      for (int v = 0; v < V; v++) sum[p][v] = ((Vector *)(out + p * V * LANES))[v];                             \
    for (int64_t i = 0; i < pixels; i++, g += step) {                                                           \
      const float *from = x + at[i];                                                                            \
      for (int p = 0; p < P; p++)                                                                               \
        for (int v = 0; v < V; v++) sum[p][v] += from[p] * ((const Vector *)g)[v];                              \
    }                                                                                                           \
    for (int p = 0; p < P; p++)                                                                                 \
      for (int v = 0; v < V; v++) ((Vector *)(out + p * V * LANES))[v] = sum[p][v];                             \
  }

// As many sums as there are registers for, beside the vectors that they are made of.
#define UP_TO_3(DO, V) DO(1, V) DO(2, V) DO(3, V)
#define UP_TO_6(DO, V) UP_TO_3(DO, V) DO(4, V) DO(5, V) DO(6, V)
#define UP_TO_12(DO, V) UP_TO_6(DO, V) DO(7, V) DO(8, V) DO(9, V) DO(10, V) DO(11, V) DO(12, V)
#define ALL(DO) UP_TO_12(DO, 1) UP_TO_12(DO, 2) UP_TO_6(DO, 4)
ALL(SUMS)
ALL(SLOPES)

typedef void (*Sums)(const float *, const int64_t *, const Window *, const float *, float *, int64_t);
typedef void (*Slopes)(const float *, const int64_t *, const float *, int64_t, int64_t, float *);
#define SUMS_NAME(P, V) [V][P] = sums_##P##_##V,
#define SLOPES_NAME(P, V) [V][P] = slopes_##P##_##V,
static const Sums sums[5][13] = {ALL(SUMS_NAME)};
static const Slopes slopes[5][13] = {ALL(SLOPES_NAME)};

static int most(int vectors) { return vectors == 1 ? 12 : (REGISTERS == 32 ? 20 : vectors == 2 ? 12 : 8) / vectors; }

// Vectors of the next block of channels: the widest that wastes none.
static int vectors(int64_t left) { return left >= 4 * LANES ? 4 : left > LANES ? 2 : 1; }

static int64_t rounded(int64_t channels) {
  int64_t wide = 0;
  while (wide < channels) wide += vectors(channels - wide) * LANES;
  return wide;
}

// How many tiles of equal size, but for one, a length is cut into.
static int64_t tiles(int64_t length, int at_most) { return (length + at_most - 1) / at_most; }

#define AT(p) (*(const Vector *)(p))

// Pixels of which every channel is summed alone: four at a time, by a vector of channels.
static void sums_alone(const float *x, const int64_t *pixel, int64_t pixels, const int64_t *entry, int64_t count,
                       const float *w, int64_t channels, float *out, int64_t wide, int64_t down, int64_t along) {
  int64_t c = 0;
  for (; c + LANES <= channels; c += LANES) {
    for (int64_t p = 0, n; p < pixels; p += n) {
      n = pixels - p < 4 ? 1 : 4;
      Vector sum[4] = {{0}};
      for (int64_t e = 0; e < count; e++) {
        const float *from = x + entry[e] + c;
        Vector by = AT(w + e * channels + c);
        sum[0] += AT(from + pixel[p]) * by;
        if (n == 1) continue;
        for (int i = 1; i < 4; i++) sum[i] += AT(from + pixel[p + i]) * by;
      }
      for (int i = 0; i < n; i++) *(Vector *)(out + (p + i) / wide * down + (p + i) % wide * along + c) = sum[i];
    }
  }
  for (; c < channels; c++) {
    for (int64_t p = 0; p < pixels; p++) {
      float sum = 0;
      for (int64_t e = 0; e < count; e++) sum += x[pixel[p] + entry[e] + c] * w[e * channels + c];
      out[p / wide * down + p % wide * along + c] = sum;
    }
  }
}

// The same weights' gradient, added to what is there: four entries of the window at a time.
static void slopes_alone(const float *x, const int64_t *pixel, int64_t pixels, const int64_t *entry, int64_t count,
                         const float *g, int64_t step, int64_t channels, float *out) {
  int64_t c = 0;
  for (; c + LANES <= channels; c += LANES) {
    for (int64_t e = 0, n; e < count; e += n) {
      n = count - e < 4 ? 1 : 4;
      Vector sum[4] = {{0}};
      for (int64_t p = 0; p < pixels; p++) {
        const float *from = x + pixel[p] + c;
        Vector by = AT(g + p * step + c);
        sum[0] += AT(from + entry[e]) * by;
        if (n == 1) continue;
        for (int i = 1; i < 4; i++) sum[i] += AT(from + entry[e + i]) * by;
      }
      for (int i = 0; i < n; i++) *(Vector *)(out + (e + i) * channels + c) += sum[i];
    }
  }
  for (; c < channels; c++)
    for (int64_t e = 0; e < count; e++)
      for (int64_t p = 0; p < pixels; p++) out[e * channels + c] += x[pixel[p] + entry[e] + c] * g[p * step + c];
}
