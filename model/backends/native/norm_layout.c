/*
 * What a U-Net does between its convolutions: group norms with the activation after them, and changes of an image's
 * layout (padding, joining channels, interleaving pixels).
 *
 * All tensors are float32 with the channels last: (batch, height, width, channels). A unit of work belongs to one
 * image, and one thread does all of it: neither the batch nor the number of threads changes a bit. Every operation is
 * an IEEE one, rounded once (compiled with -ffp-contract=off), so neither does the compiler or the instruction set.
 */

#include "kernel_abi.h"
#include "simd.h"

#include <math.h>

#define BLOCK 64 /* pixels that are summed before their sum is added to the total: bounds the rounding error */

/* x * sigmoid(x). */
INLINE float_vector silu(float_vector x) { return x / (1.0f + exponential(-x)); }

/*
 * The sum over all pixels of (x + offset)^power, of LANES channels; power is 1 or 2.
 *
 * x: (pixels, channels). Even and odd pixels have sums of their own, so that two additions are in flight at once.
 */
INLINE float_vector sum_pixels(const float *x, long pixels, long channels, float_vector offset, const int power)
{
    float_vector sum = {};
    for (long start = 0; start < pixels; start += BLOCK) {
        const long end = start + BLOCK < pixels ? start + BLOCK : pixels;
        float_vector even = {}, odd = {};
        for (long p = start; p + 1 < end; p += 2) {
            float_vector u = load(x + p * channels) + offset, v = load(x + (p + 1) * channels) + offset;
            even += power == 1 ? u : u * u;
            odd += power == 1 ? v : v * v;
        }
        if ((end - start) % 2) {
            float_vector u = load(x + (end - 1) * channels) + offset;
            even += power == 1 ? u : u * u;
        }
        sum += even + odd;
    }
    return sum;
}

/* Replace the value of each channel by the sum over its group. values: (channels,). */
static void sum_groups(float *values, long channels, long per_group)
{
    for (long first = 0; first < channels; first += per_group) {
        float sum = 0.0f;
        for (long c = first; c < first + per_group; c++) sum += values[c];
        for (long c = first; c < first + per_group; c++) values[c] = sum;
    }
}

/*
 * out = x * a + b for LANES channels of an image, then SiLU if asked for; `border` pixels of zeros around it.
 *
 * x: (height, width, channels); out: (height + 2 border, width + 2 border, channels).
 */
INLINE void scale_shift(const float *x, float *out, long height, long width, long channels, long border,
                        float_vector a, float_vector b, const int with_silu)
{
    const long out_width = width + 2 * border, out_height = height + 2 * border;
    const float_vector zero = {};
    for (long i = 0; i < out_height; i++) {
        float *row = out + i * out_width * channels;
        if (i < border || i >= out_height - border) {
            for (long j = 0; j < out_width; j++) store(row + j * channels, zero);
            continue;
        }
        for (long j = 0; j < border; j++) {
            store(row + j * channels, zero);
            store(row + (out_width - 1 - j) * channels, zero);
        }
        const float *from = x + (i - border) * width * channels;
        for (long j = 0; j < width; j++) {
            float_vector y = load(from + j * channels) * a + b;
            store(row + (border + j) * channels, with_silu ? silu(y) : y);
        }
    }
}

/*
 * out = activation(norm(x + addend) * weight + bias), or, with scale and shift,
 * out = activation((norm(x) * weight + bias) * (1 + scale) + shift).
 *
 * out: like x, or with `border` pixels of zeros around each image. addend, scale, shift: a row of channels for each
 * image, `stride` floats between two rows, or NULL. weight, bias: (channels,). chunk: channels of a unit of work, a
 * multiple of per_group and of LANES that divides channels.
 *
 * The norm is computed in three passes over an image that stays in the cache: the mean, then the variance around it
 * (two passes do not cancel where |mean| is large), then the outcome, where mean, variance and all factors are folded
 * into one multiplication and one addition per value.
 */
