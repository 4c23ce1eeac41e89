/** A button that starts something that takes time: disabled meanwhile, and its error is said in words. */

import { sentence } from "../../shared/api.js";
import { button } from "./controls.js";

/**
 * @param {string} text @param {() => Promise<void>} action
 * @param {{say: (text: string, kind?: string) => void, signal: AbortSignal, primary?: boolean}} options
 */
export function actionButton(text, action, { say, signal, primary = true }) {
  const element = /** @type {HTMLButtonElement} */ (button(text, async () => {
    element.disabled = true;
    try {
      await action();
    } catch (error) {
      if (!signal.aborted) say(sentence(error.message), "bad");
    } finally {
      element.disabled = false;
    }
  }, { primary }));
  return element;
}
