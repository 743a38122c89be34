// The list of chats: beside the conversation, or, on a narrow screen, over it.

import { titleOf } from "./chats.js";
import { attribute, byId, el, iconButton } from "./dom.js";

const NARROW = matchMedia("(max-width: 52rem)");

/** `actions`: open(chat), remove(chat). */
export class Sidebar {
  #open = false;

  constructor(actions) {
    this.actions = actions;
    this.element = byId("side");
    this.button = byId("show-chats");
    this.scrim = byId("scrim");
    this.button.addEventListener("click", () => this.#toggle(!this.#open));
    byId("hide-chats").addEventListener("click", () => this.close());
    this.scrim.addEventListener("click", () => this.close());
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.#open) return;
      event.stopPropagation();
      this.close();
    });
    NARROW.addEventListener("change", () => this.#toggle(false));
    this.#toggle(false);
  }

  /** `chats`, newest first; `current` is the one on the page. */
  show(chats, current) {
    const now = JSON.stringify([current.id, chats.map((chat) => [chat.id, titleOf(chat)])]);
    if (now === this.shown) return; // focus stays where it is
    this.shown = now;
    const items = chats.map((chat) => {
      const title = titleOf(chat);
      const mark = chat.id === current.id ? { "aria-current": "page" } : {};
      const open = el("button", { type: "button", class: "chat", dir: "auto", ...mark }, title);
      open.addEventListener("click", () => {
        this.close();
        this.actions.open(chat);
      });
      const remove = iconButton("remove", `Delete the chat “${title}”`, () => this.actions.remove(chat));
      return el("li", {}, open, remove);
    });
    byId("chats").replaceChildren(...items);
    byId("no-chats").hidden = items.length > 0;
  }

  close() {
    if (!this.#open) return;
    this.#toggle(false);
    this.button.focus();
  }

  #toggle(open) {
    this.#open = open && NARROW.matches;
    // On a narrow screen a closed list is not there for the keyboard either.
    this.element.inert = NARROW.matches && !open;
    this.element.classList.toggle("open", this.#open);
    this.scrim.hidden = !this.#open;
    for (const other of document.querySelectorAll(".column")) other.inert = this.#open;
    attribute(this.button, "aria-expanded", String(this.#open));
    if (this.#open) byId("hide-chats").focus();
  }
}
