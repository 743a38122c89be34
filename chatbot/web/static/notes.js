// What the reader should know about an answer and that is not part of it, in plain words.

import { unsupported } from "./attribution.js";
import { isBlocked } from "./chats.js";
import { el, icon } from "./dom.js";

const MODERATION = /^moderation: (.{1,300}): (warn|block) \((.{1,300})\)$/;
const FAILED = "The connection broke off before the answer was complete.";

/** [{tone: "plain" | "warn" | "stop", text}], the gravest first. */
export function notesOn(exchange) {
  const notes = [];
  if (isBlocked(exchange)) {
    const left = "This exchange is left out of what the model is told from here on.";
    notes.push({ tone: "stop", text: `Blocked by this server's moderation policy. ${left}` });
  }
  const notices = exchange.notices.map(String);
  const moderation = notices.filter((notice) => MODERATION.test(notice));
  notes.push(...moderation.map((notice) => ({ tone: "warn", text: plainly(notice) })));
  if (exchange.withheld.length && !moderation.some((notice) => /^moderation: passage .*: block /.test(notice))) {
    notes.push({ tone: "warn", text: withheld(exchange.withheld.length) });
  }
  const others = notices.filter((notice) => !moderation.includes(notice));
  notes.push(...others.map((notice) => ({ tone: "plain", text: plainly(notice) })));
  if (unsupported(exchange).length) {
    const counted = `${unsupported(exchange).length} of ${exchange.attribution.length}`;
    notes.push({ tone: "plain", text: `Underlined: ${counted} sentences, which the sources do not seem to support.` });
  }
  if (exchange.state === "stopped") {
    const where = exchange.answer ? "You stopped the answer here." : "You stopped before it began.";
    notes.push({ tone: "plain", text: where });
  }
  if (exchange.finish === "length") notes.push({ tone: "plain", text: "The answer reached its length limit." });
  if (exchange.edited) notes.push({ tone: "plain", text: "Edited by you; the conversation goes on with your words." });
  else if (madeWithoutSources(exchange)) {
    notes.push({ tone: "plain", text: "No documents behind this answer: it is the model's own." });
  }
  return notes;
}

/** Whether the model wrote this without a passage. Fixed answers ("the documents do not say") come without tokens. */
function madeWithoutSources({ state, usage, sources, finish }) {
  return state === "done" && sources.length === 0 && finish !== "content_filter" && usage?.completion_tokens > 0;
}

function withheld(count) {
  const passages = count === 1 ? "One passage was" : `${count} passages were`;
  return `${passages} found and kept from the model, marked with a shield below.`;
}

/** The server's "moderation: your message: warn (insult 0.82)" as a sentence; other notices are sentences already. */
export function plainly(notice) {
  const found = MODERATION.exec(notice);
  if (!found) return notice[0].toUpperCase() + notice.slice(1) + (/[.!?]$/.test(notice) ? "" : ".");
  const [, what, action, scores] = found;
  const labels = scores.replace(/ (\d\.\d\d)(?=,|$)/g, (_, score) => ` ${Math.round(Number(score) * 100)}%`);
  const unseen = action === "block" && what.startsWith("passage ") ? " The model was not shown it." : "";
  return `Moderation ${action === "block" ? "blocked" : "flagged"} ${what}: ${labels}.${unseen}`;
}

/** A panel for each tone, in the order of `notes`. */
export function noteLists(notes) {
  const signs = { stop: "shield", warn: "note" };
  return ["stop", "warn", "plain"]
    .map((tone) => [tone, notes.filter((note) => note.tone === tone)])
    .filter(([, alike]) => alike.length > 0)
    .map(([tone, alike]) => {
      const items = alike.map(({ text }) => el("li", { dir: "auto" }, text));
      const list = el("ul", { "aria-label": "Notes on the answer" }, ...items);
      return el("div", { class: `notes notes-${tone}` }, signs[tone] ? icon(signs[tone]) : null, list);
    });
}

/** What went wrong, as {title, text}; null where nothing did. */
export function problemOf(exchange) {
  if (exchange.state !== "failed" && exchange.state !== "broken") return null;
  const { kind = "broken", message = FAILED } = exchange.problem ?? {};
  const titles = {
    away: "No connection to the server",
    busy: "The server is busy",
    key: "An API key is needed",
    refused: "The server refused the question",
    failed: "The server could not answer",
    broken: "The answer broke off",
  };
  return { title: titles[kind] ?? titles.failed, text: message, retryAfter: exchange.problem?.retryAfter ?? null };
}
