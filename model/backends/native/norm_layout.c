/*
 * What stands between the convolutions of a U-Net: norms with what follows them, and the rearranging
 * of pictures.
 *
 * All tensors are float32 with the channels last: (batch, height, width, channels). A unit of work belongs
 * to one image, and one thread does all of it: neither the batch nor the number of threads changes a bit.
 * Every operation is an IEEE one, rounded once (compiled with -ffp-contract=off), so neither does the
 * compiler, nor the instruction set.
 */

#include "kernel_abi.h"
#include "simd.h"

#include <math.h>

#define BLOCK 64 /* pixels summed before their sum is added: keeps the rounding of large pictures small */

INLINE lanes silu(lanes x) { return x / (1.0f + exponential(-x)); }

/* The sum over pixels of (x + offset)^power of LANES channels, power 1 or 2. */
INLINE lanes total(const float *x, long pixels, long channels, lanes offset, const int power)
{
    lanes sum = {};
    for (long start = 0; start < pixels; start += BLOCK) {
        const long end = start + BLOCK < pixels ? start + BLOCK : pixels;
        lanes even = {}, odd = {};
        for (long p = start; p + 1 < end; p += 2) {
            lanes u = load(x + p * channels) + offset, v = load(x + (p + 1) * channels) + offset;
            even += power == 1 ? u : u * u;
            odd += power == 1 ? v : v * v;
        }
        if ((end - start) % 2) {
            lanes u = load(x + (end - 1) * channels) + offset;
            even += power == 1 ? u : u * u;
        }
        sum += even + odd;
    }
    return sum;
}

/* Gives every channel of a group the group's sum. */
static void share(float *sums, long channels, long per_group)
{
    for (long first = 0; first < channels; first += per_group) {
        float sum = 0.0f;
        for (long c = first; c < first + per_group; c++) sum += sums[c];
        for (long c = first; c < first + per_group; c++) sums[c] = sum;
    }
}

/* LANES channels of the picture times a plus b, through SiLU or not; zeros for `border` pixels around it. */
INLINE void apply(const float *x, float *out, long height, long width, long channels, long border, lanes a, lanes b,
                  const int with_silu)
{
    const long wide = width + 2 * border, high = height + 2 * border;
    const lanes zero = {};
    for (long i = 0; i < high; i++) {
        float *row = out + i * wide * channels;
        if (i < border || i >= high - border) {
            for (long j = 0; j < wide; j++) store(row + j * channels, zero);
            continue;
        }
        for (long j = 0; j < border; j++) {
            store(row + j * channels, zero);
            store(row + (wide - 1 - j) * channels, zero);
        }
        const float *from = x + (i - border) * width * channels;
        for (long j = 0; j < width; j++) {
            lanes y = load(from + j * channels) * a + b;
            store(row + (border + j) * channels, with_silu ? silu(y) : y);
        }
    }
}

/*
 * out = activation(norm(x + plus) * weight + bias), or activation((norm... ) * (1 + scale) + shift).
 *
 * out: like x, or with `border` pixels of zeros around each picture. plus, scale, shift: a row of channels for
 * each image, `stride` floats apart, or NULL. chunk: channels of a unit, a multiple of per_group and of LANES
 * that divides channels.
 */
void denoised_norm(long batch, const argument *given)
{
    const float *x = given[0].pointer, *plus = given[1].pointer, *scale = given[2].pointer, *shift = given[3].pointer;
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
        float centre[chunk], spread[chunk];

        for (long c = 0; c < chunk; c += LANES) {
            lanes offset = plus ? load(plus + image * stride + first + c) : (lanes){};
            store(centre + c, total(from + c, pixels, channels, offset, 1) / count);
        }
        share(centre, chunk, per_group);
        for (long c = 0; c < chunk; c += LANES) {
            lanes offset = (plus ? load(plus + image * stride + first + c) : (lanes){}) - load(centre + c);
            store(centre + c, offset);
            store(spread + c, total(from + c, pixels, channels, offset, 2) / count);
        }
        share(spread, chunk, per_group);
        for (long c = 0; c < chunk; c++) spread[c] = 1.0f / sqrtf(spread[c] + eps);

        for (long c = 0; c < chunk; c += LANES) {
            lanes a = load(spread + c) * load(weight + first + c), b = load(bias + first + c);
            if (scale) {
                lanes by = 1.0f + load(scale + image * stride + first + c);
                a *= by;
                b = b * by + load(shift + image * stride + first + c);
            }
            b += load(centre + c) * a;
            if (with_silu)
                apply(from + c, to + c, height, width, channels, border, a, b, 1);
            else
                apply(from + c, to + c, height, width, channels, border, a, b, 0);
        }
    }
}

/* Zeros around each picture: out is (batch, top + height + bottom, left + width + right, channels). */
void denoised_pad(long batch, const argument *given)
{
    const float *x = given[0].pointer;
    float *out = given[1].pointer;
    const long height = given[2].number, width = given[3].number, channels = given[4].number;
    const long top = given[5].number, bottom = given[6].number, left = given[7].number, right = given[8].number;
    const long high = top + height + bottom, wide = left + width + right;
#pragma omp parallel for schedule(static)
    for (long row = 0; row < batch * high; row++) {
        const long image = row / high, i = row % high - top;
        float *to = out + row * wide * channels;
        if (i < 0 || i >= height) {
            memset(to, 0, wide * channels * sizeof *to);
            continue;
        }
        memset(to, 0, left * channels * sizeof *to);
        memcpy(to + left * channels, x + (image * height + i) * width * channels, width * channels * sizeof *to);
        memset(to + (left + width) * channels, 0, right * channels * sizeof *to);
    }
}

/* Channels beside each other: x (batch, pixels, left), y (batch, pixels, right), out (batch, pixels, left + right). */
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
 * (batch, height + 1, width + 1, 4, channels) -> (batch, 2 height, 2 width, channels):
 * out[2i + a, 2j + b] = x[i + a, j + b, 2a + b].
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
