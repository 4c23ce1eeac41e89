/** A job's events over a WebSocket, resumed after the last event if the connection breaks. */

import { eventsUrl, sleep } from "./api.js";

const TERMINAL = ["succeeded", "failed", "canceled"];
const BACKOFF = [300, 600, 1000, 2000, 3000]; // ms before each retry; the last value repeats
const NOT_FOUND = 404;

/**
 * Follow a job to its end. Returns early, without calling anything, if `signal` aborts.
 * @param {string} id
 * @param {{after: number, needsKey: () => boolean, signal: AbortSignal,
 *          onEvent: (event: any) => void, onOpen: () => void, onDisconnect: () => void, onMissing: () => void,
 *          exists: () => Promise<boolean>}} options
 */
export async function follow(id, { after, needsKey, signal, onEvent, onOpen, onDisconnect, onMissing, exists }) {
  let seq = after;
  for (let attempts = 0; !signal.aborted; attempts += 1) {
    const received = { seq, ended: false };
    try {
      await listen(await eventsUrl(id, seq, needsKey()), signal, received, (event) => onEvent(event), onOpen);
    } catch {
      // no ticket or no connection: wait below, then retry
    }
    if (received.ended || signal.aborted) return;
    if (received.seq > seq) attempts = 0;
    seq = received.seq;
    onDisconnect();
    await sleep(BACKOFF[Math.min(attempts, BACKOFF.length - 1)]);
    if (!(await jobExists(exists))) {
      onMissing();
      return;
    }
  }
}

/** False only if the server says that the job does not exist. */
async function jobExists(exists) {
  try {
    return await exists();
  } catch (error) {
    return error.status !== NOT_FOUND;
  }
}

function listen(url, signal, received, onEvent, onOpen) {
  return new Promise((resolve) => {
    const socket = new WebSocket(url);
    const close = () => socket.close();
    signal.addEventListener("abort", close, { once: true });
    socket.onopen = () => onOpen();
    socket.onmessage = (message) => {
      const event = JSON.parse(message.data);
      if (event.seq <= received.seq) return;
      received.seq = event.seq;
      received.ended = TERMINAL.includes(event.type);
      onEvent(event);
    };
    socket.onclose = () => {
      signal.removeEventListener("abort", close);
      resolve(undefined);
    };
  });
}
