/*
 * Attention of the pixels of an image (its tokens) to each other, or to the tokens of a text. One head of one image is
 * a unit of work, and one thread does all of it: neither the batch nor the number of threads changes a bit.
 */

#include "kernel_abi.h"
#include "simd.h"

#define QUERIES 7 /* processed together, so that each key and value that is read serves all of them */

/*
 * scores[i, j] = scale * q_i . k_j, for i < queries and j < padded.
 *
 * q: `stride` floats between two queries; keys: (depth, padded), transposed so that LANES keys are one vector;
 * scores: (queries, padded).
 */
INLINE void score(const float *q, long stride, const float *keys, float *scores, long depth, long padded, float scale,
                  const int queries)
{
    for (long j = 0; j < padded; j += LANES) {
        float_vector sum[QUERIES] = {}; /* in registers over the whole depth */
        for (long d = 0; d < depth; d++) { /* in order, so that every sum is rounded in the same way */
            const float_vector key = load(keys + d * padded + j);
#pragma GCC unroll 8
            for (int i = 0; i < queries; i++) sum[i] += q[i * stride + d] * key;
        }
#pragma GCC unroll 8
        for (int i = 0; i < queries; i++) store(scores + i * padded + j, sum[i] * scale);
    }
}

/*
 * The numerators of softmax: scores[j] = e^(scores[j] - max), which cannot overflow, and zero for the padding from
 * `tokens` on. Returns their sum, the denominator.
 */
INLINE float exponentiate(float *scores, long tokens, long padded)
{
    for (long j = tokens; j < padded; j++) scores[j] = scores[0]; /* the padding must not change the maximum */
    float_vector most = load(scores);
    for (long j = LANES; j < padded; j += LANES) {
        float_vector each = load(scores + j);
        most = select_lanes(each > most, each, most);
    }
    float largest = most[0], total = 0.0f;
    for (int k = 1; k < LANES; k++) largest = most[k] > largest ? most[k] : largest;
    for (long j = 0; j < padded; j += LANES) store(scores + j, exponential(load(scores + j) - largest));
    for (long j = tokens; j < padded; j++) scores[j] = 0.0f;
    float_vector sum = {}; /* lane by lane, then over the lanes: an order that only `padded` decides */
    for (long j = 0; j < padded; j += LANES) sum += load(scores + j);
    for (int k = 0; k < LANES; k++) total += sum[k];
    return total;
}

/*
 * out_i = sum over j of scores[i, j] v_j / sums[i].
 *
 * v: (tokens, depth), `stride` floats between two tokens; out: (queries, depth), `out_stride` floats between two.
 */
INLINE void mix_values(const float *scores, const float *sums, const float *v, long stride, float *out,
                       long out_stride, long depth, long tokens, long padded, const int queries)
{
    for (long d = 0; d < depth; d += LANES) {
        float_vector sum[QUERIES] = {};
        for (long j = 0; j < tokens; j++) {
            const float_vector value = load(v + j * stride + d);
#pragma GCC unroll 8
            for (int i = 0; i < queries; i++) sum[i] += scores[i * padded + j] * value;
        }
        /* Divided once per output instead of once per score. */
#pragma GCC unroll 8
        for (int i = 0; i < queries; i++) store(out + i * out_stride + d, sum[i] / sums[i]);
    }
}

/* Attention of `queries` queries to all keys of a head. `queries` is a constant, so that all loops unroll. */
INLINE void attend(const float *q, long q_stride, const float *keys, const float *v, long v_stride, float *scores,
                   float *out, long out_stride, long count, long padded, long depth, float scale, const int queries)
{
    float sums[QUERIES];
    score(q, q_stride, keys, scores, depth, padded, scale, queries);
    for (int i = 0; i < queries; i++) sums[i] = exponentiate(scores + i * padded, count, padded);
    mix_values(scores, sums, v, v_stride, out, out_stride, depth, count, padded, queries);
}

/*
 * A head: out_i = softmax(q_i k^T * scale) v for all tokens i.
 *
 * q, out: (tokens, depth); keys: (depth, padded) of `count` keys; v: (count, depth); q_stride, v_stride, out_stride:
 * floats between two tokens; scores: (QUERIES, padded).
 */
static void attend_head(const float *q, long q_stride, const float *keys, const float *v, long v_stride, float *scores,
                        float *out, long out_stride, long tokens, long count, long padded, long depth, float scale)
{
    long i = 0;
    for (; i + QUERIES <= tokens; i += QUERIES)
        attend(q + i * q_stride, q_stride, keys, v, v_stride, scores, out + i * out_stride, out_stride, count, padded,
               depth, scale, QUERIES);
    for (; i < tokens; i++) /* fewer than QUERIES are left */
        attend(q + i * q_stride, q_stride, keys, v, v_stride, scores, out + i * out_stride, out_stride, count, padded,
               depth, scale, 1);
}

/*
 * softmax(q k^T * scale) v of each head.
 *
 * qkv: (batch, tokens, 3, heads, depth); out: (batch, tokens, heads, depth); depth is a multiple of LANES.
 * scratch: (batch, heads, depth + QUERIES, tokens rounded up to LANES): the transposed keys and the scores of a head.
 */
void denoised_attend(long batch, const argument *given)
{
    const float *qkv = given[0].pointer;
    float *out = given[1].pointer, *scratch = given[2].pointer;
    const long tokens = given[3].number, heads = given[4].number, depth = given[5].number;
    const float scale = given[6].real;
    const long padded = (tokens + LANES - 1) / LANES * LANES;
    const long stride = 3 * heads * depth, out_stride = heads * depth; /* floats of a token */
#pragma omp parallel for schedule(static)
    for (long unit = 0; unit < batch * heads; unit++) {
        const long image = unit / heads, head = unit % heads;
        const float *q = qkv + image * tokens * stride + head * depth;
        const float *k = q + heads * depth, *v = k + heads * depth;
        float *to = out + image * tokens * out_stride + head * depth;
        float *keys = scratch + unit * (depth + QUERIES) * padded, *scores = keys + depth * padded;
        for (long j = 0; j < padded; j++)
            for (long d = 0; d < depth; d++) keys[d * padded + j] = j < tokens ? k[j * stride + d] : 0.0f;
        attend_head(q, stride, keys, v, stride, scores, to, out_stride, tokens, tokens, padded, depth, scale);
    }
}

/*
 * The same with keys and values of a text, which were made before.
 *
 * q, out: (batch, tokens, heads, depth); depth is a multiple of LANES.
 * keys: for each image (heads, depth, padded), `stride` floats between two images, padded with zeros from `count` on;
 * values: for each image (count, heads, depth), `stride` floats between two images.
 * scratch: (batch, heads, QUERIES, padded).
 */
void denoised_attend_text(long batch, const argument *given)
{
    const float *q = given[0].pointer, *keys = given[1].pointer, *values = given[2].pointer;
    float *out = given[3].pointer, *scratch = given[4].pointer;
    const long stride = given[5].number, tokens = given[6].number, count = given[7].number;
    const long heads = given[8].number, depth = given[9].number;
    const float scale = given[10].real;
    const long padded = (count + LANES - 1) / LANES * LANES, width = heads * depth; /* width: floats of a token */
#pragma omp parallel for schedule(static)
    for (long unit = 0; unit < batch * heads; unit++) {
        const long image = unit / heads, head = unit % heads, first = image * tokens * width + head * depth;
        attend_head(q + first, width, keys + image * stride + head * depth * padded,
                    values + image * stride + head * depth, width, scratch + unit * QUERIES * padded, out + first, width,
                    tokens, count, padded, depth, scale);
    }
}
