// The button for dark and light. A choice that is the system's own is not kept, so that the page follows the system.

import { attribute } from "./dom.js";
import { saveTheme } from "./storage.js";

const SYSTEM = matchMedia("(prefers-color-scheme: dark)");

export function setUpTheme(button) {
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ?? (SYSTEM.matches ? "dark" : "light")) === "dark";
  const show = () => attribute(button, "aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    const dark = !isDark();
    if (dark === SYSTEM.matches) delete root.dataset.theme;
    else root.dataset.theme = dark ? "dark" : "light";
    saveTheme(root.dataset.theme ?? null);
    show();
  });
  SYSTEM.addEventListener("change", show);
  show();
}
