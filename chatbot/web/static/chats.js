// A chat is a list of exchanges: a question, and the answer with what came beside it. Plain data and functions on it;
// storage.js keeps it, exchange.js shows it.

const TITLE_LENGTH = 60;
const STATES = ["waiting", "writing", "done", "stopped", "broken", "failed"];
// What a passage is made of, in Parley's saved conversations; the server's sources say more.
const PASSAGE = ["id", "text", "title", "source", "start", "end", "unit", "meta", "injection"];

export function newChat() {
  const words = crypto.getRandomValues(new Uint32Array(2));
  const created = new Date().toISOString();
  return { id: [...words].map((word) => word.toString(36)).join(""), created, updated: created, exchanges: [] };
}

/** state: "waiting" for a first word, "writing", "done", "stopped" by the reader, "broken" off, "failed" altogether. */
export function newExchange(question) {
  return { question, ...unanswered() };
}

/** What an exchange holds before it is answered, and again when another answer is asked for. */
export function unanswered() {
  return {
    ...{ answer: "", state: "waiting", problem: null, id: "", model: "", finish: null, usage: null },
    ...{ sources: [], withheld: [], notices: [], verdicts: {}, attribution: [], rating: null, edited: false },
  };
}

export function titleOf(chat) {
  const first = chat.exchanges[0]?.question.trim().replace(/\s+/g, " ") ?? "";
  return first.length > TITLE_LENGTH ? `${first.slice(0, TITLE_LENGTH - 1).trimEnd()}…` : first || "New chat";
}

export function isBlocked(exchange) {
  return exchange.finish === "content_filter";
}

export function isUnderWay(exchange) {
  return exchange.state === "waiting" || exchange.state === "writing";
}

/** The server remembers whole answers only. */
export function canBeRated(exchange) {
  return Boolean(exchange.id) && exchange.state === "done";
}

/** What the server is asked: the answered exchanges before this one, and its question. What was blocked stays out,
 * since it would have every later question blocked as well. */
export function messagesFor(chat, exchange) {
  const earlier = chat.exchanges.slice(0, chat.exchanges.indexOf(exchange));
  const said = earlier
    .filter((each) => each.answer.trim() && !isBlocked(each))
    .flatMap((each) => [message("user", each.question), message("assistant", each.answer)]);
  return [...said, message("user", exchange.question)];
}

function message(role, content) {
  return { role, content };
}

/** A chat as Parley keeps conversations, which the shell can load: {"messages": [...]}, passages with the question. */
export function toRecord(chat) {
  const messages = chat.exchanges.flatMap((each) => {
    const passages = each.sources.map((source) => Object.fromEntries(PASSAGE.map((name) => [name, source[name]])));
    const asked = { ...message("user", each.question), ...(passages.length ? { passages } : {}) };
    if (!each.answer) return [asked];
    const verdicts = Object.keys(each.verdicts).length ? { verdicts: each.verdicts } : {};
    return [asked, { ...message("assistant", each.answer), ...verdicts }];
  });
  return { messages, title: titleOf(chat), created: chat.created, updated: chat.updated };
}

/** A chat from JSON, of which nothing is taken for granted; null where it is none. */
export function fromJson(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    return null;
  }
  if (typeof found?.id !== "string" || !Array.isArray(found.exchanges)) return null;
  const exchanges = found.exchanges.filter((each) => typeof each?.question === "string").map(sound);
  const [created, updated] = [found.created, found.updated].map((time) => String(time ?? ""));
  return { id: found.id, created, updated, exchanges };
}

function sound(saved) {
  const exchange = newExchange(saved.question);
  for (const [name, standard] of Object.entries(exchange)) {
    const value = saved[name];
    const alike = Array.isArray(value) === Array.isArray(standard) && typeof value === typeof standard;
    if (value !== undefined && value !== null && (alike || standard === null)) exchange[name] = value;
  }
  exchange.sources = exchange.sources.filter(isObject);
  exchange.withheld = exchange.withheld.filter(isObject);
  exchange.attribution = exchange.attribution.filter(isObject);
  if (!STATES.includes(exchange.state)) exchange.state = "done";
  // Whoever was asking is gone: the page was closed or loaded again.
  if (isUnderWay(exchange)) exchange.state = exchange.answer ? "broken" : "failed";
  return exchange;
}

function isObject(value) {
  return typeof value === "object" && value !== null;
}
