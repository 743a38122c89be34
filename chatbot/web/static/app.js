// The page at work: one chat on it, at most one answer under way. What things look like is in the other files.

import { ApiError, aboutServer, ask } from "./api.js";
import { canBeRated, isUnderWay, messagesFor, newChat, newExchange, titleOf, toRecord, unanswered } from "./chats.js";
import { Composer } from "./composer.js";
import { askKey, askSettings, confirm } from "./dialogs.js";
import { byId, el, icon } from "./dom.js";
import { AGAIN, ExchangeView, spoken } from "./exchange.js";
import { record, recordReplaced, replaceable } from "./feedback.js";
import { copyText, download } from "./files.js";
import { announce, say } from "./reader.js";
import { Follower } from "./scroll.js";
import { Sidebar } from "./sidebar.js";
import * as storage from "./storage.js";
import { setUpTheme } from "./themes.js";

class App {
  chat = newChat();
  chats = [];
  views = new Map(); // exchange -> its view
  underWay = null; // {stop: AbortController}
  runs = new WeakMap(); // exchange -> the latest run for it
  deleted = new WeakSet(); // chats that an answer still on its way must not save again
  server = { model: "", hasDocuments: true }; // until it says otherwise
  unreadable = 0; // saved chats that are damaged
  settings = storage.loadSettings();

