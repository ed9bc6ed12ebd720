/* Decode attention over an arena on a CPU: one pass over the stored rows, whatever the lengths of the heads.

   The rows of all spans stand in one line, which is cut into equal pieces, so that threads carry equal bytes. A piece that
   crosses from one segment into the next leaves a part for each; parts are merged by their log-sum-exp. Every row is read once
   for all queries of its KV head. Keys are read in four long streams, which the processor foresees; values, whose columns are
   taken in blocks, are fetched while the keys are multiplied. Sums are float.

   Rows may be codes: `code * scale + zero`. A scale of a row multiplies its logit, or its weight; its zero meets the sum of the
   query, or adds the same to all columns. Keys with a scale per column (groups of rows share it) meet a query that was
   multiplied with it. So codes are never written out. */

#include "rows.h"

typedef struct { /* codes' float16 scales and zeros, NULL where there are none */
    const uint16_t *k_scale, *k_zero, *v_scale, *v_zero;
    int group, columns; /* rows that share a key's scales, one for each column; or 1: a scale for each row. of a value's scale */
} Scales;

typedef struct { /* what is read; G is even */
    const char *k, *v;
    int G, Dk, Dv, kind;
    Scales by;
} Rows;

typedef struct { /* of one span or a piece of it: sums of v [G, Dv], laid out; largest logits and sums of weights [G] */
    float *out, *top, *sum;
} Part;

INLINE void read_rows(const float *q, const char *k, const char *v, int64_t count, int G, int Dk, int Dv, int kind, Part part) {
    float logits[G * TILE] __attribute__((aligned(32)));
    const int wk = width(kind, Dk), wv = width(kind, Dv);
    for (int64_t r = 0; r < count; r += TILE, k += TILE * wk, v += TILE * wv) {
        int n = count - r < TILE ? count - r : TILE;
        dots(q, k, n, G, Dk, kind, logits, v, wv);
        for (int g = 0; g < G; g++) soften(logits + g * TILE, n, Dv, part.out + g * Dv, part.top + g, part.sum + g);
        for (int i = 0; i < 4; i++) /* where the next tile's four streams begin: from there on the processor foresees them */
            for (int j = 0; j < 8; j++) __builtin_prefetch(k + (TILE + i * QUARTER) * wk + j * LINE);
        add(logits, v, n, G, Dv, kind, part.out, 0, Dv);
    }
}

INLINE float half(uint16_t x) {
    union { uint32_t bits; float value; } y = {(uint32_t)(x & 0x7fff) << 13};
    y.value = (x & 0x7c00) == 0x7c00 ? NAN : y.value * 0x1p112f; /* the biases differ by 112 */
    y.bits |= (uint32_t)(x & 0x8000) << 16;
    return y.value;
}

/* to [n] numbers of every `step`-th float16; all 0 if there are none */
static void floats(const uint16_t *from, int64_t first, int step, int n, float *to) {
    for (int r = 0; r < n; r++) to[r] = from ? half(from[(first + r) * step]) : 0;
}

/* query [G, D] and shift [G] of a group of keys: what q has with its scales, and with its zeros */
static void fold(const Rows *of, const float *q, int64_t group, float *query, float *shift) {
    const int D = of->Dk;
    float scale[D], zero[D];
    for (int i = 0; i < D; i++) {
        int at = place(i, of->kind);
        scale[at] = half(of->by.k_scale[group * D + i]), zero[at] = half(of->by.k_zero[group * D + i]);
    }
    for (int g = 0; g < of->G; g++, query += D, q += D) {
        v8 sum = {0};
        for (int i = 0; i < D; i += 8) *(v8 *)(query + i) = at(q + i) * at(scale + i), sum += at(q + i) * at(zero + i);
        v4 four = halves(sum);
        shift[g] = four[0] + four[1] + four[2] + four[3];
    }
}

/* products [G, TILE] of queries and codes of n rows from row `first` on become logits; `total` [G], the queries' sums */
static void rescale(const Rows *of, const float *total, int64_t first, int n, float *logits) {
    float a[TILE], b[TILE];
    floats(of->by.k_scale, first, 1, n, a), floats(of->by.k_zero, first, 1, n, b);
    for (int g = 0; g < of->G; g++)
        for (int r = 0; r < n; r++) logits[g * TILE + r] = logits[g * TILE + r] * a[r] + total[g] * b[r];
}

