/* Attention of a chunk of new tokens over an arena on a CPU, and what each row has received of it.

   The queries of a segment stand in one line, which is cut into blocks; a block meets the rows in tiles of 64. A tile's keys are
   turned so that a vector holds one column of eight rows; products are taken for six queries and sixteen rows at once, weighted
   sums for six queries and sixteen columns: twelve sums in registers, which is what the processor needs to be busy. The softmax is the
   running one. Where the rows' shares are wanted, a block's weights are kept until its normalisers are known. Sums are float. */

#include "rows.h"
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#endif
#ifdef __clang__
#define LANES(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define LANES(x, ...) __builtin_shuffle(x, (i8){__VA_ARGS__})
#endif

enum { BLOCK = 96, SIX = 6, STRIP = 16, PARTS = 8 }; /* queries of a block; at once; rows or columns at once; parts of a sum over queries */

typedef struct { /* a segment: its first row in the buffers, its rows, how many at the front every query may see, how far back a
                    query sees the others, and where the mass of its first row goes */
    int64_t first, rows, anchors, window, mass;
} Span;

typedef struct { /* queries [S, G, T, Dk] of the last T rows of each segment */
    const char *q, *k, *v;
    int64_t S, T;
    int G, Dk, Dv, kind;
    float scale;
} Chunk;

typedef struct { /* a block: queries [BLOCK, Dk], weights [BLOCK, TILE] of each tile that is kept, sums [BLOCK, Dv], a tile's keys
                    [4, Dk, STRIP] and values [TILE, Dv], largest logits after each tile that is kept and normalisers [BLOCK], and the
                    row of each query in its segment */
    float *q, *p, *out, *k, *v, *top, *sum;
    int64_t at[BLOCK], first, last;
    int count, real;
} Work;

INLINE void widen(int kind, const char *row, int D, float *to) { /* D numbers as floats */
    if (kind == FLOAT32) memcpy(to, row, D * sizeof(float));
    for (int i = 0; i < D && kind == BFLOAT16; i++) {
        union { uint32_t bits; float value; } x = {(uint32_t)((const uint16_t *)row)[i] << 16};
        to[i] = x.value;
    }
}

