// Thumbs up and down under an answer, and why, if the reader wants to say.

import { ApiError, sendFeedback } from "./api.js";
import { canBeRated, isBlocked } from "./chats.js";
import { attribute, el, iconButton } from "./dom.js";

const LABELS = { good: "Good answer", bad: "Bad answer" };

/**
 * `onChange` is called when a rating was recorded, to have it saved; `say` tells the reader something.
 * `buttons` go into the row of actions, `element` below it.
 */
export class FeedbackView {
  constructor(exchange, { onChange, say }) {
    this.exchange = exchange;
    this.onChange = onChange;
    this.say = say;
    this.buttons = ["good", "bad"].map((rating) => iconButton(rating, LABELS[rating], () => this.#rate(rating)));
    this.element = el("div", { class: "feedback" });
    this.#mark();
  }

  async #rate(rating) {
    if (!(await this.#send({ rating }))) return;
    this.exchange.rating = rating;
    this.onChange();
    this.#mark();
    this.say("Thank you, recorded.");
    this.#askWhy(rating);
  }

  #mark() {
    ["good", "bad"].forEach((rating, index) => {
      attribute(this.buttons[index], "aria-pressed", String(this.exchange.rating === rating));
    });
  }

  #askWhy(rating) {
    const input = el("input", { type: "text", maxlength: "2000", autocomplete: "off", placeholder: "In a few words" });
    const why = rating === "good" ? "What was good about it? (optional)" : "What was wrong with it? (optional)";
    const send = async (event) => {
      event.preventDefault();
      const reason = input.value.trim();
      if (reason && !(await this.#send({ rating, reason }))) return;
      if (reason) this.say("Thank you, recorded with your reason.");
      this.#close(rating);
    };
    const form = el(
      "form",
      { class: "why", "aria-label": why, onSubmit: send },
      el("label", {}, el("span", {}, why), input),
      el("button", { type: "submit", class: "button" }, "Send"),
      iconButton("close", "Close without a reason", () => this.#close(rating)),
    );
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.#close(rating);
    });
    this.element.replaceChildren(form);
    input.focus();
  }

  #close(rating) {
    this.element.replaceChildren();
    this.buttons[rating === "good" ? 0 : 1].focus();
  }

  async #send(feedback) {
    return record(this.exchange, feedback, this.say);
  }
}

/** Sends a rating or an edit of an answer; says so and returns false where it could not be recorded. */
export async function record(exchange, feedback, say) {
  try {
    await sendFeedback({ id: exchange.id, ...feedback });
    return true;
  } catch (error) {
    say(`Not recorded. ${error.message}`, "warn");
    return false;
  }
}

/** The id of an answer in whose place another may be asked for; null where it is not the server's any more. */
export function replaceable(exchange) {
  return canBeRated(exchange) && !exchange.edited && !isBlocked(exchange) ? exchange.id : null;
}

/** Quietly: nobody rated anything, so a server that keeps no ratings is no news. */
export async function recordReplaced(exchange, replaces) {
  if (!canBeRated(exchange) || isBlocked(exchange)) return;
  try {
    await sendFeedback({ id: exchange.id, rating: "regenerate", replaces });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  }
}
