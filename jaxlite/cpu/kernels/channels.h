// Convolutions of which every channel is summed alone. Channels lie in blocks of 64; in each, weights, biases and
// factors are in the order in which vectors unpack bytes: four channels of each 16, then the next four.

enum { CHANNELS = 64 };

static int64_t in_blocks(int64_t channels) { return (channels + CHANNELS - 1) / CHANNELS * CHANNELS; }

// The place of a channel in that order.
static inline int64_t order_of(int64_t k) { return k / 64 * 64 + k % 16 / 4 * 16 + k % 64 / 16 * 4 + k % 4; }

// What is summed: windows begin `right` bytes apart in a row of places, `down` from one row to the next.
typedef struct {
  const uint8_t *x;
  int64_t channels, oh, ow, right, down;
  int64_t row, next;           // bytes from one row of the window to the next, from one entry to the next
  const int64_t *entry;        // where each stands, in fours; those beyond the last have weights of 0
  int64_t fours, columns;      // whether the fours are the columns of a window of 3 by 3
  const int8_t *w;             // [block of channels][four][channel][4]
  const int32_t *bias;
  const Leave *how;
  char *out;
} Alone;

// A column that several places read is unpacked once.
static inline int by_columns(int64_t high, int64_t wide) { return high == 3 && wide == 3; }

#if defined(VECTOR)
// `count` sums of channels leave as floats, those beyond `left` nowhere.
static __attribute__((noinline)) void reals_alone(const int32_t *sum, int64_t count, const float *factor,
                                                  int64_t left, char *out) {
  for (int64_t k = 0; k < count && k < left; k++) {
    int64_t j = k % 16 / 4, at = k / 16 * 4 + k % 4;
    float real = (float)sum[j * count / 4 + at] * factor[16 * j + at];
    memcpy(out + 4 * k, &real, 4);
  }
}

#define BITS 128
#include "channels_of_width.h"
#undef BITS
#if defined(__AVX2__)
#define BITS 256
#include "channels_of_width.h"
#undef BITS
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__)
#define BITS 512
#include "channels_of_width.h"
#undef BITS
#endif

static void summed_alone(const Alone *of) {
  for (int64_t k = 0; k < of->channels;) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    if (of->channels - k > 32 && k % 64 == 0) {
      alone_512(of, k), k += 64;
      continue;
    }
#endif
#if defined(__AVX2__)
    if (of->channels - k > 16 && k % 32 == 0) {
      alone_256(of, k), k += 32;
      continue;
    }
#endif
    alone_128(of, k), k += 16;
  }
}
#else
static void summed_alone(const Alone *of) {
  for (int64_t i = 0; i < of->oh; i++)
    for (int64_t j = 0; j < of->ow; j++)
      for (int64_t k = 0; k < of->channels; k++) {
        const uint8_t *x = of->x + i * of->down + j * of->right + k;
        int64_t at = order_of(k), place = (i * of->ow + j) * of->channels + k;
        const int8_t *w = of->w + at / 64 * 64 * 4 * of->fours + at % 64 * 4;
        uint32_t sum = (uint32_t)of->bias[at];
        for (int64_t four = 0; four < of->fours; four++, w += 256)
          for (int e = 0; e < 4; e++) sum += (uint32_t)((int32_t)x[of->entry[4 * four + e]] * w[e]);
        float real = (float)(int32_t)sum * of->how->factor[at];
        if (of->how->is_float) memcpy(of->out + 4 * place, &real, 4);
        else of->out[place] = (char)on_grid(real, of->how->low, of->how->high, of->how->zero);
      }
}
#endif