INLINE void turn8(const float *from, int ld, float *to) { /* eight rows of eight columns, one column a vector: `to` [8, STRIP] */
    v8 x[8], y[8];
    for (int i = 0; i < 8; i++) x[i] = at(from + i * ld);
#ifdef __AVX2__
    for (int i = 0; i < 8; i += 2) {
        y[i] = (v8)_mm256_unpacklo_ps((__m256)x[i], (__m256)x[i + 1]);
        y[i + 1] = (v8)_mm256_unpackhi_ps((__m256)x[i], (__m256)x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = (v8)_mm256_shuffle_ps((__m256)y[i + j], (__m256)y[i + 2 + j], 0x44);
            x[i + 2 * j + 1] = (v8)_mm256_shuffle_ps((__m256)y[i + j], (__m256)y[i + 2 + j], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        *(v8 *)(to + i * STRIP) = (v8)_mm256_permute2f128_ps((__m256)x[i], (__m256)x[i + 4], 0x20);
        *(v8 *)(to + (i + 4) * STRIP) = (v8)_mm256_permute2f128_ps((__m256)x[i], (__m256)x[i + 4], 0x31);
    }
#else
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) to[i * STRIP + j] = x[j][i];
    (void)y;
#endif
}

/* keys of n rows, turned; rows that are missing are 0 */
static void turn(const Chunk *of, const char *k, int n, float *to) {
    const int D = of->Dk, bytes = width(of->kind, D);
    float rows[8 * D];
    for (int r = 0; r < TILE; r += 8) {
        const float *from = rows;
        if (r + 8 <= n && of->kind == FLOAT32) from = (const float *)(k + r * bytes);
        else
            for (int i = 0; i < 8; i++)
                if (r + i < n) widen(of->kind, k + (r + i) * bytes, D, rows + i * D);
                else memset(rows + i * D, 0, D * sizeof(float));
        for (int i = 0; i < D; i += 8) turn8(from + i, D, to + r / STRIP * STRIP * D + i * STRIP + r % STRIP);
    }
}

/* c [SIX, STRIP] of ld columns (+)= a [SIX, n] of la columns times b [n, STRIP] of lb columns */
INLINE void product(const float *a, int la, const float *b, int lb, int n, float *c, int lc, int more) {
    v8 s[SIX], t[SIX];
    for (int i = 0; i < SIX; i++) s[i] = more ? at(c + i * lc) : (v8){0}, t[i] = more ? at(c + i * lc + 8) : (v8){0};
    for (int j = 0; j < n; j++, b += lb) {
        v8 x = at(b), y = at(b + 8);
        HOLD(x);
        HOLD(y);
        for (int i = 0; i < SIX; i++) {
            float w = a[i * la + j];
            s[i] += x * w, t[i] += y * w;
        }
    }
    for (int i = 0; i < SIX; i++) *(v8 *)(c + i * lc) = s[i], *(v8 *)(c + i * lc + 8) = t[i];
}

/* what a query at row `at` of the segment may not see of the n rows from row `from` on */
INLINE void hide(const Span *in, int64_t at, int64_t from, int n, float *logits) {
    for (int j = 0; j < TILE; j++) {
        int64_t row = from + j;
        int seen = j < n && row <= at && (row < in->anchors || at - row < in->window);
        if (!seen) logits[j] = -INFINITY;
    }
}

/* 2^x of numbers <= 0, by Cephes' polynomial: relative error 2e-7; what is below 2^-126 becomes that */
INLINE v8 exp2_8(v8 x) {
    x = larger((v8){-126, -126, -126, -126, -126, -126, -126, -126}, x);
    v8 turned = x + 12582912.0f, r = x - (turned - 12582912.0f), p = r * 1.535336188e-4f + 1.339887440e-3f;
    p = p * r + 9.618437357e-3f;
    p = p * r + 5.550332471e-2f;
    p = p * r + 2.402264791e-1f;
    p = p * r + 6.931472029e-1f;
    p = p * r + 1.0f;
    return (v8)((i8)p + ((i8)turned << 23));
}

/* logits [count, TILE] become weights relative to the largest logit so far, `before` and then `top`; sums are scaled down where
   it rises */
static void weigh(float *logits, int count, int D, float *out, const float *before, float *top, float *sum) {
    float rise[BLOCK];
    for (int i = 0; i < count; i++) {
        const float *x = logits + i * TILE;
        v8 high = at(x);
        for (int j = 8; j < TILE; j += 8) high = larger(high, at(x + j));
        high = larger(high, LANES(high, 4, 5, 6, 7, 0, 1, 2, 3)), high = larger(high, LANES(high, 2, 3, 0, 1, 6, 7, 4, 5));
        high = larger(high, LANES(high, 1, 0, 3, 2, 5, 4, 7, 6));
        rise[i] = high[0] > before[i] ? before[i] - high[0] : 0, top[i] = high[0] > before[i] ? high[0] : before[i];
    }
    for (int i = 0; i < count; i++, logits += TILE, out += D) {
        if (top[i] == -INFINITY) {
            memset(logits, 0, TILE * sizeof(float));
            continue;
        }
        if (rise[i] < 0) {
            float shrink = exp2f(rise[i]);
            for (int j = 0; j < D; j += 8) *(v8 *)(out + j) *= shrink;
            sum[i] *= shrink;
        }
        v8 total = {0};
#pragma GCC unroll 8
        for (int j = 0; j < TILE; j += 8) {
            v8 weights = exp2_8(at(logits + j) - top[i]);
            *(v8 *)(logits + j) = weights, total += weights;
        }
        v4 half = halves(total);
        sum[i] += half[0] + half[1] + half[2] + half[3];
    }
}

/* the queries of a block meet n rows from row `from` of the segment on: logits in p, which become weights; `top` was `before` */
static void meet(const Chunk *of, const Span *in, Work *w, int64_t from, int n, float *p, const float *before, float *top) {
    const int Dk = of->Dk, Dv = of->Dv, wk = width(of->kind, Dk), wv = width(of->kind, Dv);
    const char *k = of->k + (in->first + from) * wk, *v = of->v + (in->first + from) * wv;
    turn(of, k, n, w->k);
    for (int j = 0; j < TILE; j += STRIP)
        for (int i = 0; i < w->count; i += SIX)
            product(w->q + i * Dk, Dk, w->k + j * Dk, STRIP, Dk, p + i * TILE + j, TILE, 0);
    int64_t last = from + n - 1;
    int clear = n == TILE && last <= w->first && (last < in->anchors || w->last - from < in->window);
    for (int i = 0; i < w->count && !clear; i++) hide(in, w->at[i], from, n, p + i * TILE);
    weigh(p, w->count, Dv, w->out, before, top, w->sum);
    const float *rows = (const float *)v;
    if (of->kind != FLOAT32) {
        for (int j = 0; j < n; j++) widen(of->kind, v + j * wv, Dv, w->v + j * Dv);
        rows = w->v;
    }
    for (int c = 0; c < Dv; c += STRIP)
        for (int i = 0; i < w->count; i += SIX) product(p + i * TILE, TILE, rows + c, Dv, n, w->out + i * Dv + c, Dv, 1);
}

/* queries b * BLOCK … of segment s, scaled */
static void begin(const Chunk *of, const Span *in, int64_t s, int64_t b, Work *w) {
    const int64_t line = of->G * of->T, from = b * BLOCK;
    const int bytes = width(of->kind, of->Dk), n = line - from < BLOCK ? line - from : BLOCK;
    const float scale = of->scale * 1.44269504f; /* logits to the base 2 */
    w->real = n, w->count = (n + SIX - 1) / SIX * SIX, w->first = in->rows, w->last = 0;
    for (int i = 0; i < w->count; i++) {
        float *q = w->q + i * of->Dk;
        w->at[i] = in->rows - of->T + (from + (i < n ? i : 0)) % of->T;
        w->first = w->at[i] < w->first ? w->at[i] : w->first, w->last = w->at[i] > w->last ? w->at[i] : w->last;
        w->top[i] = -INFINITY, w->sum[i] = 0;
        if (i < n) widen(of->kind, of->q + (s * line + from + i) * bytes, of->Dk, q);
        for (int j = 0; j < of->Dk; j++) q[j] = i < n ? q[j] * scale : 0;
    }
    memset(w->out, 0, w->count * of->Dv * sizeof(float));
}

/* a block's sums become output [.., Dv] and log-sum-exp; `top` is the largest logit of all */
static void finish(const Chunk *of, int64_t s, int64_t b, const Work *w, const float *top, float *out, float *lse) {
    const int64_t line = of->G * of->T, from = s * line + b * BLOCK;
    for (int i = 0; i < w->real; i++) {
        float *to = out + (from + i) * of->Dv, by = w->sum[i] > 0 ? 1 / w->sum[i] : 0;
        for (int j = 0; j < of->Dv; j++) to[j] = w->out[i * of->Dv + j] * by;
        lse[from + i] = w->sum[i] > 0 ? (top[i] + log2f(w->sum[i])) * 0.693147181f : -INFINITY;
    }
}

/* what n rows have received of a block: weights [BLOCK, TILE], of largest logits that have since become `last` */
static void receive(const Work *w, const float *p, const float *top, const float *last, int n, float share, float *mass) {
    v8 sums[TILE / 8] = {{0}};
    for (int i = 0; i < w->real; i++, p += TILE) {
        if (!(w->sum[i] > 0) || top[i] == -INFINITY) continue;
        float by = exp2f(top[i] - last[i]) / w->sum[i] * share;
        for (int j = 0; j < TILE / 8; j++) sums[j] += at(p + 8 * j) * by;
    }
    for (int j = 0; j < n; j++) mass[j] += sums[j / 8][j % 8];
}

/* block b of segment s; `mass` [rows of the segment] takes in what they receive, unless it is NULL */
static void read_block(const Chunk *of, const Span *in, int64_t s, int64_t b, Work *w, float *out, float *lse, float *mass) {
    const int step = mass ? 1 : 0;
    begin(of, in, s, b, w);
    int64_t low = w->first - in->window + 1, stop = w->last + 1, tile = 0, gap = 0, behind = 0;
    float *before = w->top;
    for (int64_t from = 0; from < stop; from += TILE, tile++) {
        if (from >= in->anchors && from + TILE <= low) gap = low / TILE * TILE - from, behind = tile, from += gap;
        float *p = w->p + tile * step * BLOCK * TILE, *top = w->top + (tile + 1) * step * BLOCK;
        meet(of, in, w, from, in->rows - from < TILE ? in->rows - from : TILE, p, before, top);
        before = top;
    }
    finish(of, s, b, w, before, out, lse);
    for (int64_t i = 0; i < tile && mass; i++) {
        int64_t from = i * TILE + (i >= behind ? gap : 0);
        int n = in->rows - from < TILE ? in->rows - from : TILE;
        receive(w, w->p + i * BLOCK * TILE, w->top + (i + 1) * BLOCK, before, n, 1.0f / of->G, mass + from);
    }
}

/* room for the work of one thread, whose blocks meet `tiles` tiles: floats, of which `w` is made if it is not NULL */
static int64_t lay(const Chunk *of, int64_t tiles, float *room, Work *w) {
    float *at = room, **parts[] = {&w->q, &w->p, &w->out, &w->k, &w->v, &w->top, &w->sum};
    int64_t sizes[] = {BLOCK * of->Dk, BLOCK * TILE * tiles, BLOCK * of->Dv, TILE * of->Dk, TILE * of->Dv, BLOCK * (tiles + 1), BLOCK};
    for (int i = 0; i < 7; at += (sizes[i++] + 15) / 16 * 16)
        if (room) *parts[i] = at;
    return at - room;
}

/* Attention of q [S, G, T, Dk], the queries of the last T rows of each of S segments, over the rows that they may see: out
   [S, G, T, Dv] and lse [S, G, T], float. `mass`, unless NULL, takes in what each row receives: sums of its weights over the
   queries, means over G. Without columns of values (Dv = 0) that is all. Returns 1 if there is no memory, otherwise 0. */
int kvledger_chunk(const void *q, const void *k, const void *v, const Span *spans, int64_t S, int G, int64_t T, int Dk, int Dv,
                   float scale, int kind, int threads, float *out, float *lse, float *mass) {
    Chunk of = {q, k, v, S, T, G, Dk, Dv, kind, scale};
    const int64_t blocks = (G * T + BLOCK - 1) / BLOCK, parts = mass && blocks > PARTS ? PARTS : blocks;
    int64_t longest = 0;
    for (int64_t s = 0; s < S; s++) longest = spans[s].rows > longest ? spans[s].rows : longest;
    const int64_t tiles = mass ? (longest + TILE - 1) / TILE : 1, each = lay(&of, tiles, NULL, NULL);
    float *room = aligned_alloc(64, threads * each * sizeof(float));
    float *given = mass ? calloc(S * parts * longest, sizeof(float)) : NULL;
    if (!room || (mass && !given)) return free(room), free(given), 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Work w;
        lay(&of, tiles, room + omp_get_thread_num() * each, &w);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < S * parts; task++) {
            int64_t s = task / parts, part = parts - 1 - task % parts; /* blocks that see most come first */
            for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; b++)
                read_block(&of, spans + s, s, b, &w, out, lse, given ? given + (s * parts + part) * longest : NULL);
        }
    }
    for (int64_t s = 0; s < S && mass; s++) /* in one order, however many threads there were */
        for (int64_t part = 0; part < parts; part++)
            for (int64_t r = 0; r < spans[s].rows; r++) mass[spans[s].mass + r] += given[(s * parts + part) * longest + r];
    return free(room), free(given), 0;
}
