/* Decode attention over an arena on a CPU: one pass over the stored rows, whatever the lengths of the heads.

   The rows of all spans stand in one line, which is cut into equal pieces, so that threads carry equal bytes. A piece that
   crosses from one span into the next leaves a part for each; parts are merged by their log-sum-exp. Every row is read once
   for all queries of its KV head. Keys are read in four long streams, which the processor foresees; values, whose columns are
   taken in blocks, are fetched while the keys are multiplied. Sums are float.

   bfloat16 is widened in registers: 32 bits hold two numbers, and shifting one of them or clearing the other's bits gives
   the even and the odd columns apart. Queries and results stand in that order ("laid out") inside. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef float v4 __attribute__((vector_size(16), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t i4 __attribute__((vector_size(16)));

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
#define INLINE static inline __attribute__((always_inline))

enum { TILE = 64, QUARTER = TILE / 4, LINE = 64, FLOAT32 = 0, BFLOAT16 = 1 }; /* rows at a time; bytes fetched at once; kinds */

typedef struct { /* what is read; G is even */
    const char *k, *v;
    int G, Dk, Dv, kind;
} Rows;

typedef struct { /* of one span or a piece of it: sums of v [G, Dv], laid out; largest logits and sums of weights [G] */
    float *out, *top, *sum;
} Part;

INLINE v8 at(const float *x) { return *(const v8 *)x; }

INLINE void load(int kind, const char *row, int i, v8 *x, v8 *y) { /* 16 columns from i on, laid out */
    if (kind == FLOAT32) {
        *x = at((const float *)row + i), *y = at((const float *)row + i + 8);
    } else {
        i8 both = *(const i8 *)(row + 2 * i);
        *x = (v8)(both << 16), *y = (v8)(both & (int32_t)0xffff0000);
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

/* logits [G, TILE] of n rows, four rows and two queries at a time; meanwhile `soon`, TILE rows of `ahead` bytes, is fetched */
INLINE void dots(const float *q, const char *k, int n, int G, int D, int kind, float *logits, const char *soon, int ahead) {
    const int bytes = D * (kind == FLOAT32 ? 4 : 2), turns = G / 2 * (D / 16), lines = (4 * ahead / LINE + turns - 1) / turns;
    for (int r = 0; r < QUARTER && r < n; r++) {
        const char *row[4], *fetch = soon + 4 * r * ahead;
        for (int j = 0; j < 4; j++) row[j] = k + (r + j * QUARTER < n ? r + j * QUARTER : r) * bytes;
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
                logits[g * TILE + r + j * QUARTER] = x[j];
                logits[(g + 1) * TILE + r + j * QUARTER] = y[j];
            }
        }
    }
}

/* out [G, D] += weights [G, TILE] of v [n, D], 16·PAIRS columns and two queries at a time */
#define ADD(PAIRS)                                                                                                  \
    for (; i + 16 * PAIRS <= D; i += 16 * PAIRS)                                                                    \
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

INLINE void add(const float *weights, const char *v, int n, int G, int D, int kind, float *out) {
    const int bytes = D * (kind == FLOAT32 ? 4 : 2);
    int i = 0;
    ADD(2)
    ADD(1)
}

/* logits [TILE] of n rows become weights; a part whose largest logit they exceed is scaled down first */
INLINE void soften(float *logits, int n, int Dv, float *out, float *top, float *sum) {
    for (int r = n; r < TILE; r++) logits[r] = -INFINITY;
    v8 high = at(logits), total = {0};
    for (int r = 8; r < TILE; r += 8) high = larger(high, at(logits + r));
    float most = *top;
    for (int r = 0; r < 8; r++) most = high[r] > most ? high[r] : most;
    if (most > *top) {
        float shrink = expf(*top - most);
        for (int i = 0; i < Dv; i += 8) *(v8 *)(out + i) *= shrink;
        *sum *= shrink, *top = most;
    }
    for (int r = 0; r < TILE; r += 8) {
        v8 weights = exp8(at(logits + r) - most);
        *(v8 *)(logits + r) = weights, total += weights;
    }
    v4 half = halves(total);
    *sum += half[0] + half[1] + half[2] + half[3];
}

INLINE void read_rows(const float *q, const char *k, const char *v, int64_t count, int G, int Dk, int Dv, int kind, Part part) {
    float logits[G * TILE] __attribute__((aligned(32)));
    const int size = kind == FLOAT32 ? 4 : 2;
    for (int64_t r = 0; r < count; r += TILE, k += TILE * Dk * size, v += TILE * Dv * size) {
        int n = count - r < TILE ? count - r : TILE;
        dots(q, k, n, G, Dk, kind, logits, v, Dv * size);
        for (int g = 0; g < G; g++) soften(logits + g * TILE, n, Dv, part.out + g * Dv, part.top + g, part.sum + g);
        for (int i = 0; i < 4; i++) /* where the next tile's four streams begin: from there on the processor foresees them */
            for (int j = 0; j < 8; j++) __builtin_prefetch(k + (TILE + i * QUARTER) * Dk * size + j * LINE);
        add(logits, v, n, G, Dv, kind, part.out);
    }
}

