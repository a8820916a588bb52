/** API client of this page: sends the user's token, returns JSON, and throws a Problem for every error. */

const TOKEN = "token";

/** The user's bearer token, kept in this tab until it closes. */
export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  /** Store a pasted token, without its scheme and without blanks from a terminal. */
  set: (pasted) => sessionStorage.setItem(TOKEN, pasted.replace(/^\s*Bearer\s/i, "").replace(/[^\x21-\x7e]/g, "")),
  forget: () => sessionStorage.removeItem(TOKEN),
};

/** An error response (RFC 9457), or a missing response: then `status` is 0. */
export class Problem extends Error {
  constructor({ type = "", title = "No response", detail = "", status = 0, errors = [] }, retryAfterMs = 0) {
    super(detail || title);
    Object.assign(this, { type, title, detail, status, errors, retryAfterMs });
  }

  /** Whether a retry would fail in the same way. */
  get isFinal() {
    return [400, 401, 403, 404].includes(this.status);
  }
}

/** Send a GET request; return a successful response, otherwise throw a Problem. */
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
  const fallback = { title: answer.statusText || "Request failed", status: answer.status };
  throw new Problem({ ...fallback, ...said }, 1000 * (Number(answer.headers.get("Retry-After")) || 0));
}

/** Get JSON; empty parameters are left out. */
export async function ask(path, query, signal) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== "");
  const answer = await send(given.length ? `${path}?${new URLSearchParams(given)}` : path, { signal });
  try {
    return await answer.json();
  } catch (error) {
    throw noAnswer(error, signal); // its body was cut off, or is not from this service
  }
}

/** Return the problem of a missing or incomplete response; after an abort, return the error itself. */
function noAnswer(error, signal) {
  if (signal.aborted) return error;
  return new Problem({ detail: "The service cannot be reached. This page retries automatically." });
}
