/** The API as this page sees it: questions with the reader's token, answers as JSON, what goes wrong as problems. */

const TOKEN = "token";

/** The reader's bearer token: it lives in this tab, and ends with it. */
export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  /** Keep a token as it was pasted: with or without its scheme, and with the blanks of a terminal. */
  set: (pasted) => sessionStorage.setItem(TOKEN, pasted.replace(/^\s*Bearer\s/i, "").replace(/[^\x21-\x7e]/g, "")),
  forget: () => sessionStorage.removeItem(TOKEN),
};

/** An answer that is no success (RFC 9457), or none at all: then `status` is 0. */
export class Problem extends Error {
  constructor({ type = "", title = "No answer", detail = "", status = 0, errors = [] }, retryAfterMs = 0) {
    super(detail || title);
    Object.assign(this, { type, title, detail, status, errors, retryAfterMs });
  }

  /** Whether asking again would bring the same. */
  get isFinal() {
    return [400, 401, 403, 404].includes(this.status);
  }
}

/** Send a question; give the answer if it is a success, throw a Problem if not. */
export async function send(path, { headers = {}, signal }) {
  const authorization = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  let answer;
  try {
    answer = await fetch(path, { headers: { ...authorization, ...headers }, signal });
  } catch (error) {
    throw noAnswer(error, signal);
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const fallback = { title: answer.statusText || "No success", status: answer.status };
  throw new Problem({ ...fallback, ...said }, 1000 * (Number(answer.headers.get("Retry-After")) || 0));
}

/** Ask for JSON; parameters that are empty are left out. */
export async function ask(path, query, signal) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== "");
  const answer = await send(given.length ? `${path}?${new URLSearchParams(given)}` : path, { signal });
  try {
    return await answer.json();
  } catch (error) {
    throw noAnswer(error, signal); // its body was cut, or is none of ours
  }
}

/** Say that no whole answer came; who has left is told nothing. */
function noAnswer(error, signal) {
  if (signal.aborted) return error;
  return new Problem({ detail: "The service cannot be reached. This page tries again by itself." });
}
