/** A job's events over a WebSocket, taken up again where the connection broke. */

import { eventsAddress, pause } from "./api.js";

const TERMINAL = ["succeeded", "failed", "canceled"];
const PAUSES = [300, 600, 1000, 2000, 3000]; // ms before each further try; the last one goes on
const LOST = 404;

/**
 * Follow a job to its end. Ends early, and without a word, when `signal` aborts.
 * @param {string} id
 * @param {{after: number, needsKey: () => boolean, signal: AbortSignal,
 *          onEvent: (event: any) => void, onOpen: () => void, onBreak: () => void, onLost: () => void,
 *          exists: () => Promise<boolean>}} options
 */
export async function follow(id, { after, needsKey, signal, onEvent, onOpen, onBreak, onLost, exists }) {
  let seq = after;
  for (let tries = 0; !signal.aborted; tries += 1) {
    const heard = { seq, over: false };
    try {
      await listen(await eventsAddress(id, seq, needsKey()), signal, heard, (event) => onEvent(event), onOpen);
    } catch {
      // no ticket, or no server: the pause below, then again
    }
    if (heard.over || signal.aborted) return;
    if (heard.seq > seq) tries = 0;
    seq = heard.seq;
    onBreak();
    await pause(PAUSES[Math.min(tries, PAUSES.length - 1)]);
    if (!(await known(exists))) {
      onLost();
      return;
    }
  }
}

/** False only when the server says that it has no such job. */
async function known(exists) {
  try {
    return await exists();
  } catch (error) {
    return error.status !== LOST;
  }
}

function listen(address, signal, heard, onEvent, onOpen) {
  return new Promise((resolve) => {
    const socket = new WebSocket(address);
    const stop = () => socket.close();
    signal.addEventListener("abort", stop, { once: true });
    socket.onopen = () => onOpen();
    socket.onmessage = (message) => {
      const event = JSON.parse(message.data);
      if (event.seq <= heard.seq) return;
      heard.seq = event.seq;
      heard.over = TERMINAL.includes(event.type);
      onEvent(event);
    };
    socket.onclose = () => {
      signal.removeEventListener("abort", stop);
      resolve(undefined);
    };
  });
}