  constructor() {
    this.sidebar = new Sidebar({ open: (chat) => this.open(chat), remove: (chat) => this.remove(chat) });
    this.composer = new Composer({ onSend: (question) => this.send(question), onStop: () => this.stop() });
    this.follower = new Follower(byId("to-end"));
    this.actions = {
      askAgain: (exchange, question) => this.askAgain(exchange, question),
      regenerate: (exchange) => this.regenerate(exchange),
      editAnswer: (exchange, text) => this.editAnswer(exchange, text),
      save: () => this.save(),
      copy: (text) => this.copy(text),
      say,
    };
    this.#setUpButtons();
    storage.onOtherTabs(() => this.#showChats());
    this.#showChats();
    this.#showChat();
    this.composer.focus();
    this.connect();
  }

  #setUpButtons() {
    const icons = { "show-chats": "menu", "hide-chats": "close", export: "save", theme: "theme", "key-button": "key" };
    for (const [id, name] of Object.entries({ ...icons, settings: "settings" })) byId(id).append(icon(name));
    byId("new-chat").append(icon("new"), "New chat");
    byId("to-end").append(icon("down"), "To the end");
    const clicks = {
      "new-chat": () => this.open(newChat()),
      export: () => download(`${titleOf(this.chat)}.json`, [toRecord(this.chat)]),
      "export-all": () => download("chats.jsonl", this.chats.map(toRecord)),
      "remove-all": () => this.removeAll(),
      "key-button": () => this.enterKey(),
      settings: () => this.changeSettings(),
    };
    for (const [id, act] of Object.entries(clicks)) byId(id).addEventListener("click", act);
    setUpTheme(byId("theme"));
    byId("documents").checked = this.settings.documents;
    byId("documents").addEventListener("change", (event) => {
      this.settings.documents = event.target.checked;
      storage.saveSettings(this.settings);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.underWay && !byId("dialog").open) this.stop();
    });
  }

  // Asking ------------------------------------------------------------------------------------------------------------

  send(question) {
    const exchange = newExchange(question);
    this.chat.exchanges.push(exchange);
    this.#addView(exchange);
    this.#showLast();
    this.run(exchange);
  }

  /** Another question in the place of this one; what came after it is cut. */
  askAgain(exchange, question) {
    this.stop();
    const place = this.chat.exchanges.indexOf(exchange);
    for (const later of this.chat.exchanges.splice(place + 1)) this.#removeView(later);
    Object.assign(exchange, { question }, unanswered());
    this.views.get(exchange).show();
    this.#showLast();
    this.composer.focus();
    this.run(exchange);
  }

  regenerate(exchange) {
    this.stop();
    const temperature = exchange.answer && exchange.state === "done" ? AGAIN : null;
    const replaces = replaceable(exchange);
    Object.assign(exchange, unanswered());
    this.views.get(exchange).show();
    this.composer.focus();
    this.run(exchange, temperature, replaces);
  }

  async run(exchange, temperature = null, replaces = null) {
    const { chat } = this;
    const work = { stop: new AbortController() };
    this.underWay = work;
    this.runs.set(exchange, work);
    this.composer.setBusy(true);
    announce("Asked; the answer is being made.");
    this.save(chat);
    this.follower.toEnd();
    const found = await ask(this.#request(exchange, temperature), {
      signal: work.stop.signal,
      onStart: (id, model) => Object.assign(exchange, { id, model }),
      onText: (text) => this.#grow(exchange, text),
    }).catch((error) => error);
    if (this.runs.get(exchange) !== work) return; // stopped, since the question is being asked anew
    if (found instanceof Error) this.#fail(exchange, found, work.stop.signal.aborted);
    else Object.assign(exchange, found, { state: "done" });
    if (replaces) recordReplaced(exchange, replaces);
    if (!this.deleted.has(chat)) this.save(chat);
    if (this.underWay === work) {
      this.underWay = null;
      this.composer.setBusy(false);
    }
    if (this.chat === chat) this.#end(exchange);
    if (exchange.problem?.kind === "key" && this.chat === chat) await this.#retryWithKey(exchange);
  }

  #request(exchange, temperature) {
    const [{ model, hasDocuments }, { documents, passages }] = [this.server, this.settings];
    const request = { messages: messagesFor(this.chat, exchange), stream_options: { include_usage: true } };
    if (model) request.model = model;
    if (temperature !== null) request.temperature = temperature;
    const own = documents ? passages && { k: passages } : { retrieval: false };
    if (hasDocuments && own) request.parley = own;
    return request;
  }

  #grow(exchange, text) {
    exchange.answer += text;
    exchange.state = "writing";
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      if (!isUnderWay(exchange)) return;
      this.views.get(exchange)?.showText();
      this.follower.grown();
    });
  }

  #fail(exchange, error, stopped) {
    if (stopped) {
      exchange.state = "stopped";
      return;
    }
    exchange.state = exchange.answer ? "broken" : "failed";
    if (!(error instanceof ApiError)) reportError(error); // a mistake of the page's own
    exchange.problem = { kind: error.kind ?? "failed", message: error.message, retryAfter: error.retryAfter ?? null };
  }

  #end(exchange) {
    this.views.get(exchange)?.show();
    this.follower.grown();
    announce(spoken(exchange));
  }

  stop() {
    this.underWay?.stop.abort();
    this.underWay = null;
    this.composer.setBusy(false);
  }

  async #retryWithKey(exchange) {
    if (await askKey(exchange.problem.message)) {
      this.connect();
      this.regenerate(exchange);
    }
  }

  // Answers -----------------------------------------------------------------------------------------------------------

  async editAnswer(exchange, text) {
    if (text === exchange.answer) return;
    const recorded = canBeRated(exchange) && (await record(exchange, { rating: "edit", edit: text }, say));
    exchange.answer = text;
    exchange.edited = true;
    this.save();
    if (recorded) say("Kept, and recorded as feedback.");
  }

  async copy(text) {
    const done = await copyText(text);
    say(done ? "Copied." : "The browser did not allow copying.", done ? "plain" : "warn");
    return done;
  }

  // Chats -------------------------------------------------------------------------------------------------------------

  open(chat) {
    this.stop();
    this.chat = chat;
    this.#showChats();
    this.#showChat();
    this.composer.focus();
  }

  save(chat = this.chat) {
    chat.updated = new Date().toISOString();
    if (!storage.saveChat(chat)) {
      say("This browser has no room left for chats: the newest is not saved. Export or delete some.", "warn");
    }
    this.#showChats();
  }

  async remove(chat) {
    if (!(await confirm("Delete this chat?", `“${titleOf(chat)}” is deleted from this browser.`, "Delete"))) return;
    this.deleted.add(chat);
    storage.removeChat(chat);
    if (chat.id === this.chat.id) this.open(newChat());
    this.#showChats();
    byId("new-chat").focus();
  }

  async removeAll() {
    if (!(await confirm("Delete all chats?", "All chats are deleted from this browser.", "Delete all"))) return;
    this.deleted.add(this.chat);
    storage.removeAllChats();
    this.open(newChat());
  }

  #showChats() {
    const { chats, unreadable } = storage.loadChats();
    if (unreadable && !this.unreadable) say("Some saved chats are damaged; “Delete all” removes them too.", "warn");
    this.unreadable = unreadable;
    // The chat on the page is newer than what is stored of it.
    this.chats = chats.map((chat) => (chat.id === this.chat.id ? this.chat : chat));
    this.sidebar.show(this.chats, this.chat);
    byId("title").textContent = this.chat.exchanges.length ? titleOf(this.chat) : "";
    byId("export").disabled = this.chat.exchanges.length === 0;
    byId("export-all").disabled = byId("remove-all").disabled = this.chats.length + unreadable === 0;
  }

  #showChat() {
    this.views.clear();
    byId("exchanges").replaceChildren();
    for (const exchange of this.chat.exchanges) this.#addView(exchange);
    this.#showLast();
    this.follower.toStart();
  }

  #addView(exchange) {
    const view = new ExchangeView(exchange, this.views.size + 1, this.actions);
    this.views.set(exchange, view);
    byId("exchanges").append(view.element);
  }

  #removeView(exchange) {
    this.views.get(exchange)?.element.remove();
    this.views.delete(exchange);
  }

  #showLast() {
    const last = this.chat.exchanges.at(-1);
    for (const [exchange, view] of this.views) view.setLast(exchange === last);
    byId("welcome").hidden = this.chat.exchanges.length > 0;
  }

  // Server and reader -------------------------------------------------------------------------------------------------

  /** Asks the server for its model and whether it has documents, and says so where there is no answer. */
  async connect() {
    const banner = byId("banner");
    banner.hidden = true;
    try {
      this.server = await aboutServer();
      byId("model-name").textContent = this.server.model;
      document.body.classList.toggle("no-documents", !this.server.hasDocuments);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.kind === "key") return void (await this.enterKey(error.message));
      const again = el("button", { type: "button", class: "button", onClick: () => this.connect() }, "Try again");
      banner.replaceChildren(el("p", { class: "problem-title" }, icon("note"), error.message), again);
      banner.hidden = false;
      announce(error.message);
    }
  }

  async enterKey(why = "") {
    if (await askKey(why)) this.connect();
  }

  async changeSettings() {
    if (await askSettings(this.settings)) storage.saveSettings(this.settings);
  }
}

new App();
