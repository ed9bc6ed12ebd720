/* Rows in tiles: numbers and codes in registers, products with queries, weights from logits, weighted sums.

   A run of rows is read in four streams: the first row of each quarter, then the second of each, … A processor that foresees
   what is read next does so for several streams at once, and fetches half as much again as from one. Only where runs are too short for
   that to begin, the next run is asked for (`soon`). Logits and weights stand in that order: slot 4 r + j is row r of stream j.

   Columns come in sixteens. bfloat16 is widened in registers: 32 bits hold two numbers, and shifting one of them or clearing the
   other's bits gives the even and the odd columns apart; likewise codes of 4 and of 2 bits. Queries and results
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
typedef int8_t b8 __attribute__((vector_size(8), aligned(1)));

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (i8){__VA_ARGS__})
#endif
#ifdef __AVX__
#define HOLD(x) __asm__("" : "+x"(x)) /* in a register: two uses are to cost one load */
#else
#define HOLD(x)
#endif
#define FLOATS(x) __builtin_convertvector(x, v8)
#define INLINE static inline __attribute__((always_inline))

enum { TILE = 64, SLOTS = 512 }; /* rows at a time in chunk.c; in decode.c, where streams are to be followed for some pages */
enum { FLOAT32, BFLOAT16, INT8, INT4, FP8, INT2 }; /* kinds; INT4 and INT2 are codes from 0 on */

INLINE v8 at(const float *x) { return *(const v8 *)x; }

INLINE int width(int kind, int D) { /* bytes of D columns */
    return kind == FLOAT32 ? 4 * D : kind == BFLOAT16 ? 2 * D : kind == INT4 ? D / 2 : kind == INT2 ? D / 4 : D;
}

INLINE int place(int i, int kind) { /* where column i stands once laid out */
    return kind == BFLOAT16 || kind == INT4 || kind == INT2 ? (i & ~15) + (i & 1) * 8 + (i & 15) / 2 : i;
}

INLINE i8 bytes8(const char *x) { /* eight of them, signed; GCC takes them apart one by one unless it is told the instruction */
#ifdef __AVX2__
    return (i8)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)x));
#else
    return __builtin_convertvector(*(const b8 *)x, i8);
#endif
}

INLINE i8 codes8(const char *x) { /* eight of them, from 0 on */
#ifdef __AVX2__
    return (i8)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)x));
#else
    return bytes8(x) & 255;
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
        i8 both = codes8(row + i / 2);
        *x = FLOATS(both & 15), *y = FLOATS(both >> 4);
    } else if (kind == FP8) {
        *x = e4m3(bytes8(row + i)), *y = e4m3(bytes8(row + i + 8));
    } else {
        int32_t word;
        memcpy(&word, row + i / 4, 4);
        i8 all = {word, word, word, word, word, word, word, word}, shift = {0, 4, 8, 12, 16, 20, 24, 28};
        *x = FLOATS(all >> shift & 3), *y = FLOATS(all >> (shift + 2) & 3);
    }
    HOLD(*x);
    HOLD(*y);
}

INLINE v4 halves(v8 x) {
    union { v8 whole; v4 half[2]; } u = {x};
    return u.half[0] + u.half[1];
}

INLINE v8 sums(const v8 *s, const v8 *t) { /* the sums of each of four vectors s, and of four vectors t */
    v8 x[4];
    for (int j = 0; j < 4; j++)
        x[j] = PICK(s[j], t[j], 0, 1, 2, 3, 8, 9, 10, 11) + PICK(s[j], t[j], 4, 5, 6, 7, 12, 13, 14, 15);
    v8 p = PICK(x[0], x[1], 0, 8, 1, 9, 4, 12, 5, 13) + PICK(x[0], x[1], 2, 10, 3, 11, 6, 14, 7, 15);
    v8 r = PICK(x[2], x[3], 0, 8, 1, 9, 4, 12, 5, 13) + PICK(x[2], x[3], 2, 10, 3, 11, 6, 14, 7, 15);
    return PICK(p, r, 0, 1, 8, 9, 4, 5, 12, 13) + PICK(p, r, 2, 3, 10, 11, 6, 7, 14, 15);
}

