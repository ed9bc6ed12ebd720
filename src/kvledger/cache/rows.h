/* Tiles of rows: numbers and codes in registers, products with queries, weights from logits, weighted sums.

   Columns come in sixteens. bfloat16 is widened in registers: 32 bits hold two numbers, and shifting one of them or clearing the
   other's bits gives the even and the odd columns apart; likewise the two halves of a byte of 4-bit codes. Queries and results
   stand in that order ("laid out") inside. Codes become floats as they are; scales and zeros are `decode.c`'s business. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef float v4 __attribute__((vector_size(16), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef int8_t b8 __attribute__((vector_size(8), aligned(1)));

#ifdef __clang__
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (i4){i, j, k, l})
#endif
#ifdef __x86_64__
#define HOLD(x) __asm__("" : "+x"(x)) /* in a register: two uses are to cost one load */
#else
#define HOLD(x)
#endif
#define FLOATS(x) __builtin_convertvector(x, v8)
#define INLINE static inline __attribute__((always_inline))

enum { TILE = 64, QUARTER = TILE / 4, LINE = 64 }; /* rows at a time; bytes fetched at once */
enum { FLOAT32, BFLOAT16, INT8, INT4, FP8, INT2 }; /* kinds; INT4 and INT2 are codes from 0 on */

INLINE v8 at(const float *x) { return *(const v8 *)x; }

INLINE int width(int kind, int D) { /* bytes of D columns */
    return kind == FLOAT32 ? 4 * D : kind == BFLOAT16 ? 2 * D : kind == INT4 ? D / 2 : kind == INT2 ? D / 4 : D;
}

INLINE int place(int i, int kind) { /* where column i stands once laid out */
    return kind == BFLOAT16 || kind == INT4 ? (i & ~15) + (i & 1) * 8 + (i & 15) / 2 : i;
}

INLINE i8 bytes8(const char *x) { /* eight of them, signed; GCC takes them apart one by one unless it is told the instruction */
#ifdef __AVX2__
    return (i8)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)x));
#else
    return __builtin_convertvector(*(const b8 *)x, i8);
#endif
}

INLINE v8 e4m3(i8 x) { /* exponent and mantissa move to where a float has them; the bias differs by 120 */
    return (v8)((x << 20) & (int32_t)0x87f00000) * 0x1p120f;
}

INLINE void load(int kind, const char *row, int i, v8 *x, v8 *y) { /* 16 columns from i on, laid out */
    if (kind == FLOAT32) {
        *x = at((const float *)row + i), *y = at((const float *)row + i + 8);
    } else if (kind == BFLOAT16) {
        i8 both = *(const i8 *)(row + 2 * i);
        *x = (v8)(both << 16), *y = (v8)(both & (int32_t)0xffff0000);
    } else if (kind == INT8) {
        *x = FLOATS(bytes8(row + i)), *y = FLOATS(bytes8(row + i + 8));
    } else if (kind == INT4) {
        i8 both = bytes8(row + i / 2);
        *x = FLOATS(both & 15), *y = FLOATS(both >> 4 & 15);
    } else if (kind == FP8) {
        *x = e4m3(bytes8(row + i)), *y = e4m3(bytes8(row + i + 8));
    } else {
        int32_t word;
        memcpy(&word, row + i / 4, 4);
        i8 all = {word, word, word, word, word, word, word, word}, shift = {0, 2, 4, 6, 8, 10, 12, 14};
        *x = FLOATS(all >> shift & 3), *y = FLOATS(all >> (shift + 16) & 3);
    }
    HOLD(*x);
    HOLD(*y);
}

INLINE v4 halves(v8 x) {
    union { v8 whole; v4 half[2]; } u = {x};
    return u.half[0] + u.half[1];
}

INLINE v4 sums(const v8 *x) { /* the sum of each of four vectors */
    v4 a = halves(x[0]), b = halves(x[1]), c = halves(x[2]), d = halves(x[3]);
    v4 p = PICK(a, b, 0, 4, 2, 6) + PICK(a, b, 1, 5, 3, 7);
    v4 r = PICK(c, d, 0, 4, 2, 6) + PICK(c, d, 1, 5, 3, 7);
    return PICK(p, r, 0, 1, 4, 5) + PICK(p, r, 2, 3, 6, 7);
}

INLINE v8 larger(v8 x, v8 y) { /* y where they cannot be compared */
    return (v8)(((i8)x & (x > y)) | ((i8)y & ~(x > y)));
}

