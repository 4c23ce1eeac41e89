/** How fast a job gets on, from its progress events as they come. */

const WINDOW = 2500; // ms
const EARNED_STEPS = 4; // that were seen live before an end is foretold
const EARNED_MS = 1000;

export class Pace {
  /** @type {{at: number, step: number, evaluations: number}[]} */
  #seen = [];

  /** What was stored comes in one burst and tells nothing: begin anew. */
  restart() {
    this.#seen = [];
  }

  /** @param {{step: number, evaluations: number}} progress @param {number} at ms */
  note(progress, at) {
    this.#seen.push({ at, step: progress.step, evaluations: progress.evaluations });
    while (this.#seen.length > 2 && at - this.#seen[0].at > WINDOW) this.#seen.shift();
  }

  /** Network evaluations a second; null before that can be said. */
  get evaluations() {
    const [first, last, ms] = this.#span();
    return ms >= 250 ? (1000 * (last.evaluations - first.evaluations)) / ms : null;
  }

  /** Seconds to go for so many more steps; null before that is earned. */
  seconds(stepsLeft) {
    const [first, last, ms] = this.#span();
    if (ms < EARNED_MS || last.step - first.step < EARNED_STEPS) return null;
    return (stepsLeft * ms) / (last.step - first.step) / 1000;
  }

  #span() {
    const first = this.#seen[0];
    const last = this.#seen.at(-1);
    return [first, last, first && last ? last.at - first.at : 0];
  }
}