/* weights [G, TILE] of n rows from row `first` on, as they are for the codes of the columns `c`; their zeros go to `out` */
static void reweigh(const Rows *of, const float *weights, int64_t first, int n, int c, float *scaled, float *out) {
    const int size = of->by.columns, groups = of->Dv / size;
    float a[TILE], b[TILE];
    floats(of->by.v_scale + c, first, groups, n, a);
    floats(of->by.v_zero ? of->by.v_zero + c : 0, first, groups, n, b);
    for (int g = 0; g < of->G; g++) {
        float base = 0;
        for (int r = 0; r < n; r++) scaled[g * TILE + r] = weights[g * TILE + r] * a[r], base += weights[g * TILE + r] * b[r];
        for (int i = c * size; i < (c + 1) * size && of->by.v_zero; i++) out[g * of->Dv + i] += base; /* sixteens are not cut */
    }
}

static void soften_all(float *logits, int n, int G, int Dv, Part part) {
    for (int g = 0; g < G; g++) soften(logits + g * TILE, n, Dv, part.out + g * Dv, part.top + g, part.sum + g);
}

INLINE void read_codes(const Rows *of, const float *q, int64_t first, int64_t count, int G, int Dk, int Dv, int kind, Part part) {
    const int group = of->by.group, size = of->by.columns, wk = width(kind, Dk), wv = width(kind, Dv);
    float logits[G * TILE] __attribute__((aligned(32))), scaled[G * TILE], query[group > 1 ? G * Dk : 1], total[G];
    for (int g = 0; g < G; g++) {
        total[g] = 0;
        for (int i = 0; i < Dk && of->by.k_zero; i++) total[g] += q[g * Dk + i];
    }
    for (int64_t end = first + count, n; first < end; first += n) {
        n = end - first < TILE ? end - first : TILE;
        if (group > 1) {
            n = n < group - first % group ? n : group - first % group;
            fold(of, q, first / group, query, total);
        }
        const char *k = of->k + first * wk, *v = of->v + first * wv;
        dots(group > 1 ? query : q, k, n, G, Dk, kind, logits, v, wv);
        if (group == 1) rescale(of, total, first, n, logits);
        for (int r = 0; r < G * TILE && group > 1; r++) logits[r] += total[r / TILE];
        soften_all(logits, n, G, Dv, part);
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) __builtin_prefetch(k + (TILE + i * QUARTER) * wk + j * LINE);
        for (int c = 0; c < Dv / size; c++) {
            reweigh(of, logits, first, n, c, scaled, part.out);
            add(scaled, v, n, G, Dv, kind, part.out, c * size, (c + 1) * size);
        }
    }
}

static void read_span(const Rows *of, const float *q, int64_t first, int64_t count, Part part) {
    const char *k = of->k + first * width(of->kind, of->Dk), *v = of->v + first * width(of->kind, of->Dv);
#define KNOWN(g, d, t)                                              \
    if (of->G == g && of->Dk == d && of->Dv == d && of->kind == t) \
        return read_rows(q, k, v, count, g, d, d, t, part);
    KNOWN(2, 64, FLOAT32) KNOWN(4, 64, FLOAT32) KNOWN(8, 64, FLOAT32) KNOWN(2, 128, FLOAT32) KNOWN(4, 128, FLOAT32)
    KNOWN(8, 128, FLOAT32) KNOWN(2, 64, BFLOAT16) KNOWN(4, 64, BFLOAT16) KNOWN(8, 64, BFLOAT16) KNOWN(2, 128, BFLOAT16)
    KNOWN(4, 128, BFLOAT16) KNOWN(8, 128, BFLOAT16)
    if (of->kind <= BFLOAT16) return read_rows(q, k, v, count, of->G, of->Dk, of->Dv, of->kind, part);
#define CODES(g, d, t)                                              \
    if (of->G == g && of->Dk == d && of->Dv == d && of->kind == t) \
        return read_codes(of, q, first, count, g, d, d, t, part);
#define ANY(t) \
    if (of->kind == t) return read_codes(of, q, first, count, of->G, of->Dk, of->Dv, t, part);
    CODES(4, 128, INT8) CODES(4, 128, INT4) CODES(2, 128, INT8) CODES(2, 128, INT4)
    ANY(INT8) ANY(INT4) ANY(FP8) ANY(INT2)
}

