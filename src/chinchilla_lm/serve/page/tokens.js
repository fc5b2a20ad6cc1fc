// Writes a streamed text as spans, one for each token, and shows a token's probability. Text goes in by textContent alone.

const SURPRISE_NATS = 6;  // full colour: a token of probability 0.0025
const MOST_SHOWN = 6;

/** A text that grows. `place` is an empty element. */
export class TokenText {
  constructor(place) {
    this.place = place;
    this.tail = document.createTextNode("");
    place.append(this.tail);
    this.characters = [];  // code points: the API counts its offsets in them
    this.tokens = [];
    this.written = 0;  // tokens that have a span or are part of one
    this.spanned = 0;  // characters in spans
    this.decoder = new TextDecoder();
    this.decoded = 0;  // characters of the chat's tokens so far
  }

  get text() { return this.characters.join(""); }

  /** exp of the mean surprise: among how many equally likely tokens the model chose, on average. NaN without tokens. */
  get perplexity() {
    const known = this.tokens.filter((token) => Number.isFinite(token.logprob));
    return Math.exp(-known.reduce((sum, token) => sum + token.logprob, 0) / known.length);
  }

  /** Take one choice of a completion's or a chat's chunk. */
  push(choice) {
    for (const character of choice.text ?? choice.delta?.content ?? "") this.characters.push(character);
    const logprobs = choice.logprobs;
    if (logprobs?.content) this.pushChat(logprobs.content);
    else if (logprobs?.tokens) this.pushCompletion(logprobs);
  }

  pushCompletion({ tokens, token_logprobs, top_logprobs, text_offset }) {
    tokens.forEach((word, index) => this.tokens.push({
      word, logprob: token_logprobs[index], begin: text_offset[index], top: Object.entries(top_logprobs[index] ?? {}),
    }));
  }

  pushChat(entries) {  // these have no offsets, but their bytes
    for (const entry of entries) {
      const top = entry.top_logprobs.map((one) => [one.token, one.logprob]);
      this.tokens.push({ word: entry.token, logprob: entry.logprob, begin: this.decoded, top });
      const content = this.decoder.decode(new Uint8Array(entry.bytes ?? []), { stream: true });
      const isDropped = this.decoded === 0 && content.startsWith(" ") && this.characters[0] !== " ";  // SentencePiece's
      this.decoded += [...content].length - (isDropped ? 1 : 0);
    }
  }

  /** Bring the page up to date. A token's end is known when the next one has begun, or at the end of all. */
  draw(isFinished) {
    const made = document.createDocumentFragment();
    while (this.written < this.tokens.length) {
      const group = [this.tokens[this.written]];
      const at = (index) => this.tokens[index]?.begin ?? (isFinished ? this.characters.length : Infinity);
      let next = this.written + 1;
      while (next < this.tokens.length && at(next) <= this.spanned) group.push(this.tokens[next++]);  // parts of a character
      const end = at(next);
      if (end > this.characters.length && !isFinished) break;
      const text = this.characters.slice(this.spanned, end).join("");
      if (text) made.append(this.span(text, group));
      this.spanned += [...text].length;
      this.written = next;
    }
    this.place.insertBefore(made, this.tail);
    this.tail.data = this.characters.slice(this.spanned).join("");
  }

  span(text, group) {
    const span = document.createElement("span");
    span.className = "token";
    span.textContent = text;
    span.tabIndex = this.place.querySelector(".token") || this.spanned ? -1 : 0;  // one stop for Tab; arrows move on
    const surprise = group.reduce((sum, token) => sum - (token.logprob ?? 0), 0);
    span.style.setProperty("--surprise", Math.min(surprise / SURPRISE_NATS, 1).toFixed(3));
    if (text.includes("\n")) span.classList.add("ends-line");
    groups.set(span, group);
    return span;
  }
}

const groups = new WeakMap();  // span -> its tokens

