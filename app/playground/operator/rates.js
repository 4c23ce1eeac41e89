/** What workers do per second: differences between two of their reports, over the worker's own clock. */

/** @typedef {{evaluations: number, meanBatch: number | null}} Rates evaluations per second, and per turn; null without a turn */

export class RateTracker {
  /** @type {Map<string, any>} the last report of each worker */
  #reports = new Map();
  /** @type {Map<string, Rates>} */
  #rates = new Map();

  /** Take in the newest reports. @param {any[]} workers of `GET /workers` @returns {(name: string) => Rates | undefined} */
  update(workers) {
    for (const worker of workers) {
      const before = this.#reports.get(worker.name);
      const rates = before && ratesBetween(before, worker);
      if (rates) this.#rates.set(worker.name, rates);
      if (!before || worker.reported_at > before.reported_at) this.#reports.set(worker.name, worker);
    }
    return (name) => this.#rates.get(name);
  }
}

/** Null for the same report twice, and for a worker that has started again. @returns {Rates | null} */
function ratesBetween(before, after) {
  const seconds = after.reported_at - before.reported_at;
  const [evaluations, turns] = [after.evaluations - before.evaluations, after.turns - before.turns];
  if (seconds <= 0 || evaluations < 0 || turns < 0) return null;
  return { evaluations: evaluations / seconds, meanBatch: turns ? evaluations / turns : null };
}
