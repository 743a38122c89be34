// The question box: Enter sends, Shift-Enter makes a new line, and the button that sends also stops.

import { attribute, byId, icon } from "./dom.js";
import { grow } from "./editor.js";

export class Composer {
  #busy = false;

  /** `onSend(question)`, `onStop()`. */
  constructor({ onSend, onStop }) {
    this.box = byId("question");
    this.button = byId("send");
    this.onSend = onSend;
    this.onStop = onStop;
    grow(this.box);
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#busy) this.onStop();
      else this.#send();
    });
    this.box.addEventListener("keydown", (event) => {
      // An input method's own Enter chooses a word and sends nothing.
      const composing = event.isComposing || event.keyCode === 229; // the second is Safari's
      if (event.key !== "Enter" || event.shiftKey || composing) return;
      event.preventDefault();
      if (!this.#busy) this.#send();
    });
    this.setBusy(false);
  }

  setBusy(busy) {
    this.#busy = busy;
    const label = busy ? "Stop the answer" : "Send the question";
    this.button.replaceChildren(icon(busy ? "stop" : "send"));
    attribute(this.button, "aria-label", label);
    attribute(this.button, "title", busy ? "Stop (Escape)" : "Send (Enter)");
    this.button.classList.toggle("stop", busy);
  }

  /** Not on a telephone, where focus would cover half the page with a keyboard. */
  focus() {
    if (!matchMedia("(pointer: coarse)").matches) this.box.focus();
  }

  #send() {
    const question = this.box.value.trim();
    if (!question) {
      this.box.focus();
      return;
    }
    this.box.value = "";
    this.box.dispatchEvent(new Event("input"));
    this.onSend(question);
  }
}
