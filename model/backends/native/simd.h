/*
 * Vectors of LANES floats with the operators that C has for scalars (vector extensions of GCC and Clang). The
 * compiler maps them to what the machine has: one AVX-512 register, two of AVX2, four of SSE or NEON.
 */

#ifndef DENOISED_SIMD_H
#define DENOISED_SIMD_H

#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float float_vector __attribute__((vector_size(4 * LANES)));
typedef int32_t int_vector __attribute__((vector_size(4 * LANES)));

/* An unaligned load: memcpy of a constant size compiles to one instruction per register. */
INLINE float_vector load(const float *from)
{
    float_vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(float *to, float_vector v) { memcpy(to, &v, sizeof v); }

/* Lane by lane: yes where the mask is all ones (the outcome of a comparison), no where it is zero. */
INLINE float_vector select_lanes(int_vector mask, float_vector yes, float_vector no)
{
    return (float_vector)((mask & (int_vector)yes) | (~mask & (int_vector)no));
}

/*
 * e^x to 2 ulp: x = k ln 2 + r with |r| <= ln 2 / 2, e^x = 2^k e^r, and e^r by the polynomial of Cephes' expf
 * (Moshier 1992). x is clamped to -87 ... 88, where 2^k is a normal float.
 */
INLINE float_vector exponential(float_vector x)
{
    const float_vector high = (float_vector){} + 88.0f, low = (float_vector){} - 87.0f;
    /* Adding 1.5 * 2^23 rounds to an integer, which is left in the last bits of the mantissa. */
    const float_vector magic = (float_vector){} + 12582912.0f;
    x = select_lanes(x > high, high, x);
    x = select_lanes(x < low, low, x);
    float_vector rounded = x * 1.44269504088896341f + magic; /* x / ln 2 */
    int_vector k = (int_vector)rounded - (int_vector)magic;
    float_vector whole = rounded - magic; /* k as floats */
    /* ln 2 in two parts: the first has few bits, so that its product with k is exact. */
    float_vector r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float_vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (float_vector)((k + 127) << 23); /* the bits of 2^k */
}

#endif
