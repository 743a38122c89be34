// Out of the page: text to the clipboard, values to a file.

import { el } from "./dom.js";

/** Returns false where the browser does not allow it. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyTheOldWay(text); // the clipboard is there for https and this machine only
  }
}

function copyTheOldWay(text) {
  const before = document.activeElement;
  const box = el("textarea", { class: "unseen", "aria-hidden": "true" });
  box.value = text;
  document.body.append(box);
  box.select();
  const done = document.execCommand("copy");
  box.remove();
  before?.focus();
  return done;
}

/** Saves values as JSON Lines; one value is JSON as well. */
export function download(name, values) {
  const lines = values.map((value) => `${JSON.stringify(value)}\n`).join("");
  const address = URL.createObjectURL(new Blob([lines], { type: "application/json" }));
  const link = el("a", { download: name.replace(/[\\/:*?"<>|\p{Cc}]/gu, " ").trim() });
  link.href = address;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
