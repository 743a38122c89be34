// The passages behind an answer: numbered chips, each of which opens its passage with its place in the document.

import { attribute, el, icon, unseen } from "./dom.js";

const UNITS = { line: ["line", "lines"], page: ["page", "pages"], paragraph: ["paragraph", "paragraphs"] };
let count = 0; // panels on this page so far; their ids

/** `sources` were used, `withheld` were found and kept from the model. */
export class SourcesView {
  #chips = new Map(); // number -> {button, panel}

  constructor(sources, withheld) {
    const numbered = sources.map((each, index) => this.#chip(each, String(each.number ?? index + 1)));
    const chips = [...numbered, ...withheld.map((each) => this.#chip(each, null))];
    this.element = el(
      "div",
      { class: "sources", role: "group", "aria-label": "Sources" },
      el("p", { class: "sources-title", "aria-hidden": "true" }, "Sources"),
      el("ul", { class: "chips" }, ...chips.map(({ button }) => el("li", {}, button))),
      ...chips.map(({ panel }) => panel),
    );
  }

  /** A link to a source by its number, for the answer's text; null where there is none. */
  cite(number) {
    const chip = this.#chips.get(String(number));
    if (!chip) return null;
    const show = (event) => {
      event.preventDefault();
      toggle(chip, true);
      chip.panel.focus({ preventScroll: true });
      chip.panel.scrollIntoView({ block: "nearest" });
    };
    const name = `Source ${number}: ${chip.title}`;
    const link = { class: "cite", href: `#${chip.panel.id}`, title: name, "aria-label": name, onClick: show };
    return el("a", link, String(number));
  }

  #chip(passage, number) {
    count += 1;
    const title = text(passage.title) || text(passage.source) || "Untitled";
    const panel = passagePanel(passage, number, title, `passage-${count}`);
    const mark = el("span", { class: "mark" }, number ?? icon("shield"));
    const button = el(
      "button",
      { type: "button", class: number === null ? "chip withheld" : "chip", "aria-expanded": "false" },
      unseen(number === null ? "Withheld passage: " : "Source "),
      mark,
      el("span", { class: "chip-title", dir: "auto" }, title),
      el("span", { class: "chip-place" }, place(passage)),
      icon("open"),
    );
    attribute(button, "aria-controls", panel.id);
    const chip = { button, panel, title };
    button.addEventListener("click", () => toggle(chip, panel.hidden));
    if (number !== null) this.#chips.set(number, chip);
    return chip;
  }
}

function toggle({ button, panel }, open) {
  panel.hidden = !open;
  attribute(button, "aria-expanded", String(open));
}

function passagePanel(passage, number, title, id) {
  const label = number === null ? `Withheld passage: ${title}` : `Source ${number}: ${title}`;
  const path = el("span", { class: "path", dir: "ltr" }, text(passage.source));
  const panel = { id, hidden: true, tabindex: "-1", role: "group", "aria-label": label };
  const facts = [place(passage)];
  if (Number.isFinite(passage.score)) facts.push(`score ${passage.score.toFixed(2)}`);
  return el(
    "div",
    { class: number === null ? "passage withheld" : "passage", ...panel },
    el("p", { class: "passage-title" }, number && el("span", { class: "mark" }, number), el("bdi", {}, title)),
    el("p", { class: "passage-place" }, path, ` · ${facts.join(" · ")}`),
    number === null ? el("p", { class: "passage-warning" }, warning(passage)) : null,
    el("blockquote", { dir: "auto" }, text(passage.text)),
    meta(passage.meta),
  );
}

function warning(passage) {
  const likely = Number.isFinite(passage.injection) ? ` (judged ${Math.round(passage.injection * 100)}% likely)` : "";
  return `Kept from the model: the text seems to give it orders rather than information${likely}. It says:`;
}

/** "lines 3–5", "page 12", "record 7": where in its document a passage stands. */
export function place({ unit, start, end }) {
  const [one, many] = UNITS[unit] ?? [text(unit) || "line", `${text(unit) || "line"}s`];
  return start === end ? `${one} ${start}` : `${many} ${start}–${end}`;
}

function meta(values) {
  const entries = Object.entries(values ?? {}).map(([name, value]) => [name, text(value)]);
  if (entries.length === 0) return null;
  const rows = entries.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { dir: "auto" }, value)));
  return el("dl", { class: "meta" }, ...rows);
}

function text(value) {
  return value === null || value === undefined ? "" : String(value);
}
