/**
 * Server-sent events over fetch, because EventSource cannot send a token.
 * Source: HTML standard, "Server-sent events".
 */

import { Problem, send } from "./api.js";
import { pause } from "./timing.js";

const SILENCE_MS = 40_000; // the server sends at least ": still here" every 15 s
const WAIT_MS = 1000;
const WAIT_MAX_MS = 15_000;

/** Parser of a text/event-stream that arrives in arbitrary chunks. */
export class Parser {
  #buffer = "";
  #endsInReturn = false;
  #data = [];
  #name = "";
  #id;

  constructor(lastEventId = "", retryMs = WAIT_MS) {
    this.lastEventId = this.#id = lastEventId;
    this.retryMs = retryMs;
  }

  /** Parse the next chunk; return the events that it completes. */
  feed(chunk) {
    if (chunk === "") return [];
    const isRestOfLineEnd = this.#endsInReturn && chunk.startsWith("\n");
    this.#endsInReturn = chunk.endsWith("\r");
    const lines = (this.#buffer + (isRestOfLineEnd ? chunk.slice(1) : chunk)).split(/\r\n|\n|\r/);
    this.#buffer = lines.pop();
    return lines.flatMap((line) => (line === "" ? this.#dispatch() : this.#field(line)));
  }

  #field(line) {
    const [, name, value] = /^([^:]*)(?::[ ]?(.*))?$/s.exec(line);
    if (name === "data") this.#data.push(value ?? "");
    if (name === "event") this.#name = value ?? "";
    if (name === "id" && !value?.includes("\0")) this.#id = value ?? "";
    if (name === "retry" && /^[0-9]+$/.test(value)) this.retryMs = Number(value);
    return [];
  }

  #dispatch() {
    this.lastEventId = this.#id;
    const event = { name: this.#name || "message", data: this.#data.join("\n"), id: this.#id };
    const isEvent = this.#data.length > 0;
    this.#data = [];
    this.#name = "";
    return isEvent ? [event] : [];
  }
}

/**
 * Follow a stream until `signal` aborts; after a break it resumes after the last event received.
 *
 * `onState` is called with "live" whenever the stream begins, "broken" when it breaks, and "refused", with the problem,
 * when the service refuses it; then it ends. A hidden tab pauses its stream: a browser opens six connections per
 * service, and hidden tabs would hold them all.
 */
export async function follow(path, { lastEventId = "", signal, onState, onEvent }) {
  let failures = 0;
  let parser = new Parser(lastEventId);
  const onBegin = () => {
    failures = 0;
    onState("live");
  };
  while (!signal.aborted) {
    let waitMs = 0;
    try {
      await waitUntilVisible(signal);
      parser = new Parser(parser.lastEventId, parser.retryMs);
      await read(path, parser, signal, onBegin, onEvent);
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status === 400 && parser.lastEventId) {
        parser = new Parser(); // the views were rebuilt, and do not know this position
      } else if (error instanceof Problem && error.isFinal) {
        onState("refused", error);
        return;
      }
      waitMs = error.retryAfterMs ?? 0;
    }
    onState("broken");
    waitMs = Math.max(waitMs, parser.retryMs * 2 ** failures * (0.5 + Math.random() / 2));
    failures += 1;
    await pause(Math.min(waitMs, WAIT_MAX_MS), signal, [window, "online"]);
  }
}

/** Read one connection until it ends. */
async function read(path, parser, signal, onBegin, onEvent) {
  const connection = new AbortController();
  const anySignal = AbortSignal.any([signal, connection.signal]);
  window.addEventListener("offline", () => connection.abort(), { signal: anySignal });
  document.addEventListener("visibilitychange", () => connection.abort(), { signal: anySignal });
  let silenceTimer = setTimeout(() => connection.abort(), SILENCE_MS);
  try {
    const headers = { Accept: "text/event-stream" };
    if (parser.lastEventId) headers["Last-Event-ID"] = parser.lastEventId;
    const response = await send(path, { headers, signal: anySignal });
    onBegin();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(silenceTimer);
      silenceTimer = setTimeout(() => connection.abort(), SILENCE_MS);
      parser.feed(value).forEach((event) => dispatch(event, onEvent));
    }
  } finally {
    clearTimeout(silenceTimer);
    connection.abort();
  }
}

/** Pass an event on; an error in the handler must not break the stream. */
function dispatch(event, onEvent) {
  try {
    onEvent(event);
  } catch (error) {
    reportError(error);
  }
}

async function waitUntilVisible(signal) {
  while (document.visibilityState === "hidden" && !signal.aborted) {
    await pause(WAIT_MAX_MS, signal, [document, "visibilitychange"]);
  }
}
