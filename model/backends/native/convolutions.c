/*
 * Convolutions, compiled for the shapes of one network: TILES names them, as
 * TILE(size, stride, channels, pixels, vectors) for each.
 *
 * A tile is `pixels` outputs of a row by `vectors` vectors of output channels. Its sums stay in registers while the
 * weights stream past: each weight vector that is loaded serves all pixels, and each input all vectors. The number of
 * input channels is a constant, so that every address is one.
 *
 * An output is the bias, then one fused multiply-add after another in the order of the weights: no bit of it depends
 * on the tile it is in, on the batch or on the number of threads.
 */

#include "kernel_abi.h"
#include "simd.h"

#define MAX_PIXELS 14
#define MAX_VECTORS 5

/*
 * v, in a register: else GCC reads the weights of narrow tiles from memory once for each pixel, which takes 1.25 times
 * as long for four pixels.
 */
INLINE float_vector in_register(float_vector v)
{
#ifdef __AVX512F__
    __asm__("" : "+v"(v));
#endif
    return v;
}

/*
 * One tile.
 *
 * x: the upper left corner of its input, `row` floats between rows, (rows, columns, channels);
 * weights: (size, size, channels, vectors, LANES); bias: (vectors, LANES);
 * out: its first pixel, `out_channels` floats between pixels;
 * addend: what is added to the outcome, laid out as out, or NULL.
 */
INLINE void tile(const float *x, long row, const float *weights, const float *bias, const float *addend, float *out,
                 long out_channels, const int size, const int stride, const long channels, const int pixels,
                 const int vectors)
{
    float_vector sum[MAX_PIXELS][MAX_VECTORS];
#pragma GCC unroll 16
    for (int p = 0; p < pixels; p++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[p][v] = load(bias + v * LANES);

    for (int a = 0; a < size; a++)
        for (int b = 0; b < size; b++) {
            const float *from = x + a * row + b * channels;
            for (long c = 0; c < channels; c++, weights += vectors * LANES) {
                float_vector weight[MAX_VECTORS];
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++) weight[v] = in_register(load(weights + v * LANES));
#pragma GCC unroll 16
                for (int p = 0; p < pixels; p++)
#pragma GCC unroll 8
                    for (int v = 0; v < vectors; v++) sum[p][v] += from[p * stride * channels + c] * weight[v];
            }
        }

#pragma GCC unroll 16
    for (int p = 0; p < pixels; p++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            long at = p * out_channels + v * LANES;
            store(out + at, addend ? sum[p][v] + load(addend + at) : sum[p][v]);
        }
}

/*
 * The convolution of a tile's shape, without padding: x has its border already.
 *
 * x: (batch, height, width, channels); weights: (bands, size, size, channels, vectors, LANES), where a band is
 * vectors * LANES output channels; out, addend: (batch, out_height, out_width, out_channels).
 *
 * A unit of work is one row of one band. All rows of all images come before the next band, whose weights are read from
 * memory once. The last tile of a row ends with the row, over pixels that the tile before it
 * has computed already; so out_width must be at least `pixels`.
 */
#define TILE(size, stride, channels, pixels, vectors)                                                                \
    void denoised_convolve_##size##_##stride##_##channels##_##pixels##_##vectors(long batch, const argument *given)  \
    {                                                                                                                \
        const float *x = given[0].pointer, *weights = given[1].pointer, *bias = given[2].pointer;                    \
        const float *addend = given[3].pointer;                                                                      \
        float *out = given[4].pointer;                                                                               \
        const long height = given[5].number, width = given[6].number;                                                \
        const long out_height = given[7].number, out_width = given[8].number, out_channels = given[9].number;        \
        const long bands = out_channels / (vectors * LANES), rows = batch * out_height;                              \
        _Pragma("omp parallel for schedule(static)")                                                                 \
        for (long unit = 0; unit < rows * bands; unit++) {                                                           \
            const long band = unit / rows, image = unit % rows / out_height, i = unit % out_height;                  \
            const float *from = x + (image * height + i * stride) * width * channels;                                \
            for (long first = 0; first < out_width; first += pixels) {                                               \
                const long j = first + pixels <= out_width ? first : out_width - pixels;                             \
                const long at = ((image * out_height + i) * out_width + j) * out_channels + band * vectors * LANES;  \
                tile(from + j * stride * channels, width * channels,                                                 \
                     weights + band * size * size * channels * vectors * LANES, bias + band * vectors * LANES,       \
                     addend ? addend + at : 0, out + at, out_channels, size, stride, channels, pixels, vectors);     \
            }                                                                                                        \
        }                                                                                                            \
    }

TILES
