/** Random numbers: torch's normal numbers of a seed, so that the page knows the noise that a job began with. */

const [N, M] = [624, 397]; // of MT19937 (Matsumoto & Nishimura 1998)
const BLOCK = 16; // torch makes normal numbers in blocks of 16, by Box and Muller's method

/** MT19937 with torch's seeding by 32 bits: a function that returns the next 32 bits. */
function mersenneTwister(seed) {
  const state = new Uint32Array(N);
  state[0] = seed >>> 0;
  for (let i = 1; i < N; i += 1) {
    const before = state[i - 1] ^ (state[i - 1] >>> 30);
    state[i] = (Math.imul(1812433253, before) + i) >>> 0;
  }
  let index = N;
  return () => {
    if (index === N) {
      for (let i = 0; i < N; i += 1) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % N] & 0x7fffffff);
        state[i] = state[(i + M) % N] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      index = 0;
    }
    let y = state[index];
    index += 1;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
}

/**
 * `torch.randn(count, generator=torch.Generator().manual_seed(seed))`, up to float32 rounding.
 * @param {number} seed 0 … 2³² − 1 @param {number} count at least 16 @returns {Float32Array}
 */
export function torchNormals(seed, count) {
  const next = mersenneTwister(seed);
  const uniform = () => (next() & 0xffffff) / 2 ** 24;
  const values = Float32Array.from({ length: count }, uniform);
  for (let start = 0; start + BLOCK <= count; start += BLOCK) boxMuller(values, start);
  if (count % BLOCK) { // the last 16 are drawn again
    for (let i = count - BLOCK; i < count; i += 1) values[i] = uniform();
    boxMuller(values, count - BLOCK);
  }
  return values;
}

function boxMuller(values, start) {
  for (let i = start; i < start + BLOCK / 2; i += 1) {
    const radius = Math.sqrt(-2 * Math.log(1 - values[i]));
    const angle = 2 * Math.PI * values[i + BLOCK / 2];
    values[i] = radius * Math.cos(angle);
    values[i + BLOCK / 2] = radius * Math.sin(angle);
  }
}

/** A function that returns normal numbers of a seed, one at a time. @param {number} seed @returns {() => number} */
export function normalNumbers(seed) {
  const next = mersenneTwister(seed);
  const uniform = () => next() / 2 ** 32;
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** A function that returns uniform numbers in [0, 1) of a seed. */
export function uniformNumbers(seed) {
  const next = mersenneTwister(seed);
  return () => next() / 2 ** 32;
}

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];
