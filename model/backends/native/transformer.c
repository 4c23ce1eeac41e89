/*
 * What a transformer does between its matrix products and attentions: layer norms and the gate of its feed-forward
 * layer.
 *
 * All tensors are float32 with the channels last: (batch, tokens, channels). A unit of work is one token: neither the
 * batch nor the number of threads changes a bit. Compiled with -ffp-contract=off, as norm_layout.c is.
 */

#include "kernel_abi.h"
#include "simd.h"

#include <math.h>

/* The sum of all lanes, in pairs. */
INLINE float sum_lanes(float_vector v)
{
    float part[LANES];
    store(part, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int k = 0; k < half; k++) part[k] += part[k + half];
    return part[0];
}

/* Mean of (x + offset)^power over the channels of a token; power is 1 or 2. */
INLINE float mean_channels(const float *x, long channels, float offset, const int power)
{
    float_vector sum = {};
    for (long c = 0; c < channels; c += LANES) {
        float_vector u = load(x + c) + offset;
        sum += power == 1 ? u : u * u;
    }
    return sum_lanes(sum) / (float)channels;
}

/*
 * out = (x - mean) / sqrt(variance + eps) * weight + bias, with the mean and variance of each token.
 *
 * x, out: (batch, tokens, channels); weight, bias: (channels,); channels is a multiple of LANES.
 */
void denoised_layer_norm(long batch, const argument *given)
{
    const float *x = given[0].pointer, *weight = given[1].pointer, *bias = given[2].pointer;
    float *out = given[3].pointer;
    const long tokens = given[4].number, channels = given[5].number;
    const float eps = given[6].real;
#pragma omp parallel for schedule(static)
    for (long token = 0; token < batch * tokens; token++) {
        const float *from = x + token * channels;
        float *to = out + token * channels;
        const float mean = mean_channels(from, channels, 0.0f, 1);
        const float inverse_std = 1.0f / sqrtf(mean_channels(from, channels, -mean, 2) + eps);
        for (long c = 0; c < channels; c += LANES)
            store(to + c, (load(from + c) - mean) * inverse_std * load(weight + c) + load(bias + c));
    }
}

/*
 * GELU(x) = x Phi(x). With z = |x|, Phi(-z) = e^(-z^2/2) h(z), where h(z) = t P(t), t = 1 / (1 + 0.3 z), and P was
 * fitted to 1.5e-7 relative to h on z = 0 ... 14.
 */
INLINE float_vector gelu(float_vector x)
{
    const float_vector zero = {};
    const float_vector z = select_lanes(x < zero, -x, x);
    const float_vector t = 1.0f / (1.0f + 0.3f * z);
    float_vector p = t * 3.567521467e-02f + -1.572048075e-01f;
    p = p * t + 2.063562680e-01f;
    p = p * t + -5.368597912e-02f;
    p = p * t + 1.285627486e-01f;
    p = p * t + 9.991318641e-02f;
    p = p * t + 1.207539997e-01f;
    p = p * t + 1.196292963e-01f;
    const float_vector tail = exponential(-0.5f * z * z) * (p * t); /* Phi(-z) */
    return x * select_lanes(x < zero, tail, 1.0f - tail);
}

/* out = value * GELU(gate). x: (batch, tokens, 2, channels), value and gate; out: (batch, tokens, channels). */
void denoised_gated_gelu(long batch, const argument *given)
{
    const float *x = given[0].pointer;
    float *out = given[1].pointer;
    const long tokens = given[2].number, channels = given[3].number;
#pragma omp parallel for schedule(static)
    for (long token = 0; token < batch * tokens; token++) {
        const float *value = x + token * 2 * channels, *gate = value + channels;
        for (long c = 0; c < channels; c += LANES)
            store(out + token * channels + c, load(value + c) * gelu(load(gate + c)));
    }
}
