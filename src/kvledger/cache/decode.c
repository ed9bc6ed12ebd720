/* Decode attention over an arena on a CPU: one pass over the stored rows, whatever the lengths of the heads.

   The rows of all spans stand in one line, which is cut into equal pieces, so that threads carry equal bytes. A piece that
   crosses from one segment into the next leaves a part for each; parts are merged by their log-sum-exp. Every row is read once
   for all queries of its KV head, keys and values in turns. Sums are float.

   Rows may be codes: `code * scale + zero`. A scale of a row multiplies its logit, or its weight; its zero meets the sum of the
   query, or adds the same to all columns. Keys with a scale per column (groups of rows share it) meet a query that was
   multiplied with it. So codes are never written out. */

#include "rows.h"

enum { SHORT = 64 }; /* rows of a span behind which the next one must be asked for */

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

static void soften_all(float *logits, Tile t, int G, int Dv, Part part) {
    for (int g = 0; g < G; g++) soften(logits + g * SLOTS, t, Dv, part.out + g * Dv, part.top + g, part.sum + g);
}

/* the tile from row r on, counted in each stream, of a run of `count` rows */
INLINE Tile tile(int64_t r, int64_t count) {
    int64_t stride = apart(count);
    return (Tile){stride, count - r, stride - r < SLOTS / 4 ? stride - r : SLOTS / 4};
}

/* rows k and v; `next` rows on, if that is not 0, are others that will be read */
INLINE void read_rows(const float *q, const char *k, const char *v, int64_t count, int64_t next, int G, int Dk, int Dv, int kind, Part part) {
    const char *soon_k = next ? k + next * width(kind, Dk) : NULL, *soon_v = next ? v + next * width(kind, Dv) : NULL;
    float logits[G * SLOTS] __attribute__((aligned(32)));
    for (int64_t r = 0; r < apart(count); r += SLOTS / 4) {
        Tile t = tile(r, count);
        dots(q, k + r * width(kind, Dk), t, G, Dk, kind, logits, soon_k);
        soften_all(logits, t, G, Dv, part);
        add(logits, v + r * width(kind, Dv), t, G, Dv, kind, part.out, 0, Dv, soon_v);
    }
}

INLINE v8 floats(i8 x) { /* of float16 in the low halves; infinite ones become NaN */
    v8 y = (v8)((x & 0x7fff) << 13) * 0x1p112f; /* the biases differ by 112 */
    i8 much = (x & 0x7c00) == 0x7c00;
    return (v8)((i8)y | much | (x & 0x8000) << 16);
}

/* to [groups, SLOTS], from float16 [rows, groups] of the tile that begins at row `first`; all 0 if there are none */
INLINE void spread(const uint16_t *from, int64_t first, Tile t, int groups, float *to) {
    int32_t bits[SLOTS] __attribute__((aligned(32)));
    for (int c = 0; c < groups; c++, to += SLOTS) {
        for (int r = 0; r < t.n && from; r++)
            for (int j = 0; j < 4; j++) bits[4 * r + j] = from[(first + (there(t, r, j) ? r + j * t.stride : r)) * groups + c];
        for (int i = 4 * t.n; i & 7; i++) bits[i] = 0;
        for (int i = 0; i < 4 * t.n; i += 8) *(v8 *)(to + i) = from ? floats(*(const i8 *)(bits + i)) : (v8){0};
    }
}

/* query [G, D] and shift [G] of a group of keys: what q has with its scales, and with its zeros; kinds that are laid out */
static void fold(const Rows *of, const float *q, int64_t group, float *query, float *shift) {
    const int D = of->Dk;
    const uint16_t *scale = of->by.k_scale + group * D, *zero = of->by.k_zero + group * D;
    v8 sum[of->G];
    for (int g = 0; g < of->G; g++) sum[g] = (v8){0};
    for (int i = 0; i < D; i += 16) {
        i8 a = *(const i8 *)(scale + i), b = *(const i8 *)(zero + i);
        v8 even = floats(a & 0xffff), odd = floats(a >> 16 & 0xffff), even0 = floats(b & 0xffff), odd0 = floats(b >> 16 & 0xffff);
        for (int g = 0; g < of->G; g++) {
            v8 x = at(q + g * D + i), y = at(q + g * D + i + 8);
            *(v8 *)(query + g * D + i) = x * even, *(v8 *)(query + g * D + i + 8) = y * odd;
            sum[g] += x * even0 + y * odd0;
        }
    }
    for (int g = 0; g < of->G; g++) {
        v4 four = halves(sum[g]);
        shift[g] = four[0] + four[1] + four[2] + four[3];
    }
}

