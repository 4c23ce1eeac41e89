/** A job's speed, measured from its progress events as they arrive. */

const WINDOW = 2500; // ms
const MIN_STEPS = 4; // observed live before the time left is estimated
const MIN_MS = 1000;
const STALLED_MS = 6000; // without progress, or
const STALLED_STEPS = 5; // as long as this many steps took

export class Rate {
  /** @type {{at: number, step: number, evaluations: number}[]} */
  #samples = [];

  /** Start again: stored events arrive in one burst and say nothing about speed. */
  restart() {
    this.#samples = [];
  }

  /** @param {{step: number, evaluations: number}} progress @param {number} at ms */
  record(progress, at) {
    this.#samples.push({ at, step: progress.step, evaluations: progress.evaluations });
    while (this.#samples.length > 2 && at - this.#samples[0].at > WINDOW) this.#samples.shift();
  }

  /** Seconds without progress, if they are more than usual; else null. @param {number} now ms */
  stalledSeconds(now) {
    const [first, last, ms] = this.#span();
    if (!last) return null;
    const step = last.step > first.step ? ms / (last.step - first.step) : 0;
    const waited = now - last.at;
    return waited > Math.max(STALLED_MS, STALLED_STEPS * step) ? waited / 1000 : null;
  }

  /** Network evaluations per second; null until there are enough samples. */
  get evaluationsPerSecond() {
    const [first, last, ms] = this.#span();
    return ms >= 250 ? (1000 * (last.evaluations - first.evaluations)) / ms : null;
  }

  /** The seconds that `stepsLeft` more steps will take; null until there are enough samples. */
  secondsLeft(stepsLeft) {
    const [first, last, ms] = this.#span();
    if (ms < MIN_MS || last.step - first.step < MIN_STEPS) return null;
    return (stepsLeft * ms) / (last.step - first.step) / 1000;
  }

  #span() {
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    return [first, last, first && last ? last.at - first.at : 0];
  }
}
