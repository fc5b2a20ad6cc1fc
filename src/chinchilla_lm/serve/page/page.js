// The page of `chinchilla serve`: reads the form, asks the API, writes the answers. Keeps nothing outside its own memory.

import { ask, streamChunks } from "./stream.js";
import { TokenText, watchTokens } from "./tokens.js";

const ALTERNATIVES = 5;
const STATE_SECONDS = 30;
const NUMBERS = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "max_tokens", "seed"];
const ENDS = { stop: "ended by itself", length: "reached max tokens", cancelled: "stopped by the server" };

const find = (id) => document.getElementById(id);
const chosenMode = () => document.querySelector("input[name=mode]:checked").value;
const places = { completion: find("completion-runs"), chat: find("chat-runs") };
const drafts = { completion: "", chat: "" };
const turns = [];  // of the chat: {role, content}
let model = null, running = null, mode = "completion";

/** Ask which model is served and whether it is ready. */
async function readState() {
  const state = find("state");
  const say = (word, kind) => {
    if (state.textContent === word) return;  // a status that does not change is not read out again
    state.textContent = word;
    state.className = `state ${kind}`;
  };
  try {
    const { data } = await ask("/v1/models", find("key").value);
    if (model?.id !== data[0].id) showModel(data[0]);
    await ask("/ready", find("key").value);
    say("ready", "ready");
  } catch (refusal) {
    if (!model) find("model").textContent = "No model yet";
    say({ 401: "needs an API key", 503: "shutting down" }[refusal.status] ?? "not reachable", "down");
    if (refusal.status === 401) find("settings").open = true;
  }
}

function showModel(card) {
  model = card;
  find("model").textContent = card.id;
  document.title = `${card.id} – chinchilla`;
  const context = Number(card.max_model_len);
  find("context").textContent = context ? `· context of ${context.toLocaleString("en")} tokens` : "";
  const most = find("max_tokens");
  if (context && Number(most.value) > context / 2) most.value = Math.floor(context / 2);
}

/** Return the sampling fields that are filled in; an empty one leaves the server's default. */
function readSampling() {
  const fields = {};
  for (const name of NUMBERS) if (find(name).value.trim() !== "") fields[name] = Number(find(name).value);
  const written = { n: "\n", t: "\t", "\\": "\\" };
  const stops = find("stop_texts").value.split("\n").filter(Boolean);
  if (stops.length) fields.stop = stops.map((one) => one.replace(/\\([nt\\])/g, (_, sign) => written[sign]));
  return fields;
}