INLINE v8 larger(v8 x, v8 y) { /* y where they cannot be compared */
#ifdef __AVX2__
    return (v8)_mm256_max_ps((__m256)x, (__m256)y);
#else
    return (v8)(((i8)x & (x > y)) | ((i8)y & ~(x > y)));
#endif
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

typedef struct { /* a part of a run: n rows of each stream, streams `stride` rows apart, `left` rows to the end of the run */
    int64_t stride, left;
    int n;
} Tile;

/* how far apart the streams of `count` rows are; oddly, lest all four meet in the same places of the caches */
INLINE int64_t apart(int64_t count) {
    int64_t stride = (count + 3) / 4;
    return stride > 16 ? stride | 1 : stride;
}

INLINE int there(Tile t, int r, int j) { return r + j * t.stride < t.left; }

/* the four rows of slots 4 r …; for one that is not there, another. Meanwhile four of the rows `soon` are fetched, unless NULL */
INLINE void streams(Tile t, const char *rows, int bytes, int r, const char **row, const char *soon) {
    for (int i = 0; i < 4 * bytes && soon; i += 64) __builtin_prefetch(soon + 4 * r * bytes + i);
    for (int j = 0; j < 4; j++) row[j] = rows + (there(t, r, j) ? r + j * t.stride : r) * bytes;
}

/* logits [G, SLOTS] of a tile, two queries at a time */
INLINE void dots(const float *q, const char *k, Tile t, int G, int D, int kind, float *logits, const char *soon) {
    for (int r = 0; r < t.n; r++) {
        const char *row[4];
        streams(t, k, width(kind, D), r, row, soon);
        for (int g = 0; g < G; g += 2) {
            const float *p = q + g * D, *other = p + D;
            v8 s[4] = {{0}}, u[4] = {{0}};
            for (int i = 0; i < D; i += 16) {
                v8 a = at(p + i), b = at(p + i + 8), c = at(other + i), d = at(other + i + 8);
                for (int j = 0; j < 4; j++) {
                    v8 x, y;
                    load(kind, row[j], i, &x, &y);
                    s[j] += x * a, u[j] += x * c;
                    s[j] += y * b, u[j] += y * d;
                }
            }
            union { v8 both; v4 half[2]; } x = {sums(s, u)};
            float *to = logits + g * SLOTS + 4 * r;
            *(v4 *)to = x.half[0], *(v4 *)(to + SLOTS) = x.half[1];
        }
    }
}

/* columns `from` to `stop` of out [G, D] += weights [G, SLOTS] of a tile of v, two queries at a time */
INLINE void add(const float *weights, const char *v, Tile t, int G, int D, int kind, float *out, int from, int stop,
                const char *soon) {
    for (int r = 0; r < t.n; r++) {
        const char *row[4];
        streams(t, v, width(kind, D), r, row, soon);
        for (int g = 0; g < G; g += 2) {
            const float *w = weights + g * SLOTS + 4 * r;
            v8 a[4], b[4];
            for (int j = 0; j < 4; j++) a[j] = w[j] - (v8){0}, b[j] = w[SLOTS + j] - (v8){0};
            for (int i = from; i < stop; i += 16) {
                v8 *s = (v8 *)(out + g * D + i), *u = (v8 *)(out + (g + 1) * D + i);
                v8 s0 = s[0], s1 = s[1], u0 = u[0], u1 = u[1];
                for (int j = 0; j < 4; j++) {
                    v8 x, y;
                    load(kind, row[j], i, &x, &y);
                    s0 += x * a[j], u0 += x * b[j], s1 += y * a[j], u1 += y * b[j];
                }
                s[0] = s0, s[1] = s1, u[0] = u0, u[1] = u1;
            }
        }
    }
}

/* logits [SLOTS] of a tile become weights; a part whose largest logit they exceed is scaled down first */
INLINE void soften(float *logits, Tile t, int Dv, float *out, float *top, float *sum) {
    const int n = 4 * t.n;
    for (int j = 1; j < 4; j++)
        for (int r = t.left > j * t.stride ? t.left - j * t.stride : 0; r < t.n; r++) logits[4 * r + j] = -INFINITY;
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