/** Let `readout` show the token under the pointer or with the focus, anywhere in `root`. */
export function watchTokens(root, readout) {
  let shown = null;
  const hide = () => { shown?.classList.remove("shown"); shown = null; readout.hidden = true; };
  const show = (span) => {
    if (span === shown) return;
    hide();
    if (!span) return;
    shown = span;
    span.classList.add("shown");
    readout.replaceChildren(...groups.get(span).flatMap(described));
    readout.hidden = false;
    putNear(readout, span);
  };
  const tokenOf = (event) => event.target.closest?.(".token") ?? null;
  root.addEventListener("pointerover", (event) => { if (tokenOf(event) || event.pointerType === "mouse") show(tokenOf(event)); });
  root.addEventListener("pointerleave", () => show(focusedToken()));
  root.addEventListener("focusin", (event) => show(tokenOf(event)));
  root.addEventListener("focusout", hide);
  root.addEventListener("keydown", (event) => { if (tokenOf(event)) move(event, tokenOf(event)); });
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest?.(".token")) hide(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  window.addEventListener("scroll", () => { if (shown) putNear(readout, shown); }, { passive: true });
}

const focusedToken = () => document.activeElement?.closest(".token") ?? null;

function move(event, span) {
  const all = [...span.parentElement.querySelectorAll(".token")];
  const index = all.indexOf(span);
  const to = { ArrowRight: index + 1, ArrowLeft: index - 1, ArrowDown: below(all, index, 1), ArrowUp: below(all, index, -1), Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const next = all[Math.max(0, Math.min(to, all.length - 1))];
  span.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/** Return the index of the nearest token in the next line of the text, or the line before it. */
function below(all, index, step) {
  const here = all[index].getBoundingClientRect();
  let best = index, away = Infinity, line = null;
  for (let other = index + step; other >= 0 && other < all.length; other += step) {
    const box = all[other].getBoundingClientRect();
    if (Math.abs(box.top - here.top) < here.height / 2) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > here.height / 2) break;
    if (Math.abs(box.left - here.left) < away) { away = Math.abs(box.left - here.left); best = other; }
  }
  return best;
}

/** Return the elements that tell of one token: itself, and what else was likely there. */
function described(token) {
  const head = document.createElement("p");
  head.append(cell("word", visible(token.word)), cell("chance", percent(token.logprob)));
  const list = document.createElement("ol");
  const top = token.top.filter(([, logprob]) => Number.isFinite(logprob)).sort((one, other) => other[1] - one[1]);
  for (const [word, logprob] of top.slice(0, MOST_SHOWN)) {
    const row = document.createElement("li");
    row.classList.toggle("chosen", word === token.word);
    row.style.setProperty("--share", Math.exp(logprob).toFixed(4));
    row.append(cell("word", visible(word)), cell("chance", percent(logprob)));
    list.append(row);
  }
  return [head, list];
}

function cell(kind, text) {
  const made = document.createElement("span");
  made.className = kind;
  made.textContent = text;
  return made;
}

const visible = (word) => word.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll("\r", "␍") || "∅";

function percent(logprob) {
  if (!Number.isFinite(logprob)) return "–";
  const share = 100 * Math.exp(logprob);
  return share < 0.01 ? "< 0.01 %" : `${share.toFixed(share < 1 ? 2 : 1)} %`;
}

function putNear(readout, span) {
  const boxes = span.getClientRects();
  const box = boxes[boxes.length - 1] ?? span.getBoundingClientRect();
  const width = readout.offsetWidth, height = readout.offsetHeight, gap = 8;
  const isAbove = box.bottom + gap + height > window.innerHeight && box.top - gap - height > 0;
  readout.classList.toggle("at-top", box.bottom > window.innerHeight / 2);  // where it is a sheet: not over the token
  readout.style.left = `${Math.max(gap, Math.min(box.left, window.innerWidth - width - gap))}px`;
  readout.style.top = `${isAbove ? box.top - gap - height : box.bottom + gap}px`;
}