function readRequest(prompt) {
  const shared = { model: model?.id ?? "", stream: true, ...readSampling() };
  if (mode === "completion") return ["/v1/completions", { ...shared, prompt, logprobs: ALTERNATIVES }];
  const system = find("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...turns, { role: "user", content: prompt }];
  return ["/v1/chat/completions", { ...shared, messages, logprobs: true, top_logprobs: ALTERNATIVES }];
}

/** Send what is in the form and write the answer as it comes. */
async function send() {
  const prompt = find("prompt").value;
  if (running) return;
  if (!find("sampling").checkValidity()) {
    find("settings").open = true;  // a message cannot stand at a field that is folded away
    find("sampling").reportValidity();
    return;
  }
  if (!prompt) {
    showError(mode === "chat" ? "Write a message first." : "Write a prompt first.");
    find("prompt").focus();
    return;
  }
  showError("");
  const [path, body] = readRequest(prompt);
  const run = openRun(prompt);
  if (mode === "chat") find("prompt").value = "";
  setRunning({ abort: new AbortController(), mode });
  const refusal = await follow(run, streamChunks(path, body, find("key").value, running.abort.signal));
  closeRun(run, prompt, refusal);
  setRunning(null);
  if (refusal) { showError(refusal.message); readState(); }
}

/** Write a stream into a run; returns what ended it early, or null. */
async function follow(run, chunks) {
  let frame = 0;
  const draw = () => { frame = 0; keepingBottom(() => run.text.draw(false)); };
  try {
    for await (const chunk of chunks) {
      const choice = chunk.choices[0];
      if (!choice) continue;
      run.text.push(choice);
      if (run.text.tokens.length) run.began ??= performance.now();
      run.end = choice.finish_reason ?? run.end;
      frame ||= requestAnimationFrame(draw);
    }
    return null;
  } catch (error) {
    if (error.name !== "AbortError") return error;
    run.isStopped = true;
    return null;
  } finally {
    cancelAnimationFrame(frame);
    keepingBottom(() => run.text.draw(true));
  }
}

function openRun(prompt) {
  const article = make("article", "run running");
  const output = make("p", "text");
  output.dir = "auto";
  if (mode === "chat") article.append(make("p", "question", prompt));
  else output.append(make("span", "given", prompt));
  const answer = make("span", "answer");
  answer.setAttribute("role", "group");
  answer.setAttribute("aria-label", "Answer; arrow keys move from token to token");
  output.append(answer);
  article.setAttribute("aria-live", "polite");
  article.setAttribute("aria-busy", "true");  // read out once, when it is complete
  article.append(output);
  if (mode === "chat") places.chat.append(article);
  else places.completion.prepend(article);
  find("hint").hidden = true;
  if (mode === "chat") find("composer").scrollIntoView({ block: "end" });
  return { article, text: new TokenText(answer), began: null, end: null, isStopped: false, mode };
}

function closeRun(run, prompt, refusal) {
  const { article, text } = run;
  article.classList.remove("running");
  if (!article.isConnected) return;  // cleared meanwhile
  if (!text.text && (refusal || run.isStopped)) {  // nothing came: as if it had not been sent
    article.remove();
    if (run.mode === "chat" && mode === "chat" && !find("prompt").value) find("prompt").value = prompt;
    return;
  }
  if (run.mode === "chat") turns.push({ role: "user", content: prompt }, { role: "assistant", content: text.text });
  const seconds = (performance.now() - run.began) / 1000;
  const count = text.tokens.length;
  const facts = [`${count} token${count === 1 ? "" : "s"}`];
  if (count > 1 && seconds > 0) facts.push(`${((count - 1) / seconds).toFixed(0)} per second`);
  if (count) facts.push(`perplexity ${text.perplexity.toFixed(1)}`);
  facts.push(run.isStopped ? "stopped" : refusal ? "broken off" : ENDS[run.end] ?? "ended");
  const footer = make("footer", "");
  footer.append(make("span", "", facts.join(" · ")), copyButton(text));
  if (run.mode === "completion") footer.append(button("Use again", () => { setPrompt(prompt); }), button("Continue", () => { setPrompt(prompt + text.text); }));
  keepingBottom(() => article.append(footer));
  article.setAttribute("aria-busy", "false");
}

function copyButton(text) {
  const made = button("Copy", async () => {
    made.textContent = (await copy(text.text)) ? "Copied" : "Not allowed";
    setTimeout(() => { made.textContent = "Copy"; }, 1500);
  });
  return made;
}

/** Put a text on the clipboard, also over plain http, where browsers have no navigator.clipboard. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = make("textarea", "unseen");
    field.value = text;
    document.body.append(field);
    field.select();
    const isDone = document.execCommand("copy");
    field.remove();
    return isDone;
  }
}

function setPrompt(text) {
  find("prompt").value = text;
  find("prompt").focus();
  find("prompt").scrollIntoView({ block: "nearest" });
}

function setRunning(what) {
  running = what;
  find("stop").disabled = !what;
  find("send").disabled = Boolean(what);
  if (!what && document.activeElement === document.body) find("prompt").focus();  // the Stop button lost it
}

function clear() {
  running?.abort.abort();
  places[mode].replaceChildren();
  if (mode === "chat") turns.length = 0;
  setPrompt("");
  showError("");
  find("hint").hidden = false;
}

function showError(message) {
  find("error").textContent = message;
  find("error").hidden = !message;
}

function switchMode() {
  running?.abort.abort();
  drafts[mode] = find("prompt").value;
  mode = chosenMode();
  const isChat = mode === "chat";
  document.body.classList.toggle("chat", isChat);
  places.completion.hidden = isChat;
  places.chat.hidden = !isChat;
  if (isChat) places.chat.after(find("composer"));  // a conversation grows downwards, above its next line
  else places.completion.before(find("composer"));
  find("system-label").hidden = !isChat;
  find("prompt-label").textContent = isChat ? "Message" : "Prompt";
  find("prompt").placeholder = isChat ? "Say something" : "Text for the model to continue";
  find("prompt").value = drafts[mode];
  find("send").textContent = isChat ? "Send" : "Complete";
  find("hint").hidden = places[mode].childElementCount > 0;
  showError("");
}

/** Change the page; a reader at its bottom stays there (in a chat). */
function keepingBottom(change) {
  const root = document.documentElement;
  const isAtBottom = mode === "chat" && root.scrollHeight - window.scrollY - window.innerHeight < 80;
  change();
  if (isAtBottom) window.scrollTo(0, root.scrollHeight);
}

function make(kind, className, text = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  if (text) made.dir = "auto";
  return made;
}

function button(name, act) {
  const made = make("button", "", name);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

function start() {
  find("settings").open = window.matchMedia("(min-width: 52.01rem)").matches;
  const colour = () => document.body.classList.toggle("odds", find("shows-odds").checked);
  find("shows-odds").addEventListener("change", colour);
  colour();
  find("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  find("sampling").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  find("stop").addEventListener("click", () => running?.abort.abort());
  find("clear").addEventListener("click", clear);
  find("key").addEventListener("change", readState);
  for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", switchMode);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); send(); }
  });
  watchTokens(find("main"), find("readout"));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) readState(); });
  setInterval(() => { if (!document.hidden) readState(); }, STATE_SECONDS * 1000);
  if (chosenMode() !== mode) switchMode();  // a reloaded page may remember it
  readState();
}

start();