/* q [S, G, Dk], bfloat16 where rows are, else float, times scale -> [S, even G, Dk] laid out; a query too many is 0 */
static void lay_out(const void *q, int64_t S, int G, int even, int D, int kind, float scale, float *to) {
    for (int64_t s = 0; s < S; s++)
        for (int g = 0; g < even; g++)
            for (int i = 0; i < D; i++) {
                int64_t from = (s * G + g) * D + i;
                union { uint32_t bits; float value; } x = {0};
                if (g < G && kind != BFLOAT16) x.value = ((const float *)q)[from];
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
   follow each other. `by` are the scales of codes, otherwise NULL. out [S, G, Dv] and lse [S, G] are float. Returns 1 if there
   is no memory, otherwise 0. */
int kvledger_decode(const void *q, const void *k, const void *v, const Scales *by, const int64_t *spans, int64_t n, int64_t S, int G,
                    int Dk, int Dv, float scale, int kind, int threads, float *out, float *lse) {
    const int even = G + G % 2;
    int64_t total = 0, pieces = threads > 1 ? 4 * threads : 1, slots = pieces + n; /* (piece, span) has slot piece + span */
    float *room = calloc(slots * even * (Dv + 2) + S * even * Dk + 64, sizeof(float));
    int64_t *segment = malloc(slots * sizeof(int64_t));
    if (!room || !segment) return free(room), free(segment), 1;
    float *queries = room + slots * even * (Dv + 2);
    Rows of = {k, v, even, Dk, Dv, kind, by ? *by : (Scales){0}};
    lay_out(q, S, G, even, Dk, kind, scale, queries);
    for (int64_t i = 0; i < n; i++) total += spans[3 * i + 2];
    for (int64_t i = 0; i < slots; i++) segment[i] = -1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < pieces; p++) {
        int64_t from = total * p / pieces, to = total * (p + 1) / pieces, before = 0, slot = -1;
        for (int64_t i = 0; i < n && before < to; before += spans[3 * i++ + 2]) {
            int64_t a = from > before ? from - before : 0, b = to - before < spans[3 * i + 2] ? to - before : spans[3 * i + 2];
            if (a >= b) continue;
            int more = slot >= 0 && segment[slot] == spans[3 * i]; /* of the segment that the span before was of: one part */
            slot = more ? slot : p + i;
            float *x = room + slot * even * (Dv + 2), *top = x + even * Dv;
            segment[slot] = spans[3 * i];
            for (int g = 0; g < even && !more; g++) top[g] = -INFINITY;
            read_span(&of, queries + spans[3 * i] * even * Dk, spans[3 * i + 1] + a, b - a, (Part){x, top, top + even});
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

/* Logits of q [S, G, D] over the rows of k in the spans [n, 3], as above: out [G, rows of all spans] float, in the spans' order.
   Returns 1 if there is no memory, otherwise 0. */
int kvledger_logits(const void *q, const void *k, const int64_t *spans, int64_t n, int64_t S, int G, int D, float scale, int kind,
                    int threads, float *out) {
    const int even = G + G % 2, bytes = width(kind, D);
    int64_t total = 0;
    float *queries = calloc(S * even * D + 64, sizeof(float));
    int64_t *before = malloc((n + 1) * sizeof(int64_t));
    if (!queries || !before) return free(queries), free(before), 1;
    lay_out(q, S, G, even, D, kind, scale, queries);
    for (int64_t i = 0; i < n; i++) before[i] = total, total += spans[3 * i + 2];
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; i++) {
        float logits[even * TILE] __attribute__((aligned(32)));
        const float *x = queries + spans[3 * i] * even * D;
        const char *row = (const char *)k + spans[3 * i + 1] * bytes;
        for (int64_t r = 0; r < spans[3 * i + 2]; r += TILE, row += TILE * bytes) {
            int some = spans[3 * i + 2] - r < TILE ? spans[3 * i + 2] - r : TILE;
            dots(x, row, some, even, D, kind, logits, row + TILE * bytes, bytes);
            for (int g = 0; g < G; g++) memcpy(out + g * total + before[i] + r, logits + g * TILE, some * sizeof(float));
        }
    }
    return free(queries), free(before), 0;
}
