/**
 * A mixture of equal round Gaussians in the plane, and the exact denoiser of it.
 *
 * With x_t = α·x_0 + σ·ε, the density of x_t is the mixture of N(α·μ_k, v) with v = α²s² + σ², so E[x_0 | x_t] has a
 * closed form: what a perfect network would predict (docs/mathematics.md).
 */
export class Mixture {
  /** @param {[number, number][]} means μ_k @param {number} spread s, the standard deviation of each component */
  constructor(means, spread) {
    this.means = means;
    this.spread = spread;
    this.xs = Float64Array.from(means, ([x]) => x);
    this.ys = Float64Array.from(means, ([, y]) => y);
    this.weights = new Float64Array(means.length);
  }

  /**
   * What a perfect network says about a point.
   * @param {number} x @param {number} y @param {import("./schedule.js").Level} level with σ > 0
   * @returns {{logDensity: number, denoised: [number, number], epsilon: [number, number], score: [number, number]}}
   *   log p_t(x_t), x̂_0 = E[x_0 | x_t], ε̂ = (x_t − α·x̂_0)/σ and ∇ log p_t(x_t) = −ε̂/σ
   */
  at(x, y, { alpha, sigma }) {
    const variance = alpha ** 2 * this.spread ** 2 + sigma ** 2;
    const [logSum, meanX, meanY] = this.#posterior(x, y, alpha, variance);
    const shrink = (alpha * this.spread ** 2) / variance;
    const denoised = /** @type {[number, number]} */ ([meanX + shrink * (x - alpha * meanX), meanY + shrink * (y - alpha * meanY)]);
    const epsilon = /** @type {[number, number]} */ ([(x - alpha * denoised[0]) / sigma, (y - alpha * denoised[1]) / sigma]);
    const score = /** @type {[number, number]} */ ([-epsilon[0] / sigma, -epsilon[1] / sigma]);
    return { logDensity: logSum - Math.log(2 * Math.PI * variance * this.means.length), denoised, epsilon, score };
  }

  /** log p_t on a grid of n by n points from −range to range, row by row from the top. @returns {Float64Array} */
  logDensities(n, range, { alpha, sigma }) {
    const variance = alpha ** 2 * this.spread ** 2 + sigma ** 2;
    const result = new Float64Array(n * n);
    for (let i = 0; i < n * n; i += 1) {
      const x = range * ((2 * (i % n) + 1) / n - 1);
      const y = range * (1 - (2 * Math.floor(i / n) + 1) / n);
      result[i] = this.#posterior(x, y, alpha, variance)[0];
    }
    return result;
  }

  /** log Σ exp(−|x − αμ_k|²/2v), and the mean of the μ_k with these weights. */
  #posterior(x, y, alpha, variance) {
    const { xs, ys, weights } = this;
    let highest = -Infinity;
    for (let k = 0; k < xs.length; k += 1) {
      weights[k] = -((x - alpha * xs[k]) ** 2 + (y - alpha * ys[k]) ** 2) / (2 * variance);
      if (weights[k] > highest) highest = weights[k];
    }
    let [sum, sumX, sumY] = [0, 0, 0];
    for (let k = 0; k < xs.length; k += 1) {
      const weight = Math.exp(weights[k] - highest); // in proportion to the posterior of component k
      sum += weight;
      sumX += weight * xs[k];
      sumY += weight * ys[k];
    }
    return [highest + Math.log(sum), sumX / sum, sumY / sum];
  }
}
