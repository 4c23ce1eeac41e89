/** Ways for a point to move through a density: steps from one noise level to the next, or along one level. */

/**
 * One step of DDIM: x' = α'·x̂_0 + √(σ'² − s²)·ε̂ + s·z with s = η·(σ'/σ)·√(1 − α²/α'²) (Song et al. 2021, eq. 12 and 16).
 * η = 0 adds no noise, η = 1 is ancestral sampling (DDPM).
 * @param {import("./mixture.js").Mixture} mixture @param {[number, number]} point
 * @param {import("./schedule.js").Level} from @param {import("./schedule.js").Level} to
 * @param {number} [eta] @param {() => number} [normal] @returns {[number, number]}
 */
export function ddimStep(mixture, [x, y], from, to, eta = 0, normal = () => 0) {
  const { denoised, epsilon } = mixture.at(x, y, from);
  const fresh = eta * (to.sigma / from.sigma) * Math.sqrt(Math.max(0, 1 - (from.alpha / to.alpha) ** 2));
  const kept = Math.sqrt(Math.max(0, to.sigma ** 2 - fresh ** 2));
  return [0, 1].map((i) => to.alpha * denoised[i] + kept * epsilon[i] + (fresh ? fresh * normal() : 0));
}

/** All steps of DDIM through a list of levels. @param {import("./schedule.js").Level[]} levels noisiest first, clean last */
export function ddim(mixture, point, levels) {
  return levels.slice(1).reduce((at, to, k) => ddimStep(mixture, at, levels[k], to), point);
}

/** One step uphill at one level: x' = x + δ·∇ log p_t(x) + √(2δ)·z (Langevin); without z, plain ascent. */
export function langevinStep(mixture, [x, y], level, size, normal = null) {
  const { score } = mixture.at(x, y, level);
  const noise = () => (normal ? Math.sqrt(2 * size) * normal() : 0);
  return [x + size * score[0] + noise(), y + size * score[1] + noise()];
}

/** One step along the plain gradient of the density: ∇p = p·∇ log p. Where p is almost 0, so is the step. */
export function gradientStep(mixture, [x, y], level, size) {
  const { score, logDensity } = mixture.at(x, y, level);
  const density = Math.exp(logDensity);
  return [x + size * density * score[0], y + size * density * score[1]];
}
