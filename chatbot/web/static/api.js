// The server's API as functions. Every failure is an ApiError whose `kind` says what the page can do about it.

import { EventReader } from "./events.js";

const LISTS = ["sources", "withheld", "notices", "attribution"]; // beside an answer
const API_KEY = "parley.key"; // sessionStorage: forgotten when the tab is closed

/**
 * kind: "away" (no connection), "key" (wants an API key), "busy" (try later, see `retryAfter`, in seconds),
 * "refused" (the request itself), "failed" (the server), "broken" (the answer broke off).
 */
export class ApiError extends Error {
  constructor(kind, message, retryAfter = null) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

export function savedKey() {
  try {
    return sessionStorage.getItem(API_KEY) ?? "";
  } catch {
    return ""; // storage is switched off
  }
}

export function saveKey(key) {
  try {
    if (key) sessionStorage.setItem(API_KEY, key);
    else sessionStorage.removeItem(API_KEY);
    return true;
  } catch {
    return false;
  }
}

/** {model: the name of the one that answers, hasDocuments: whether there is an index to answer from}. */
export async function aboutServer() {
  const { data, indexes } = await json(await call("v1/models"));
  return { model: String(data?.[0]?.id ?? ""), hasDocuments: !Array.isArray(indexes) || indexes.length > 0 };
}

export async function sendFeedback(feedback) {
  await call("v1/feedback", { method: "POST", body: feedback });
}

/**
 * Asks, and calls `onText` with each piece of the answer. Returns what came beside the text:
 * {id, model, finish, usage, sources, withheld, notices, verdicts, attribution}. `onStart` is told the answer's id and
 * model as soon as they are known. Aborting `signal` rejects with the browser's AbortError.
 */
export async function ask(request, { signal, onStart, onText }) {
  const response = await call("v1/chat/completions", { method: "POST", body: { ...request, stream: true }, signal });
  if (!(response.headers.get("Content-Type") ?? "").startsWith("text/event-stream")) {
    throw new ApiError("failed", "The server answered, but not with a stream of text. Is this Parley's own server?");
  }
  const about = { id: "", model: "", finish: null, usage: null, verdicts: {} };
  for (const name of LISTS) about[name] = [];
  let done = false;
  for await (const data of events(response, signal)) {
    if (data === "[DONE]") {
      done = true;
      break;
    }
    const chunk = parsed(data);
    if (chunk.error) throw new ApiError("failed", sentence(chunk.error.message));
    if (!about.id && chunk.id) {
      about.id = String(chunk.id);
      about.model = String(chunk.model ?? "");
      onStart(about.id, about.model);
    }
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) onText(String(choice.delta.content));
    if (choice?.finish_reason) about.finish = String(choice.finish_reason);
    for (const name of LISTS) if (Array.isArray(chunk[name])) about[name] = chunk[name];
    if (chunk.usage) about.usage = chunk.usage;
    if (chunk.verdicts) about.verdicts = chunk.verdicts;
  }
  if (!done && !about.finish) throw new ApiError("broken", "The connection broke off before the answer was complete.");
  return about;
}

async function* events(response, signal) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const inner = new EventReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield* inner.read(decoder.decode(value, { stream: true }));
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw new ApiError("broken", "The connection broke off before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {}); // already closed, or closing because of the error above
  }
}

async function call(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  const key = savedKey();
  let response;
  try {
    if (key) headers.Authorization = `Bearer ${key}`;
    const options = { method, headers, signal, credentials: "omit", cache: "no-store", redirect: "error" };
    response = await fetch(path, { ...options, body: body && JSON.stringify(body) });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("away", "The server cannot be reached. Is it running, and are you connected?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let said = "";
  try {
    said = (await response.json()).error?.message ?? "";
  } catch {
    said = ""; // a proxy's own page, for one; the status says enough
  }
  const { status } = response;
  if (status === 401 || status === 403) return new ApiError("key", sentence(said || "The server wants an API key"));
  const wait = seconds(response.headers.get("Retry-After"));
  if (status === 429 || (status === 503 && wait !== null)) {
    return new ApiError("busy", sentence(said || "The server is busy"), wait);
  }
  return new ApiError(status >= 500 ? "failed" : "refused", sentence(said || `The server answered ${status}`));
}

/** Retry-After as whole seconds: a number, or a date (RFC 9110, 10.2.3); null where it says nothing. */
function seconds(header) {
  if (!header) return null;
  const wait = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(wait) ? Math.max(1, Math.ceil(wait)) : null;
}

function parsed(data) {
  try {
    return JSON.parse(data) ?? {};
  } catch {
    throw new ApiError("broken", "The answer arrived damaged.");
  }
}

async function json(response) {
  try {
    return (await response.json()) ?? {};
  } catch {
    throw new ApiError("failed", "The server answered, but not in JSON. Is this Parley's own server?");
  }
}

/** The server's words as a sentence: capital letter, full stop. */
function sentence(text) {
  const said = String(text ?? "").trim() || "The server reported an error";
  return said[0].toUpperCase() + said.slice(1) + (/[.!?]$/.test(said) ? "" : ".");
}
