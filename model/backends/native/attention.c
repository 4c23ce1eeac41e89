/*
 * Attention over the pixels of a picture. A head of an image is a unit of work, and one thread does all of
 * it: neither the batch nor the number of threads changes a bit.
 */

#include "kernel_abi.h"
#include "simd.h"

#define QUERIES 7 /* taken at a time, so that what is read of keys and values serves them all */

/* scores[i, j] = scale * q_i . k_j. q: `token` floats between queries; keys: (depth, wide). */
INLINE void score(const float *q, long token, const float *keys, float *scores, long depth, long wide, float scale,
                  const int queries)
{
    for (long j = 0; j < wide; j += LANES) {
        lanes sum[QUERIES] = {};
        for (long d = 0; d < depth; d++) {
            const lanes key = load(keys + d * wide + j);
#pragma GCC unroll 8
            for (int i = 0; i < queries; i++) sum[i] += q[i * token + d] * key;
        }
#pragma GCC unroll 8
        for (int i = 0; i < queries; i++) store(scores + i * wide + j, sum[i] * scale);
    }
}

/* e^(score - the largest), zero from `tokens` on; returns their sum. */
INLINE float soften(float *scores, long tokens, long wide)
{
    for (long j = tokens; j < wide; j++) scores[j] = scores[0];
    lanes most = load(scores);
    for (long j = LANES; j < wide; j += LANES) {
        lanes each = load(scores + j);
        most = choose(each > most, each, most);
    }
    float largest = most[0], all = 0.0f;
    for (int k = 1; k < LANES; k++) largest = most[k] > largest ? most[k] : largest;
    for (long j = 0; j < wide; j += LANES) store(scores + j, exponential(load(scores + j) - largest));
    for (long j = tokens; j < wide; j++) scores[j] = 0.0f;
    lanes sum = {};
    for (long j = 0; j < wide; j += LANES) sum += load(scores + j);
    for (int k = 0; k < LANES; k++) all += sum[k];
    return all;
}

/* out_i = sum over j of scores[i, j] v_j / sums[i]. */
INLINE void mix(const float *scores, const float *sums, const float *v, long token, float *out, long apart, long depth,
                long tokens, long wide, const int queries)
{
    for (long d = 0; d < depth; d += LANES) {
        lanes sum[QUERIES] = {};
        for (long j = 0; j < tokens; j++) {
            const lanes value = load(v + j * token + d);
#pragma GCC unroll 8
            for (int i = 0; i < queries; i++) sum[i] += scores[i * wide + j] * value;
        }
#pragma GCC unroll 8
        for (int i = 0; i < queries; i++) store(out + i * apart + d, sum[i] / sums[i]);
    }
}

INLINE void attend(const float *q, const float *keys, const float *v, float *scores, float *out, long tokens, long wide,
                   long heads, long depth, float scale, const int queries)
{
    const long token = 3 * heads * depth, apart = heads * depth;
    float sums[QUERIES];
    score(q, token, keys, scores, depth, wide, scale, queries);
    for (int i = 0; i < queries; i++) sums[i] = soften(scores + i * wide, tokens, wide);
    mix(scores, sums, v, token, out, apart, depth, tokens, wide, queries);
}

/*
 * softmax(q k^T * scale) v of each head. qkv: (batch, tokens, 3, heads, depth); out: (batch, tokens, heads, depth);
 * depth a multiple of LANES. scratch: (batch, heads, depth + 7, tokens rounded up to LANES).
 */
void denoised_attend(long batch, const argument *given)
{
    const float *qkv = given[0].pointer;
    float *out = given[1].pointer, *scratch = given[2].pointer;
    const long tokens = given[3].number, heads = given[4].number, depth = given[5].number;
    const float scale = given[6].real;
    const long wide = (tokens + LANES - 1) / LANES * LANES, token = 3 * heads * depth, apart = heads * depth;
#pragma omp parallel for schedule(static)
    for (long unit = 0; unit < batch * heads; unit++) {
        const float *q = qkv + unit / heads * tokens * token + unit % heads * depth;
        const float *k = q + heads * depth, *v = k + heads * depth;
        float *to = out + unit / heads * tokens * apart + unit % heads * depth;
        float *keys = scratch + unit * (depth + QUERIES) * wide, *scores = keys + depth * wide;
        for (long j = 0; j < wide; j++)
            for (long d = 0; d < depth; d++) keys[d * wide + j] = j < tokens ? k[j * token + d] : 0.0f;
        long i = 0;
        for (; i + QUERIES <= tokens; i += QUERIES)
            attend(q + i * token, keys, v, scores, to + i * apart, tokens, wide, heads, depth, scale, QUERIES);
        for (; i < tokens; i++)
            attend(q + i * token, keys, v, scores, to + i * apart, tokens, wide, heads, depth, scale, 1);
    }
}
