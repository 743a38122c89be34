// What stands inside a paragraph: bold, italic, code, citations, links as text. Text in, plain data out.
//
// Takes time proportional to the text, whatever the text is: it may be hostile.

const ESCAPED = /[\\`*_[\](){}#+\-.!~<>|]/;
const CITATION = /\[(\d{1,3}(?:\s?,\s?\d{1,3}){0,9})\](?!\()/y;
const LINK = /(!?)\[([^[\]\n]{0,500})\]\(<?([^()<>\s]{1,1000})>?(?:\s+"[^"\n]{0,200}")?\)/y;
const LONGEST_MARK = 3; // `***`; longer runs are rulers and the like

/**
 * Text to nodes: strings, {type: "strong" | "em", children}, {type: "code", text},
 * {type: "link" | "image", text, url} and {type: "citation", numbers, text}.
 */
export function inline(text) {
  const spans = codeSpans(text);
  const tree = new Tree();
  for (let at = 0; at < text.length; ) {
    const sign = text[at];
    if (sign === "\\" && ESCAPED.test(text[at + 1] ?? "")) {
      tree.text(text[at + 1]);
      at += 2;
    } else if (sign === "`") {
      const span = spans.get(at);
      const end = span?.end ?? at + runLength(text, at);
      if (span) tree.add({ type: "code", text: span.text });
      else tree.text(text.slice(at, end));
      at = end;
    } else if (sign === "*" || sign === "_") {
      const length = runLength(text, at);
      emphasis(tree, sign, length, text[at - 1] ?? " ", text[at + length] ?? " ");
      at += length;
    } else {
      const [node, end] = sign === "[" || sign === "!" ? bracket(text, at) : [null, at];
      if (node) tree.add(node);
      else tree.text(sign);
      at = node ? end : at + 1;
    }
  }
  return tree.end();
}

/** The nodes so far, with the emphasis that is open. Each mark (`*`, `**`, `_`, `__`) is open once at most. */
class Tree {
  #frames = [{ mark: "", children: [] }];
  #plain = "";

  text(text) {
    this.#plain += text;
  }

  add(node) {
    this.#flush();
    this.#frames.at(-1).children.push(node);
  }

  isOpen(mark) {
    return this.#frames.some((frame) => frame.mark === mark);
  }

  /** Of some marks the one opened last, or undefined. */
  innermost(marks) {
    return this.#frames.findLast((frame) => marks.includes(frame.mark))?.mark;
  }

  open(mark) {
    this.#flush();
    this.#frames.push({ mark, children: [] });
  }

  /** Closes an open mark; what was opened inside it and is still open becomes text. */
  close(mark) {
    this.#flush();
    while (this.#frames.at(-1).mark !== mark) this.#fold();
    const { children } = this.#frames.pop();
    this.add({ type: mark.length === 2 ? "strong" : "em", children });
  }

  end() {
    this.#flush();
    while (this.#frames.length > 1) this.#fold();
    return this.#frames[0].children;
  }

  #fold() {
    const { mark, children } = this.#frames.pop();
    const outer = this.#frames.at(-1).children;
    outer.push(mark);
    for (const child of children) outer.push(child);
  }

  #flush() {
    if (this.#plain) this.#frames.at(-1).children.push(this.#plain);
    this.#plain = "";
  }
}

/** A run of `length` times `sign`, between the letters `left` and `right`: closes what it can, else opens. */
function emphasis(tree, sign, length, left, right) {
  // A `_` inside a word is part of it: snake_case.
  const canClose = !/\s/.test(left) && (sign === "*" || !isWord(right));
  const canOpen = !/\s/.test(right) && (sign === "*" || !isWord(left));
  let rest = length <= LONGEST_MARK ? length : 0;
  let opened = false;
  while (rest > 0) {
    const marks = [sign.repeat(2), sign].filter((mark) => mark.length <= rest);
    const opening = canOpen ? marks.find((mark) => !tree.isOpen(mark)) : undefined;
    const exact = rest === LONGEST_MARK ? tree.innermost(marks) : marks.find((mark) => tree.isOpen(mark));
    const closing = canClose && !opened ? exact : undefined;
    if (closing) tree.close(closing);
    else if (opening) tree.open(opening);
    else break;
    opened ||= !closing;
    rest -= (closing ?? opening).length;
  }
  tree.text(sign.repeat(length <= LONGEST_MARK ? rest : length));
}

function isWord(letter) {
  return /[\p{L}\p{N}]/u.test(letter);
}

function bracket(text, at) {
  CITATION.lastIndex = at;
  const citation = CITATION.exec(text);
  if (citation) {
    return [{ type: "citation", numbers: citation[1].split(",").map(Number), text: citation[0] }, CITATION.lastIndex];
  }
  LINK.lastIndex = at;
  const link = LINK.exec(text);
  if (!link) return [null, at];
  return [{ type: link[1] ? "image" : "link", text: link[2], url: link[3] }, LINK.lastIndex];
}

/** Where code starts: offset -> {text, end}. A run of backticks is closed by the next run of the same length. */
function codeSpans(text) {
  const runs = [...text.matchAll(/`+/g)].map((each) => ({ at: each.index, length: each[0].length }));
  const nearest = new Map(); // length -> the nearest run of this length after the one looked at
  const closing = new Map();
  for (const run of runs.toReversed()) {
    closing.set(run, nearest.get(run.length));
    nearest.set(run.length, run);
  }
  const spans = new Map();
  let after = 0;
  for (const run of runs) {
    const end = closing.get(run);
    if (run.at < after || end === undefined) continue;
    after = end.at + end.length;
    spans.set(run.at, { text: unpadded(text.slice(run.at + run.length, end.at)), end: after });
  }
  return spans;
}

/** One space on either side is there to keep backticks apart, and is not part of the code. */
function unpadded(code) {
  const line = code.replace(/\n/g, " ");
  return line.trim() !== "" && line.startsWith(" ") && line.endsWith(" ") ? line.slice(1, -1) : line;
}

function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}
