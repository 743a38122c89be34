// Sentences of an answer that its sources do not support: underlined where they stand, with the reason as a tooltip.

import { el } from "./dom.js";

const LETTER = /[\p{L}\p{N}]/u; // what markup and white space cannot change
const CITED = /\[\d[\d\s,;]*\]/g;

/** The sentences that no source supports. A changed answer is not what was judged. */
export function unsupported({ attribution, edited }) {
  return edited ? [] : attribution.filter((each) => each.supported === false);
}

/** Underlines them in an answer that is shown in `container`. */
export function underline(container, sentences) {
  const nodes = textNodes(container);
  const places = rangesOf(nodes.map((node) => node.data), sentences.map((each) => String(each.text)));
  for (const { node, start, end, sentence } of places.reverse()) {
    const part = nodes[node].splitText(start);
    part.splitText(end - start);
    const title = `Not supported by the sources: ${sentences[sentence].reason}`;
    const span = el("span", { class: "unsupported", title });
    part.replaceWith(span);
    span.append(part);
  }
}

function textNodes(container) {
  const found = [];
  const walker = document.createTreeWalker(container, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    if (!walker.currentNode.parentElement.closest(".citations, pre")) found.push(walker.currentNode);
  }
  return found;
}

/** Where sentences stand in a row of texts, by their letters and digits: [{node, start, end, sentence}], a range for
 * each text that a sentence is part of. One that is not found has none. */
export function rangesOf(texts, sentences) {
  const letters = texts.flatMap((text, node) => lettersOf(text).map((each) => ({ ...each, node })));
  const all = letters.map((each) => each.letter);
  const found = [];
  let from = 0;
  sentences.forEach((text, sentence) => {
    const wanted = lettersOf(text.replace(CITED, "")).map((each) => each.letter);
    const at = wanted.length ? indexOf(all, wanted, from) : -1;
    if (at < 0) return;
    from = at + wanted.length;
    for (const { node, start, end } of letters.slice(at, from)) {
      const last = found.at(-1);
      if (last?.sentence === sentence && last.node === node) last.end = end;
      else found.push({ node, start, end, sentence });
    }
  });
  return found;
}

function lettersOf(text) {
  return [...text.matchAll(new RegExp(LETTER, "gu"))].map(({ 0: letter, index }) => ({
    letter,
    start: index,
    end: index + letter.length,
  }));
}

function indexOf(all, wanted, from) {
  for (let at = from; at + wanted.length <= all.length; at += 1) {
    if (wanted.every((letter, i) => all[at + i] === letter)) return at;
  }
  return -1;
}