/* products [G, SLOTS] of queries and codes become logits: scales and zeros of the rows, and `total` [G], the queries' sums */
static void rescale(const Rows *of, const float *total, int64_t first, Tile t, float *logits) {
    float a[SLOTS], b[SLOTS];
    spread(of->by.k_scale, first, t, 1, a), spread(of->by.k_zero, first, t, 1, b);
    for (int g = 0; g < of->G; g++)
        for (int r = 0; r < 4 * t.n; r++) logits[g * SLOTS + r] = logits[g * SLOTS + r] * a[r] + total[g] * b[r];
}

/* out += weights [G, SLOTS] of values in codes: a scale meets the weight, a zero adds the same to all columns that share it */
INLINE void add_codes(const Rows *of, const float *weights, int64_t first, Tile t, int G, int Dv, int kind, float *out) {
    const int size = of->by.columns, groups = Dv / size;
    float a[groups * SLOTS], b[groups * SLOTS], scaled[G * SLOTS];
    spread(of->by.v_scale, first, t, groups, a);
    if (of->by.v_zero) spread(of->by.v_zero, first, t, groups, b);
    for (int c = 0; c < groups; c++) {
        for (int g = 0; g < G; g++) {
            const float *w = weights + g * SLOTS, *x = a + c * SLOTS, *y = b + c * SLOTS;
            v8 base = {0};
            for (int r = 0; r < 4 * t.n; r += 8) { /* to eights; the weights behind the tile are next to nothing */
                *(v8 *)(scaled + g * SLOTS + r) = at(w + r) * at(x + r);
                if (of->by.v_zero) base += at(w + r) * at(y + r);
            }
            v4 half = halves(base);
            float shift = half[0] + half[1] + half[2] + half[3];
            for (int i = c * size; i < (c + 1) * size && of->by.v_zero; i += 8) *(v8 *)(out + g * Dv + i) += shift;
        }
        const char *v = of->v + first * width(kind, Dv), *soon = c || of->by.group == 1 ? NULL : v + of->by.group * width(kind, Dv);
        add(scaled, v, t, G, Dv, kind, out, c * size, (c + 1) * size, soon);
    }
}

INLINE void read_codes(const Rows *of, const float *q, int64_t first, int64_t count, int G, int Dk, int Dv, int kind, Part part) {
    const int group = of->by.group;
    float logits[G * SLOTS] __attribute__((aligned(32))), query[group > 1 ? G * Dk : 1], total[G];
    for (int g = 0; g < G; g++) {
        total[g] = 0;
        for (int i = 0; i < Dk && of->by.k_zero; i++) total[g] += q[g * Dk + i];
    }
    for (int64_t end = first + count, n; first < end; first += n) {
        n = group == 1 || end - first < group - first % group ? end - first : group - first % group;
        if (group > 1) fold(of, q, first / group, query, total);
        for (int64_t r = 0; r < apart(n); r += SLOTS / 4) {
            Tile t = tile(r, n);
            const char *soon = of->k + (first + n) * width(kind, Dk); /* groups are short */
            dots(group > 1 ? query : q, of->k + (first + r) * width(kind, Dk), t, G, Dk, kind, logits, group > 1 ? soon : NULL);
            if (group == 1) rescale(of, total, first + r, t, logits);
            for (int g = 0; g < G && group > 1; g++)
                for (int i = 0; i < 4 * t.n; i++) logits[g * SLOTS + i] += total[g];
            soften_all(logits, t, G, Dv, part);
            add_codes(of, logits, first + r, t, G, Dv, kind, part.out);
        }
    }
}

