// Elements, made by hand. Text goes in as text; there is no way through here to markup, to inline handlers or styles,
// or to an address outside the page.

const FORBIDDEN = /^(on|style$|src|action$|formaction$|xlink:)/i;
const SVG = "http://www.w3.org/2000/svg"; // a name, not an address: nothing is fetched from there

/**
 * `el("button", {class: "send", type: "button", onClick}, "Send")`. A property that is true becomes an empty attribute,
 * false and null none; `onX` adds a listener; `href` takes places on this page (`#...`) only.
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function" && /^on[A-Z]/.test(name)) {
      element.addEventListener(name.slice(2).toLowerCase(), value);
    } else {
      attribute(element, name, value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function attribute(element, name, value) {
  if (FORBIDDEN.test(name)) throw new TypeError(`the page sets no ${name}`);
  if (name === "href" && !String(value).startsWith("#")) throw new TypeError("the page links to itself only");
  if (value === false || value === null || value === undefined) element.removeAttribute(name);
  else element.setAttribute(name, value === true ? "" : value);
}

export function byId(id) {
  return document.getElementById(id);
}

/** Text for screen readers alone. */
export function unseen(text) {
  return el("span", { class: "unseen" }, text);
}

/** A drawing of lines on a 24 x 24 grid; decoration, so the control that holds it needs a name of its own. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const drawing = { viewBox: "0 0 24 24", class: `icon icon-${name}`, "aria-hidden": "true", focusable: "false" };
  for (const [key, value] of Object.entries(drawing)) svg.setAttribute(key, value);
  for (const line of ICONS[name]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", line);
    svg.append(path);
  }
  return svg;
}

/** A button that shows an icon; `label` is its name and its tooltip. */
export function iconButton(name, label, onClick, properties = {}) {
  return el(
    "button",
    { type: "button", class: "icon-button", title: label, "aria-label": label, onClick, ...properties },
    icon(name),
  );
}

const THUMB = [
  "M7.5 10.5v9H4v-9z",
  "M7.5 10.5 11.3 3.5c1.6 0 2.6 1.3 2.2 2.9L12.7 9.5h5.1c1.4 0 2.4 1.3 2.1 2.6",
  "M19.9 12.1l-1.3 5.6a2.3 2.3 0 0 1-2.2 1.8H7.5",
];
const ICONS = {
  send: ["M12 19.5V5", "M5.5 11.5 12 5l6.5 6.5"],
  stop: ["M7 7h10v10H7z"],
  copy: ["M9 9h10.5v10.5H9z", "M15 9V4.5H4.5V15H9"],
  done: ["M4.5 12.5 10 18 19.5 7"],
  again: ["M19.5 12a7.5 7.5 0 1 1-2.4-5.5", "M19.5 3.5v4.5H15"],
  edit: ["M4.5 19.5l1-4L16 5l3 3L8.5 18.5z", "M13.5 7.5l3 3"],
  good: THUMB,
  bad: THUMB, // turned around by the stylesheet
  menu: ["M4 7h16", "M4 12h16", "M4 17h16"],
  new: ["M12 5v14", "M5 12h14"],
  remove: ["M5 7h14", "M10 7V4.5h4V7", "M7 7l.8 12.5h8.4L17 7"],
  settings: ["M4 8h8", "M16 8h4", "M14 5.8v4.4", "M4 16h3", "M11 16h9", "M9 13.8v4.4"],
  theme: ["M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16z", "M12 4v16a8 8 0 0 0 0-16z"],
  close: ["M6 6l12 12", "M18 6 6 18"],
  open: ["M8 10l4 4 4-4"],
  down: ["M12 5v14", "M6 13l6 6 6-6"],
  note: ["M12 4 21 19.5H3z", "M12 10v4.5", "M12 16.8v.2"],
  shield: ["M12 3.5 19.5 6v6c0 4.3-3 7.2-7.5 8.5C7.5 19.2 4.5 16.3 4.5 12V6z", "M9 9l6 6", "M15 9l-6 6"],
  key: ["M8 11.5a4 4 0 1 0 0 8 4 4 0 0 0 0-8z", "M11 12.5 19.5 4", "M15.2 8.3l2.8 2.8"],
  save: ["M12 4v11", "M7 10.5l5 5 5-5", "M4.5 19.5h15"],
};