static void read_span(const Rows *of, const float *q, int64_t first, int64_t count, Part part) {
    const int size = of->kind == FLOAT32 ? 4 : 2;
    const char *k = of->k + first * of->Dk * size, *v = of->v + first * of->Dv * size;
    for (int g = 0; g < of->G; g++) part.top[g] = -INFINITY;
#define KNOWN(g, d, t)                                              \
    if (of->G == g && of->Dk == d && of->Dv == d && of->kind == t) \
        read_rows(q, k, v, count, g, d, d, t, part);                \
    else
    KNOWN(2, 64, FLOAT32) KNOWN(4, 64, FLOAT32) KNOWN(8, 64, FLOAT32) KNOWN(2, 128, FLOAT32) KNOWN(4, 128, FLOAT32)
    KNOWN(8, 128, FLOAT32) KNOWN(2, 64, BFLOAT16) KNOWN(4, 64, BFLOAT16) KNOWN(8, 64, BFLOAT16) KNOWN(2, 128, BFLOAT16)
    KNOWN(4, 128, BFLOAT16) KNOWN(8, 128, BFLOAT16)
    read_rows(q, k, v, count, of->G, of->Dk, of->Dv, of->kind, part);
}

INLINE int place(int i, int kind) { /* where column i stands once laid out */
    return kind == FLOAT32 ? i : (i & ~15) + (i & 1) * 8 + (i & 15) / 2;
}

/* q [S, G, Dk] in the kind's type, times scale -> [S, even G, Dk] laid out; a query too many is 0 */
static void lay_out(const void *q, int64_t S, int G, int even, int D, int kind, float scale, float *to) {
    for (int64_t s = 0; s < S; s++)
        for (int g = 0; g < even; g++)
            for (int i = 0; i < D; i++) {
                int64_t from = (s * G + g) * D + i;
                union { uint32_t bits; float value; } x = {0};
                if (g < G && kind == FLOAT32) x.value = ((const float *)q)[from];
                if (g < G && kind == BFLOAT16) x.bits = (uint32_t)((const uint16_t *)q)[from] << 16;
                to[(s * even + g) * D + place(i, kind)] = x.value * scale;
            }
}

/* out [G, Dv] and lse [G] of a segment take in a part */
static void merge(const Rows *of, int G, Part part, float *out, float *lse) {
    for (int g = 0; g < G; g++) {
        float more = part.top[g] + logf(part.sum[g]), high = more > lse[g] ? more : lse[g];
        float both = high + logf(expf(lse[g] - high) + expf(more - high));
        float keep = expf(lse[g] - both), take = expf(part.top[g] - both);
        for (int i = 0; i < of->Dv; i++) {
            float *x = out + g * of->Dv + i;
            *x = *x * keep + part.out[g * of->Dv + place(i, of->kind)] * take;
        }
        lse[g] = both;
    }
}

/* Attention of q [S, G, Dk] over the spans [n, 3]: of segment s, `count` rows from row `first` on. The spans of a segment
   follow each other. out [S, G, Dv] and lse [S, G] are float. Returns 1 if there is no memory, otherwise 0. */
int kvledger_decode(const void *q, const void *k, const void *v, const int64_t *spans, int64_t n, int64_t S, int G, int Dk, int Dv,
                    float scale, int kind, int threads, float *out, float *lse) {
    const int even = G + G % 2;
    int64_t total = 0, pieces = threads > 1 ? 4 * threads : 1, slots = pieces + n; /* (piece, span) has slot piece + span */
    float *room = calloc(slots * even * (Dv + 2) + S * even * Dk + 64, sizeof(float));
    int64_t *segment = malloc(slots * sizeof(int64_t));
    if (!room || !segment) return free(room), free(segment), 1;
    float *queries = room + slots * even * (Dv + 2);
    Rows of = {k, v, even, Dk, Dv, kind};
    lay_out(q, S, G, even, Dk, kind, scale, queries);
    for (int64_t i = 0; i < n; i++) total += spans[3 * i + 2];
    for (int64_t i = 0; i < slots; i++) segment[i] = -1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < pieces; p++) {
        int64_t from = total * p / pieces, to = total * (p + 1) / pieces, before = 0;
        for (int64_t i = 0; i < n && before < to; before += spans[3 * i++ + 2]) {
            int64_t a = from > before ? from - before : 0, b = to - before < spans[3 * i + 2] ? to - before : spans[3 * i + 2];
            if (a >= b) continue;
            float *x = room + (p + i) * even * (Dv + 2);
            segment[p + i] = spans[3 * i];
            read_span(&of, queries + spans[3 * i] * even * Dk, spans[3 * i + 1] + a, b - a, (Part){x, x + even * Dv, x + even * (Dv + 1)});
        }
    }
    for (int64_t i = 0; i < S * G; i++) lse[i] = -INFINITY;
    for (int64_t i = 0; i < S * G * Dv; i++) out[i] = 0;
    for (int64_t slot = 0; slot < slots; slot++) {
        float *x = room + slot * even * (Dv + 2);
        int64_t s = segment[slot];
        if (s >= 0) merge(&of, G, (Part){x, x + even * Dv, x + even * (Dv + 1)}, out + s * G * Dv, lse + s * G);
    }
    return free(room), free(segment), 0;
}
