/** API client of this page: sends the user's token, returns JSON, and throws a Problem for every error. */

const TOKEN = "token";

/** The path of this server, which a proxy may have put before `/`; "" without one. This file is in `/static`. */
export const BASE_PATH = new URL("..", import.meta.url).pathname.slice(0, -1);

/** The user's bearer token, kept in this tab until it closes. */
export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  /** Store a pasted token, without its scheme and without blanks from a terminal. */
  set: (text) => sessionStorage.setItem(TOKEN, text.replace(/^\s*Bearer\s/i, "").replace(/[^\x21-\x7e]/g, "")),
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

/** Send a GET request to a path of this server; return a successful response, otherwise throw a Problem. */
export async function send(path, { headers = {}, signal }) {
  const authorization = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  let response;
  try {
    response = await fetch(BASE_PATH + path, { headers: { ...authorization, ...headers }, signal });
  } catch (error) {
    throw createResponseProblem(error, signal);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const fallback = { title: response.statusText || "Request failed", status: response.status };
  throw new Problem({ ...fallback, ...problem }, 1000 * (Number(response.headers.get("Retry-After")) || 0));
}

/** Get JSON; empty parameters are left out. */
export async function getJson(path, query, signal) {
  const parameters = Object.entries(query).filter(([, value]) => value !== null && value !== "");
  const response = await send(parameters.length ? `${path}?${new URLSearchParams(parameters)}` : path, { signal });
  try {
    return await response.json();
  } catch (error) {
    throw createResponseProblem(error, signal); // its body was cut off, or is not from this service
  }
}

/** Return the problem of a missing or incomplete response; after an abort, return the error itself. */
function createResponseProblem(error, signal) {
  if (signal.aborted) return error;
  return new Problem({ detail: "The service cannot be reached. This page retries automatically." });
}
