/*
 * Vectors of sixteen floats, with the operations that C has for scalars; a compiler makes of them
 * what its machine offers. (GCC and Clang: vector extensions.)
 */

#ifndef DENOISED_LANES_H
#define DENOISED_LANES_H

#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));

INLINE lanes load(const float *from)
{
    lanes v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(float *to, lanes v) { memcpy(to, &v, sizeof v); }

INLINE lanes choose(integers mask, lanes yes, lanes no)
{
    return (lanes)((mask & (integers)yes) | (~mask & (integers)no));
}

/* e^x to 2 ulp: x = k ln 2 + r, with the polynomial of Cephes' expf for e^r (Moshier 1992). */
INLINE lanes exponential(lanes x)
{
    const lanes high = (lanes){} + 88.0f, low = (lanes){} - 87.0f, magic = (lanes){} + 12582912.0f; /* 1.5 * 2^23 */
    x = choose(x > high, high, x);
    x = choose(x < low, low, x);
    lanes rounded = x * 1.44269504088896341f + magic; /* its last bits are k */
    integers k = (integers)rounded - (integers)magic;
    lanes whole = rounded - magic;
    lanes r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (lanes)((k + 127) << 23);
}

#endif
