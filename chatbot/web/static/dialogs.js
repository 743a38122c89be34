// The dialogs: the API key, settings, and "are you sure?". Built on <dialog>, which keeps focus inside and closes on
// Escape.

import { savedKey, saveKey } from "./api.js";
import { byId, el } from "./dom.js";

/** Asks for the API key; `why` is the server's reason. Resolves to true where a key was saved. */
export function askKey(why = "") {
  // No password field: browsers offer to keep those. The stylesheet hides what is typed.
  const input = el("input", {
    ...{ id: "key", class: "secret", type: "text", required: true, maxlength: "1000", "aria-describedby": "key-help" },
    ...{ autocomplete: "off", autocapitalize: "off", spellcheck: "false" },
  });
  const forget = el("button", { type: "button", class: "button quiet" }, "Forget the key");
  forget.hidden = !savedKey();
  return ask(
    "API key",
    [
      why ? el("p", { class: "problem-text" }, why) : null,
      el("label", { for: "key" }, "The key that this server asks for"),
      input,
      el("p", { class: "hint", id: "key-help" }, "Kept in this tab only, and forgotten when you close it."),
    ],
    "Use this key",
    {
      extra: forget,
      start: (close) =>
        forget.addEventListener("click", () => {
          saveKey("");
          close(false);
        }),
      accept: () => {
        // What cannot stand in a header is no key: spaces and line ends come from copying.
        const key = input.value.trim();
        if (!/^[\x21-\x7e]+$/.test(key)) {
          input.setCustomValidity("A key has no spaces and no letters beyond ASCII.");
          input.reportValidity();
          input.setCustomValidity("");
          return false;
        }
        return saveKey(key);
      },
    },
  );
}

/** Resolves to true where the reader agrees. */
export function confirm(title, text, yes) {
  return ask(title, [el("p", {}, text)], yes, { danger: true });
}

/** Changes settings in place; resolves to true where they changed. */
export function askSettings(settings) {
  const passages = el("input", {
    ...{ id: "passages", type: "number", min: "1", max: "50", step: "1", inputmode: "numeric" },
    ...{ placeholder: "the server's own", "aria-describedby": "passages-help" },
  });
  passages.value = settings.passages ?? "";
  return ask(
    "Settings",
    [
      el("label", { for: "passages" }, "Passages to answer from"),
      passages,
      el("p", { class: "hint", id: "passages-help" }, "More take longer to read. Empty: the server's own number."),
    ],
    "Save",
    {
      accept: () => {
        if (!passages.reportValidity()) return false;
        settings.passages = passages.value === "" ? null : Number(passages.value);
        return true;
      },
    },
  );
}

/** One dialog at a time. `accept` may refuse by returning false; `start(close)` runs once the dialog is open. */
function ask(title, content, yes, { accept = () => true, danger = false, extra = null, start = null } = {}) {
  const dialog = byId("dialog");
  return new Promise((resolve) => {
    let result = false;
    const close = (value) => {
      result = value;
      dialog.close();
    };
    const submit = (event) => {
      event.preventDefault();
      if (accept()) close(true);
    };
    const form = el(
      "form",
      { onSubmit: submit, novalidate: true, "aria-labelledby": "dialog-title" },
      el("h2", { id: "dialog-title" }, title),
      ...content,
      el(
        "div",
        { class: "dialog-row" },
        extra,
        el("button", { type: "button", class: "button quiet", onClick: () => close(false) }, "Cancel"),
        el("button", { type: "submit", class: danger ? "button danger" : "button strong" }, yes),
      ),
    );
    if (dialog.open) dialog.close(); // and so answered with no
    dialog.replaceChildren(form);
    // Focus is given back here and not by the browser: Chromium leaves a text box that it returns to without a caret,
    // so that nothing can be typed.
    const before = document.activeElement;
    before?.blur();
    const closed = () => {
      before?.focus();
      resolve(result);
    };
    dialog.addEventListener("close", closed, { once: true });
    dialog.showModal();
    start?.(close);
    (form.querySelector("input") ?? form.querySelector("button")).focus();
  });
}
