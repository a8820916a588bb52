/**
 * Server-sent events over fetch, because EventSource cannot send a token.
 * Source: HTML standard, "Server-sent events".
 */

import { Problem, send } from "./api.js";
import { pause } from "./timing.js";

const SILENCE_MS = 40_000; // the server sends at least ": still here" every 15 s
const WAIT_MS = 1000;
const WAIT_MOST_MS = 15_000;

/** Parser of a text/event-stream that arrives in arbitrary pieces. */
export class Parser {
  #rest = "";
  #endsInReturn = false;
  #data = [];
  #name = "";
  #id;

  constructor(lastEventId = "", retryMs = WAIT_MS) {
    this.lastEventId = this.#id = lastEventId;
    this.retryMs = retryMs;
  }

  /** Parse the next piece; return the events that it completes. */
  feed(piece) {
    if (piece === "") return [];
    const isRestOfLineEnd = this.#endsInReturn && piece.startsWith("\n");
    this.#endsInReturn = piece.endsWith("\r");
    const lines = (this.#rest + (isRestOfLineEnd ? piece.slice(1) : piece)).split(/\r\n|\n|\r/);
    this.#rest = lines.pop();
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
  const begins = () => {
    failures = 0;
    onState("live");
  };
  while (!signal.aborted) {
    let waitMs = 0;
    try {
      await isSeen(signal);
      parser = new Parser(parser.lastEventId, parser.retryMs);
      await read(path, parser, signal, begins, onEvent);
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
    await pause(Math.min(waitMs, WAIT_MOST_MS), signal, [window, "online"]);
  }
}

/** Read one connection until it ends. */
async function read(path, parser, signal, begins, onEvent) {
  const cut = new AbortController();
  const either = AbortSignal.any([signal, cut.signal]);
  window.addEventListener("offline", () => cut.abort(), { signal: either });
  document.addEventListener("visibilitychange", () => cut.abort(), { signal: either });
  let silence = setTimeout(() => cut.abort(), SILENCE_MS);
  try {
    const headers = { Accept: "text/event-stream" };
    if (parser.lastEventId) headers["Last-Event-ID"] = parser.lastEventId;
    const answer = await send(path, { headers, signal: either });
    begins();
    const pieces = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await pieces.read();
      if (done) return;
      clearTimeout(silence);
      silence = setTimeout(() => cut.abort(), SILENCE_MS);
      parser.feed(value).forEach((event) => hand(event, onEvent));
    }
  } finally {
    clearTimeout(silence);
    cut.abort();
  }
}

/** Pass an event on; an error in the handler must not break the stream. */
function hand(event, onEvent) {
  try {
    onEvent(event);
  } catch (error) {
    reportError(error);
  }
}

async function isSeen(signal) {
  while (document.visibilityState === "hidden" && !signal.aborted) {
    await pause(WAIT_MOST_MS, signal, [document, "visibilitychange"]);
  }
}