static void read_span(const Rows *of, const float *q, int64_t first, int64_t count, int64_t next, Part part) {
    const char *k = of->k + first * width(of->kind, of->Dk), *v = of->v + first * width(of->kind, of->Dv);
#define PLAIN(t) \
    if (of->kind == t) return read_rows(q, k, v, count, next, of->G, of->Dk, of->Dv, t, part);
#define CODES(t) \
    if (of->kind == t) return read_codes(of, q, first, count, of->G, of->Dk, of->Dv, t, part);
    PLAIN(FLOAT32) PLAIN(BFLOAT16) CODES(INT8) CODES(INT4) CODES(FP8) CODES(INT2)
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
    int64_t total = 0, pieces = threads > 1 ? 8 * threads : 1, slots = pieces + 1; /* (piece, run) has slot piece + run: */
    for (int64_t i = 1; i < n; i++) slots += spans[3 * i] != spans[3 * i - 3]; /* spans of a segment are one run */
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
        int64_t from = total * p / pieces, to = total * (p + 1) / pieces, before = 0, run = 0;
        for (int64_t i = 0; i < n && before < to; before += spans[3 * i++ + 2]) {
            run += i && spans[3 * i] != spans[3 * i - 3];
            int64_t a = from > before ? from - before : 0, b = to - before < spans[3 * i + 2] ? to - before : spans[3 * i + 2];
            if (a >= b) continue;
            float *x = room + (p + run) * even * (Dv + 2), *top = x + even * Dv;
            for (int g = 0; g < even && segment[p + run] < 0; g++) top[g] = -INFINITY;
            segment[p + run] = spans[3 * i];
            int64_t next = i + 1 < n && b - a <= SHORT ? spans[3 * i + 4] - spans[3 * i + 1] - a : 0;
            read_span(&of, queries + spans[3 * i] * even * Dk, spans[3 * i + 1] + a, b - a, next, (Part){x, top, top + even});
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

static void dots_of(int kind, const float *q, const char *k, Tile t, int G, int D, float *logits) {
    if (kind == FLOAT32) return dots(q, k, t, G, D, FLOAT32, logits, NULL);
    if (kind == BFLOAT16) return dots(q, k, t, G, D, BFLOAT16, logits, NULL);
    dots(q, k, t, G, D, INT4, logits, NULL);
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
        float logits[even * SLOTS] __attribute__((aligned(32)));
        const char *rows = (const char *)k + spans[3 * i + 1] * bytes;
        for (int64_t count = spans[3 * i + 2], first = 0; first < apart(count); first += SLOTS / 4) {
            Tile t = tile(first, count);
            dots_of(kind, queries + spans[3 * i] * even * D, rows + first * bytes, t, even, D, logits);
            for (int g = 0; g < G; g++)
                for (int x = 0; x < 4 * t.n; x++)
                    if (there(t, x / 4, x % 4))
                        out[g * total + before[i] + first + x / 4 + x % 4 * t.stride] = logits[g * SLOTS + x];
        }
    }
    return free(queries), free(before), 0;
}

static float largest(float *x, int64_t n, int64_t k) { /* what is at place k once they fall; reorders them. Hoare's selection */
    for (int64_t low = 0, high = n - 1; low < high;) {
        float pivot = x[(low + high) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i > j) break;
            float swap = x[i];
            x[i++] = x[j], x[j--] = swap;
        }
        if (k <= j) high = j;
        else if (k >= i) low = i;
        else break;
    }
    return x[k];
}

/* The k pages of `size` rows that each of S segments reads: the newest, and of the others, the complete ones, those with the largest
   logits [G, entries of all segments]. `of` [S, 4]: segment, first row, rows, entries. Neighbours become one span in `spans`
   [S * k, 3], as above. Returns how many, or -1 if there is no memory. */
int64_t kvledger_pages(const float *logits, int G, const int64_t *of, int64_t S, int64_t k, int64_t size, int64_t *spans) {
    int64_t total = 0, n = 0;
    for (int64_t s = 0; s < S; s++) total += of[4 * s + 3];
    float *room = malloc((2 * total + 1) * sizeof(float)), *worth = room, *rest = room + total;
    if (!room) return -1;
    for (int64_t i = 0; i < total; i++) {
        worth[i] = -INFINITY;
        for (int g = 0; g < G; g++) worth[i] = logits[g * total + i] > worth[i] ? logits[g * total + i] : worth[i];
        rest[i] = worth[i];
    }
    for (int64_t s = 0; s < S; worth += of[4 * s + 3], rest += of[4 * s++ + 3]) {
        const int64_t rows = of[4 * s + 2], older = (rows + size - 1) / size - 1, many = k - 1 < older ? k - 1 : older;
        float least = many > 0 ? largest(rest, older, many - 1) : INFINITY;
        int64_t equal = many, stop = -1; /* how many of the least there is room for; where the span before ends */
        for (int64_t p = 0; p < older; p++) equal -= worth[p] > least;
        for (int64_t p = 0; p <= older; p++) {
            if (p < older && !(worth[p] > least) && (worth[p] != least || least == -INFINITY || equal-- <= 0)) continue;
            int64_t first = of[4 * s + 1] + p * size, count = rows - p * size < size ? rows - p * size : size;
            if (stop == first) spans[3 * n - 1] += count;
            else spans[3 * n] = of[4 * s], spans[3 * n + 1] = first, spans[3 * n++ + 2] = count;
            stop = first + count;
        }
    }
    return free(room), n;
}
