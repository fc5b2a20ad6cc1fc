// Asks the API and reads its streams (server-sent events). Knows nothing of the page.

/** A refusal of the API, or a server that cannot be reached; `message` is for people. */
export class Refusal extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** GET `path`; returns its JSON. Throws Refusal. */
export async function ask(path, key, signal) {
  const response = await reach(path, { headers: headersOf(key), signal });
  return response.json();
}

/** POST `body` to `path` and yield each chunk of the answer's stream. Throws Refusal, and AbortError when `signal` stops it. */
export async function* streamChunks(path, body, key, signal) {
  const headers = { ...headersOf(key), "content-type": "application/json" };
  const response = await reach(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  const reader = response.body.getReader();
  try {
    for await (const text of eventTexts(reader)) {
      if (text === "[DONE]") return;
      const chunk = JSON.parse(text);
      if (chunk.error) throw refusalOf(chunk.error, response.status);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof Refusal || error.name === "AbortError") throw error;
    throw new Refusal("The connection broke off in the middle of the answer.", 0, "broken");
  } finally {
    reader.cancel().catch(() => {});  // the server then stops writing
  }
  throw new Refusal("The answer ended too early; the server may have been stopped.", 0, "broken");
}

/** Yield what the `data:` lines of each event say, from bytes that may be cut anywhere. */
export async function* eventTexts(reader) {
  const decoder = new TextDecoder();
  let rest = "", lines = [];
  for (;;) {
    const { done, value } = await reader.read();
    rest += decoder.decode(value ?? new Uint8Array(), { stream: !done });
    const found = rest.split("\n");
    rest = found.pop();
    for (const line of found.map((one) => one.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) lines.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && lines.length) { yield lines.join("\n"); lines = []; }
    }
    if (done) return;
  }
}

const headersOf = (key) => (key ? { authorization: `Bearer ${key}` } : {});

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached. Is it still running?", 0, "unreachable");
  }
  if (response.ok) return response;
  let said = {};
  try { said = (await response.json()).error ?? {}; } catch { /* not the API's: a proxy's page, perhaps */ }
  throw refusalOf(said, response.status);
}

/** Say a refusal in plain words; the API's own say which value was wrong, and come through. */
function refusalOf(said, status) {
  const own = typeof said.message === "string" ? said.message : "";
  const plain = {
    401: "The server asks for an API key, or the one given is wrong. Enter it under Settings.",
    413: `The text is too long to send. ${own}`,
    429: "The server is busy with others' requests. Try again in a moment.",
    503: "The server takes no requests at the moment: it is starting or shutting down.",
  }[status];
  const byCode = { no_chat_template: "This model has no chat template, so it cannot chat. Completion works." }[said.code];
  const fallback = status >= 500 ? `The server failed (${status}). ${own}` : `The server refused: ${own || `status ${status}`}`;
  return new Refusal((byCode ?? plain ?? fallback).trim(), status, said.code);
}