void denoised_norm(long batch, const argument *given)
{
    const float *x = given[0].pointer, *addend = given[1].pointer, *scale = given[2].pointer, *shift = given[3].pointer;
    const long stride = given[4].number;
    const float *weight = given[5].pointer, *bias = given[6].pointer;
    float *out = given[7].pointer;
    const long height = given[8].number, width = given[9].number, channels = given[10].number;
    const long per_group = given[11].number, chunk = given[12].number, border = given[13].number;
    const float eps = given[14].real;
    const long with_silu = given[15].number;
    const long chunks = channels / chunk, pixels = height * width;
    const float count = (float)pixels * (float)per_group;
#pragma omp parallel for schedule(static)
    for (long unit = 0; unit < batch * chunks; unit++) {
        const long image = unit / chunks, first = unit % chunks * chunk;
        const float *from = x + image * pixels * channels + first;
        float *to = out + image * (height + 2 * border) * (width + 2 * border) * channels + first;
        float center[chunk], inverse_std[chunk];

        /* The mean of each group, at each of its channels. */
        for (long c = 0; c < chunk; c += LANES) {
            float_vector offset = addend ? load(addend + image * stride + first + c) : (float_vector){};
            store(center + c, sum_pixels(from + c, pixels, channels, offset, 1) / count);
        }
        sum_groups(center, chunk, per_group);
        /* center becomes what is added to x: the addend minus the mean. Then 1 / sqrt(variance + eps). */
        for (long c = 0; c < chunk; c += LANES) {
            float_vector offset =
                (addend ? load(addend + image * stride + first + c) : (float_vector){}) - load(center + c);
            store(center + c, offset);
            store(inverse_std + c, sum_pixels(from + c, pixels, channels, offset, 2) / count);
        }
        sum_groups(inverse_std, chunk, per_group);
        for (long c = 0; c < chunk; c++) inverse_std[c] = 1.0f / sqrtf(inverse_std[c] + eps);

        /* (x + center) * inverse_std * weight + bias = x * a + (center * a + bias) with a = inverse_std * weight. */
        for (long c = 0; c < chunk; c += LANES) {
            float_vector a = load(inverse_std + c) * load(weight + first + c), b = load(bias + first + c);
            if (scale) {
                float_vector factor = 1.0f + load(scale + image * stride + first + c);
                a *= factor;
                b = b * factor + load(shift + image * stride + first + c);
            }
            b += load(center + c) * a;
            if (with_silu) /* a constant in each branch, so that the inner loop does not test it */
                scale_shift(from + c, to + c, height, width, channels, border, a, b, 1);
            else
                scale_shift(from + c, to + c, height, width, channels, border, a, b, 0);
        }
    }
}

/* Zeros around each image. out: (batch, top + height + bottom, left + width + right, channels). */
void denoised_pad(long batch, const argument *given)
{
    const float *x = given[0].pointer;
    float *out = given[1].pointer;
    const long height = given[2].number, width = given[3].number, channels = given[4].number;
    const long top = given[5].number, bottom = given[6].number, left = given[7].number, right = given[8].number;
    const long out_height = top + height + bottom, out_width = left + width + right;
#pragma omp parallel for schedule(static)
    for (long row = 0; row < batch * out_height; row++) {
        const long image = row / out_height, i = row % out_height - top; /* i: the row of x */
        float *to = out + row * out_width * channels;
        if (i < 0 || i >= height) {
            memset(to, 0, out_width * channels * sizeof *to);
            continue;
        }
        memset(to, 0, left * channels * sizeof *to);
        memcpy(to + left * channels, x + (image * height + i) * width * channels, width * channels * sizeof *to);
        memset(to + (left + width) * channels, 0, right * channels * sizeof *to);
    }
}

/* Join channels. x: (batch, pixels, left), y: (batch, pixels, right), out: (batch, pixels, left + right). */
void denoised_join(long batch, const argument *given)
{
    const float *x = given[0].pointer, *y = given[1].pointer;
    float *out = given[2].pointer;
    const long pixels = given[3].number, left = given[4].number, right = given[5].number;
#pragma omp parallel for schedule(static)
    for (long p = 0; p < batch * pixels; p++) {
        memcpy(out + p * (left + right), x + p * left, left * sizeof *out);
        memcpy(out + p * (left + right) + left, y + p * right, right * sizeof *out);
    }
}

/*
 * Put the four phases of an upsampled image in their places (`layers.NativeUpsample`).
 *
 * x: (batch, height + 1, width + 1, 4, channels); out: (batch, 2 height, 2 width, channels);
 * out[2i + a, 2j + b] = x[i + a, j + b, 2a + b] for a, b in {0, 1}.
 */
void denoised_interleave(long batch, const argument *given)
{
    const float *x = given[0].pointer;
    float *out = given[1].pointer;
    const long height = given[2].number, width = given[3].number, channels = given[4].number;
#pragma omp parallel for schedule(static)
    for (long row = 0; row < batch * 2 * height; row++) {
        const long image = row / (2 * height), i = row % (2 * height) / 2, a = row % 2;
        const float *from = x + (image * (height + 1) + i + a) * (width + 1) * 4 * channels;
        float *to = out + row * 2 * width * channels;
        for (long j = 0; j < width; j++)
            for (long b = 0; b < 2; b++)
                memcpy(to + (2 * j + b) * channels, from + ((j + b) * 4 + 2 * a + b) * channels, channels * sizeof *to);
    }
}
