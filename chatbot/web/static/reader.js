// What the page tells the reader beside the answers.

import { attribute, byId } from "./dom.js";

const SECONDS = { plain: 4, warn: 12 };
let forget;

/** A short message above the question box; screen readers say it too. */
export function say(text, tone = "plain") {
  const message = byId("message");
  message.textContent = text;
  attribute(message, "class", tone);
  clearTimeout(forget);
  forget = setTimeout(() => (message.textContent = ""), SECONDS[tone] * 1000);
}

/** For screen readers alone. */
export function announce(text) {
  byId("announcement").textContent = text;
}
