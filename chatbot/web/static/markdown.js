// A small, safe part of Markdown: paragraphs, headings, lists, bold, italic, code. `parse` gives plain data; `render`
// makes DOM nodes of it, text by textContent only. There are no links to follow, no images and no HTML: a link shows
// its address as text, and whatever is not in this list stays the text that it was.

import { el } from "./dom.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]{0,40})[^`]*$/;
const HEADING = /^ {0,3}#{1,6}\s+(\S.*)$/;
const ITEM = /^(\s{0,40})([-*+]|\d{1,9}[.)])(\s{1,8})(?=\S)/;
const MAX_DEPTH = 6; // of lists in lists; deeper ones stay text

/** Text to blocks: {type: "paragraph" | "heading", inline}, {type: "code", language, text},
 * {type: "list", ordered, start, items: blocks each}. */
export function parse(text) {
  return blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
}

function blocks(lines, depth) {
  const found = [];
  let paragraph = [];
  const endParagraph = () => {
    if (paragraph.length) found.push({ type: "paragraph", inline: inline(paragraph.join("\n")) });
    paragraph = [];
  };
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const block = blockAt(lines, at, depth, paragraph.length > 0);
    if (block) {
      endParagraph();
      found.push(block.block);
      at = block.next;
      continue;
    }
    if (line.trim() === "") endParagraph();
    else paragraph.push(line.trim());
    at += 1;
  }
  endParagraph();
  return found;
}

/** The code block, heading or list that starts at a line, and the line after it; null where text starts there. */
function blockAt(lines, at, depth, inParagraph) {
  const fence = FENCE.exec(lines[at]);
  if (fence) return codeBlock(lines, at, fence);
  const heading = HEADING.exec(lines[at]);
  if (heading) {
    return { block: { type: "heading", inline: inline(heading[1].replace(/[\s#]+$/, "")) }, next: at + 1 };
  }
  const item = depth < MAX_DEPTH ? ITEM.exec(lines[at]) : null;
  // Inside a paragraph, a number at the start of a line is a year or the like, unless it is 1.
  if (!item || (inParagraph && isNumber(item) && parseInt(item[2], 10) !== 1)) return null;
  return list(lines, at, item, depth);
}

function codeBlock(lines, start, [, fence, language]) {
  const closes = (line) => line.trim().length >= fence.length && line.trim().split(fence[0]).join("") === "";
  let at = start + 1;
  while (at < lines.length && !closes(lines[at])) at += 1;
  // An answer that is still being written has not closed its block yet.
  return { block: { type: "code", language, text: lines.slice(start + 1, at).join("\n") }, next: at + 1 };
}

function list(lines, start, first, depth) {
  const ordered = isNumber(first);
  const indent = first[1].length;
  const items = [];
  let at = start;
  for (; at < lines.length; at += 1) {
    const line = lines[at];
    const item = ITEM.exec(line);
    if (item && isNumber(item) === ordered && item[1].length <= indent + 1) {
      items.push([line.slice(item[0].length)]);
    } else if (line.trim() === "") {
      if (!goesOn(lines[at + 1], indent, ordered)) break;
      items.at(-1).push("");
    } else if (indentation(line) > indent) {
      items.at(-1).push(line.slice(Math.min(indentation(line), first[0].length)));
    } else if (item || FENCE.test(line) || HEADING.test(line)) {
      break;
    } else {
      items.at(-1).push(line.trim()); // the item's sentence goes on, not indented
    }
  }
  const number = ordered ? parseInt(first[2], 10) : null;
  const inside = items.map((each) => blocks(each, depth + 1));
  return { block: { type: "list", ordered, start: number, items: inside }, next: at };
}

/** Whether a list goes on with `line` after an empty line. */
function goesOn(line, indent, ordered) {
  if (line === undefined || line.trim() === "") return false;
  const item = ITEM.exec(line);
  return indentation(line) > indent || (item !== null && isNumber(item) === ordered);
}

function isNumber(item) {
  return /^\d/.test(item[2]);
}

function indentation(line) {
  return line.length - line.trimStart().length;
}

// To DOM nodes --------------------------------------------------------------------------------------------------------

const shown = new WeakMap(); // container -> the blocks in it, each as JSON

/**
 * Shows `text` in `container`. Blocks that are there already stay as they are, so that showing a growing answer again
 * and again costs little, and a selection in it is kept. `cite(number)` returns a node for a citation, or null where
 * there is no such source; without it, citations are text.
 */
export function render(container, text, cite = null) {
  const parsed = parse(text);
  const keys = parsed.map((block) => JSON.stringify(block));
  const before = cite ? [] : (shown.get(container) ?? []);
  let same = 0;
  while (same < keys.length && same < before.length && keys[same] === before[same]) same += 1;
  while (container.childNodes.length > same) container.lastChild.remove();
  container.append(...parsed.slice(same).map((block) => blockNode(block, cite)));
  shown.set(container, cite ? [] : keys);
}

function blockNode(block, cite) {
  if (block.type === "code") {
    return el("pre", { tabindex: "0", "aria-label": "Code" }, el("code", {}, block.text));
  }
  if (block.type === "list") {
    const items = block.items.map((item) => el("li", {}, ...item.map((each) => blockNode(each, cite))));
    const start = block.ordered && block.start !== 1 ? { start: String(block.start) } : {};
    return el(block.ordered ? "ol" : "ul", start, ...items);
  }
  const className = block.type === "heading" ? { class: "heading" } : {};
  return el("p", { dir: "auto", ...className }, ...block.inline.map((each) => inlineNode(each, cite)));
}

function inlineNode(node, cite) {
  if (typeof node === "string") return node;
  if (node.type === "code") return el("code", {}, node.text);
  if (node.type === "citation") return citation(node, cite);
  if (node.type === "link" || node.type === "image") return address(node);
  return el(node.type === "strong" ? "strong" : "em", {}, ...node.children.map((each) => inlineNode(each, cite)));
}

/** `[1, 3]` as one node for each number, text where a number has no source. */
function citation(node, cite) {
  const nodes = node.numbers.map((number) => cite?.(number) ?? null);
  if (nodes.includes(null)) return node.text;
  return el("span", { class: "citations" }, ...nodes);
}

/** What a link or an image says, and where it would lead, as text: an answer can be wrong about both. */
function address({ type, text, url }) {
  const words = type === "image" ? `image, not shown: ${text}` : text;
  if (words === url || words === "") return el("span", { class: "address", dir: "ltr" }, url);
  return el("span", {}, `${words} (`, el("span", { class: "address", dir: "ltr" }, url), ")");
}
