// One question and its answer on the page. Elements stay where they are while the answer grows, so that focus,
// selection and screen readers keep their place.

import { underline, unsupported } from "./attribution.js";
import { canBeRated, isBlocked, isUnderWay } from "./chats.js";
import { editor } from "./editor.js";
import { attribute, el, icon, iconButton } from "./dom.js";
import { FeedbackView } from "./feedback.js";
import { render } from "./markdown.js";
import { noteLists, notesOn, problemOf } from "./notes.js";
import { SourcesView } from "./sources.js";

export const AGAIN = 0.8; // the temperature of another answer: without chance it would be the same one

/**
 * `actions`: askAgain(exchange, question) with another question, regenerate(exchange), editAnswer(exchange, text),
 * save(), copy(text), say(text, tone), focusComposer().
 */
export class ExchangeView {
  constructor(exchange, number, actions) {
    this.exchange = exchange;
    this.actions = actions;
    this.last = false;
    this.said = el("p", { class: "said", dir: "auto" }, exchange.question);
    this.editQuestion = iconButton("edit", "Edit the question", () => this.#editQuestion());
    const asked = el("h2", { class: "unseen" }, `Question ${number}`);
    this.question = el("div", { class: "question" }, asked, this.said, this.editQuestion);
    this.text = el("div", { class: "text" });
    this.patience = el("span", {});
    const dash = el("span", { class: "dash", "aria-hidden": "true" }, "—");
    this.waiting = el("p", { class: "waiting", hidden: true }, dash, this.patience);
    this.after = el("div", { class: "after" });
    const answered = el("h3", { class: "unseen" }, "Answer");
    this.answer = el("div", { class: "answer" }, answered, this.text, this.waiting, this.after);
    this.element = el("article", { class: "exchange", "aria-label": `Exchange ${number}` }, this.question, this.answer);
    this.show();
  }

  /** Everything anew: at the start, and whenever the exchange's state changed. */
  show() {
    this.forLast = [];
    this.said.textContent = this.exchange.question;
    const underWay = isUnderWay(this.exchange);
    attribute(this.answer, "aria-busy", String(underWay));
    this.element.classList.toggle("blocked", isBlocked(this.exchange));
    this.#keepTime();
    if (underWay) {
      this.after.replaceChildren();
      this.showText();
      return;
    }
    const { sources, withheld, answer } = this.exchange;
    const found = sources.length + withheld.length > 0 ? new SourcesView(sources, withheld) : null;
    render(this.text, answer, (number) => found?.cite(number) ?? null);
    underline(this.text, unsupported(this.exchange));
    const problem = problemOf(this.exchange);
    const notes = notesOn(this.exchange);
    const parts = [
      problem && this.#problem(problem),
      ...noteLists(notes),
      found?.element,
      ...(answer ? this.#actionRow() : []),
      !answer && !problem ? this.#retry("Ask again") : null,
    ];
    this.after.replaceChildren(...parts.filter(Boolean));
  }

  /** Only the last exchange can be answered again; an earlier question is asked again by editing it. */
  setLast(last) {
    this.last = last;
    for (const button of this.forLast) button.hidden = !last;
  }

  #onlyLast(button) {
    this.forLast.push(button);
    button.hidden = !this.last;
    return button;
  }

  /** The answer so far, while it is being written. */
  showText() {
    render(this.text, this.exchange.answer);
    this.waiting.hidden = this.exchange.state !== "waiting";
  }

  /** Says how long the reader has been waiting for a first word, from the third second on. */
  #keepTime() {
    clearInterval(this.timer);
    this.waiting.hidden = this.exchange.state !== "waiting";
    if (this.waiting.hidden) return;
    const start = Date.now();
    const tell = () => {
      const passed = Math.round((Date.now() - start) / 1000);
      this.patience.textContent = passed < 3 ? "Reading" : `Reading, ${passed} s`;
      if (this.exchange.state !== "waiting") clearInterval(this.timer);
    };
    tell();
    this.timer = setInterval(tell, 1000);
  }

  #actionRow() {
    const { exchange, actions } = this;
    const tools = { onChange: actions.save, say: actions.say };
    // What the reader wrote is not the server's answer any more: a thumb would be recorded for that one.
    const feedback = canBeRated(exchange) && !exchange.edited ? new FeedbackView(exchange, tools) : null;
    const copy = iconButton("copy", "Copy the answer", async () => {
      if (!(await actions.copy(exchange.answer))) return;
      copy.replaceChildren(icon("done"));
      setTimeout(() => copy.replaceChildren(icon("copy")), 1500);
    });
    const again = this.#onlyLast(iconButton("again", "Answer again", () => actions.regenerate(exchange)));
    const edit = isBlocked(exchange) ? null : iconButton("edit", "Edit the answer", () => this.#editAnswer());
    const row = el("div", { class: "actions", role: "group", "aria-label": "About this answer" });
    row.append(...[copy, again, edit, ...(feedback?.buttons ?? [])].filter((each) => each !== null));
    return feedback ? [row, feedback.element] : [row];
  }

  #problem({ title, text, retryAfter }) {
    const retry = this.#retry("Try again", retryAfter);
    return el(
      "div",
      { class: "problem" },
      el("p", { class: "problem-title" }, icon("note"), title),
      el("p", { class: "problem-text", dir: "auto" }, text),
      retry,
    );
  }

  #retry(label, retryAfter = null) {
    const regenerate = () => this.actions.regenerate(this.exchange);
    const button = el("button", { type: "button", class: "button", onClick: regenerate });
    let wait = retryAfter ?? 0;
    const tell = () => {
      button.replaceChildren(wait > 0 ? `${label} (the server asks to wait ${wait} s)` : label);
      wait -= 1;
      if (wait >= 0 && button.isConnected) setTimeout(tell, 1000);
    };
    queueMicrotask(tell); // once it stands on the page
    return this.#onlyLast(button);
  }

  #editQuestion() {
    const question = editor({
      label: "Edit the question",
      text: this.exchange.question,
      save: "Ask again",
      hint: "What came after it is removed.",
      onSave: (text) => {
        close();
        this.actions.askAgain(this.exchange, text);
      },
      onCancel: () => close(true),
    });
    const close = (back = false) => {
      question.replaceWith(this.said);
      this.editQuestion.hidden = false;
      if (back) this.editQuestion.focus();
    };
    this.said.replaceWith(question);
    this.editQuestion.hidden = true;
    question.querySelector("textarea").focus();
  }

  #editAnswer() {
    const close = () => {
      this.show();
      this.after.querySelector(".icon-edit")?.closest("button").focus();
    };
    const answer = editor({
      label: "Edit the answer",
      text: this.exchange.answer,
      save: "Keep",
      hint: "Your wording is sent to the server as feedback.",
      onSave: async (text) => {
        await this.actions.editAnswer(this.exchange, text);
        close();
      },
      onCancel: close,
    });
    this.text.replaceChildren(answer);
    this.after.replaceChildren();
    answer.querySelector("textarea").focus();
  }
}

/** What a screen reader says once an answer has ended: the answer, cut where it is long, and what stands under it. */
export function spoken(exchange) {
  const problem = problemOf(exchange);
  const { answer, sources } = exchange;
  const words = answer.length > 600 ? `${answer.slice(0, 600)}… The rest is on the page.` : answer;
  const counted = sources.length === 1 ? "One source." : `${sources.length} sources.`;
  const notes = notesOn(exchange).map((note) => note.text);
  const failed = problem && `${problem.title}. ${problem.text}`;
  return [failed, words, sources.length ? counted : "", ...notes].filter(Boolean).join(" ");
}

