// A text to be changed in place, and the growing text box that the page uses everywhere.

import { el } from "./dom.js";

/** A form with a text box: Ctrl-Enter (or Cmd-Enter) keeps, Escape gives up. `onSave` gets the text, never empty. */
export function editor({ label, text, save, hint, onSave, onCancel }) {
  const box = el("textarea", { class: "box", rows: "2", "aria-label": label, dir: "auto" });
  box.value = text;
  grow(box);
  const submit = (event) => {
    event?.preventDefault();
    if (box.value.trim()) onSave(box.value.trim());
    else box.focus();
  };
  const form = el(
    "form",
    { class: "editor", "aria-label": label, onSubmit: submit },
    box,
    el(
      "div",
      { class: "editor-row" },
      el("p", { class: "hint" }, hint),
      el("button", { type: "button", class: "button quiet", onClick: onCancel }, "Cancel"),
      el("button", { type: "submit", class: "button strong" }, save),
    ),
  );
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation(); // Escape also stops an answer
      onCancel();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      submit(event);
    }
  });
  return form;
}

/** Makes a text box as high as its text, up to the stylesheet's limit, where the browser does not (`field-sizing`). */
export function grow(box) {
  if (CSS.supports("field-sizing", "content")) return;
  const fit = () => {
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight + box.offsetHeight - box.clientHeight}px`;
  };
  box.addEventListener("input", fit);
  requestAnimationFrame(fit);
}
