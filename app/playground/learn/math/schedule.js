/** Noise schedules: α_t and σ_t with α² + σ² = 1, for x_t = α_t·x_0 + σ_t·ε. */

const T = 1000;

/** A noise level. @typedef {{t: number, alpha: number, sigma: number}} Level */

/** The levels of "squaredcos_cap_v2" (Nichol & Dhariwal 2021, eq. 17; β capped at 0.999). @returns {Level[]} one per timestep */
function cosineLevels() {
  const bar = (i) => Math.cos((((i / T + 0.008) / 1.008) * Math.PI) / 2) ** 2;
  let product = 1;
  return Array.from({ length: T }, (_, t) => {
    product *= 1 - Math.min(1 - bar(t + 1) / bar(t), 0.999);
    return { t, alpha: Math.sqrt(product), sigma: Math.sqrt(1 - product) };
  });
}

export const COSINE = cosineLevels();
export const CLEAN = { t: -1, alpha: 1, sigma: 0 };

/** The levels of N steps with trailing spacing, noisiest first, and the clean one at the end. @returns {Level[]} */
export function trailingLevels(steps, table = COSINE) {
  const levels = Array.from({ length: steps }, (_, k) => table[Math.round(table.length - (k * table.length) / steps) - 1]);
  return [...levels, CLEAN];
}

/** A model's own level at a timestep, from the ratios σ/α in its card. @param {any} card @param {number} t @returns {Level} */
export function levelOf(card, t) {
  const { ratios = [] } = card.grid ?? {};
  if (!ratios.length) return COSINE[Math.round((t / (card.timesteps - 1)) * (T - 1))];
  const place = (t / (card.timesteps - 1)) * (ratios.length - 1);
  const below = Math.min(Math.floor(place), ratios.length - 2);
  const ratio = Math.exp(Math.log(ratios[below]) + (place - below) * Math.log(ratios[below + 1] / ratios[below]));
  return { t, ...levelOfRatio(ratio) };
}

/** α and σ of a ratio σ/α. */
export const levelOfRatio = (ratio) => ({ alpha: 1 / Math.hypot(1, ratio), sigma: ratio / Math.hypot(1, ratio) });

/** The signal-to-noise ratio α²/σ². @param {Level} level */
export const signalToNoise = ({ alpha, sigma }) => (alpha / sigma) ** 2;