INLINE v8 exp8(v8 x) { /* of numbers <= 0, by Cephes' polynomial: relative error 2e-7, and 0 becomes 1e-38 */
    x = larger((v8){-87, -87, -87, -87, -87, -87, -87, -87}, x);
    v8 n = (x * 1.44269504f + 12582912.0f) - 12582912.0f, r = x - n * 0.693359375f + n * 2.12194440e-4f;
    v8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (v8)((__builtin_convertvector(n, i8) + 127) << 23);
}

/* logits [G, TILE] of n rows, in four streams, and two queries at a time; meanwhile `soon`, n rows of `ahead` bytes, is fetched */
INLINE void dots(const float *q, const char *k, int n, int G, int D, int kind, float *logits, const char *soon, int ahead) {
    const int bytes = width(kind, D), turns = G / 2 * (D / 16), lines = (4 * ahead / LINE + turns - 1) / turns;
    const int stream = (n + 3) / 4;
    for (int r = 0; r < stream; r++) {
        const char *row[4], *fetch = soon + 4 * r * ahead;
        for (int j = 0; j < 4; j++) row[j] = k + (r + j * stream < n ? r + j * stream : r) * bytes;
        for (int g = 0; g < G; g += 2) {
            v8 s[4] = {{0}}, t[4] = {{0}};
            for (int i = 0; i < D; i += 16) {
                v8 a = at(q + g * D + i), b = at(q + g * D + i + 8), c = at(q + (g + 1) * D + i), d = at(q + (g + 1) * D + i + 8);
                for (int j = 0; j < 4; j++) {
                    v8 x, y;
                    load(kind, row[j], i, &x, &y);
                    s[j] += x * a, t[j] += x * c;
                    s[j] += y * b, t[j] += y * d;
                }
                for (int j = 0; j < lines; j++, fetch += LINE) __builtin_prefetch(fetch);
            }
            v4 x = sums(s), y = sums(t);
            for (int j = 0; j < 4; j++) {
                logits[g * TILE + r + j * stream] = x[j];
                logits[(g + 1) * TILE + r + j * stream] = y[j];
            }
        }
    }
}

/* columns i to `stop` of out [G, D] += weights [G, TILE] of v [n, D], 16·PAIRS columns and two queries at a time */
#define ADD(PAIRS)                                                                                                  \
    for (; i + 16 * PAIRS <= stop; i += 16 * PAIRS)                                                                 \
        for (int g = 0; g < G; g += 2) {                                                                            \
            float *a = out + g * D + i, *b = a + D;                                                                 \
            const float *wa = weights + g * TILE, *wb = wa + TILE;                                                  \
            v8 s[2 * PAIRS], t[2 * PAIRS];                                                                          \
            for (int j = 0; j < 2 * PAIRS; j++) s[j] = at(a + 8 * j), t[j] = at(b + 8 * j);                         \
            for (int r = 0; r < n; r++) {                                                                           \
                for (int j = 0; j < 2 * PAIRS; j += 2) {                                                            \
                    v8 x, y;                                                                                        \
                    load(kind, v + r * bytes, i + 8 * j, &x, &y);                                                   \
                    s[j] += x * wa[r], t[j] += x * wb[r], s[j + 1] += y * wa[r], t[j + 1] += y * wb[r];             \
                }                                                                                                   \
            }                                                                                                       \
            for (int j = 0; j < 2 * PAIRS; j++) *(v8 *)(a + 8 * j) = s[j], *(v8 *)(b + 8 * j) = t[j];               \
        }

INLINE void add(const float *weights, const char *v, int n, int G, int D, int kind, float *out, int i, int stop) {
    const int bytes = width(kind, D);
    ADD(2)
    ADD(1)
}

/* logits [TILE] of n rows become weights; a part whose largest logit they exceed is scaled down first */
INLINE void soften(float *logits, int n, int Dv, float *out, float *top, float *sum) {
    for (int r = n; r & 7; r++) logits[r] = -INFINITY;
    v8 high = at(logits), total = {0};
    for (int r = 8; r < n; r += 8) high = larger(high, at(logits + r));
    float most = *top;
    for (int r = 0; r < 8; r++) most = high[r] > most ? high[r] : most;
    if (most > *top) {
        float shrink = expf(*top - most);
        for (int i = 0; i < Dv; i += 8) *(v8 *)(out + i) *= shrink;
        *sum *= shrink, *top = most;
    }
    for (int r = 0; r < n; r += 8) {
        v8 weights = exp8(at(logits + r) - most);
        *(v8 *)(logits + r) = weights, total += weights;
    }
    v4 half = halves(total);
    *sum += half[0] + half[1] + half[2] + half[3];
}
