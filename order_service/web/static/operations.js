/** The operator's page: shows the figures of the service, and reads them again every few seconds. It is read-only. */

import { getJson, Problem, token } from "./api.js";
import { showChart } from "./chart.js";
import { byId, createProblemBox } from "./dom.js";
import { formatLocalTime } from "./format.js";
import { showFindings, showTables } from "./operation_tables.js";
import { pause } from "./timing.js";

const EVERY_MS = 5000; // the server reads its figures as often while somebody looks
const SOON_MS = 1000;
const SOON_MAX = 10; // how often the first figures are asked for sooner
const RETRY_MAX_MS = 30_000;
const ANSWER_WITHIN_MS = 15_000;
const STATE_TEXTS = { off: "", connecting: "connecting", live: "live", broken: "disconnected, retrying" };
const HOUR_MS = 3_600_000;
const formatTime = (iso) => formatLocalTime(iso).slice(11, 19);
const formatRate = (rate) => `${rate.toLocaleString(undefined, { maximumFractionDigits: rate < 10 ? 1 : 0 })}/s`;
const formatCount = (count) => count.toLocaleString();

let current = new AbortController();

/** Read and show the figures until `signal` aborts. A hidden tab does not ask. */
async function follow(signal) {
  let failures = 0;
  for (let polls = 0; !signal.aborted; polls += 1) {
    let waitMs;
    try {
      const overview = await read(signal);
      if (signal.aborted) return;
      failures = 0;
      show(overview);
      const isPartial = overview.at === null || overview.dead_letters === null;
      waitMs = isPartial && polls < SOON_MAX ? SOON_MS : EVERY_MS;
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      if (showProblem(error)) return;
      failures += 1;
      waitMs = Math.max(error.retryAfterMs, Math.min(RETRY_MAX_MS, EVERY_MS * failures));
    }
    await pause(waitMs, signal);
    while (document.hidden && !signal.aborted) await pause(RETRY_MAX_MS, signal, [document, "visibilitychange"]);
  }
}

async function read(signal) {
  const controller = new AbortController();
  const abort = () => controller.abort();
  const timer = setTimeout(abort, ANSWER_WITHIN_MS);
  signal.addEventListener("abort", abort, { signal: controller.signal });
  try {
    return await getJson("/v1/operations/overview", {}, controller.signal);
  } catch (error) {
    if (!controller.signal.aborted || signal.aborted) throw error;
    throw new Problem({ detail: "The service does not answer. This page retries automatically." });
  } finally {
    clearTimeout(timer);
    controller.abort(); // removes the listener
  }
}

function show(overview) {
  byId("problem").replaceChildren();
  byId("overview").setAttribute("aria-busy", "false");
  showState("live");
  byId("facts").textContent = describe(overview);
  byId("figures").hidden = overview.at === null;
  if (overview.at === null) return;
  showFindings(overview);
  const { history, lanes } = overview;
  showChart(byId("lag-chart"), history, "lag", {
    what: "commands are not decided", current: sumOfLags(lanes), when: "now", format: formatCount,
  });
  showChart(byId("rate-chart"), history, "decided_per_s", {
    what: "commands are decided", current: history.at(-1).decided_per_s, when: "in the last 30 s", format: formatRate,
  });
  showTables(overview);
}

/** Return how many commands are not decided. A point of the history has the most of 30 s, which may be past. */
function sumOfLags(lanes) {
  const lags = lanes.map(({ lag }) => lag).filter((lag) => lag !== null);
  return lags.length === 0 ? null : lags.reduce((sum, lag) => sum + lag, 0);
}

function describe({ at, since }) {
  if (at === null) return "The figures are being read.";
  const counted = Date.parse(at) - Date.parse(since) < HOUR_MS;
  const begin = counted ? ` This server has counted since ${formatTime(since)}, when it started.` : "";
  return `Figures of ${formatTime(at)}.${begin}`;
}

/** Show a problem; return whether asking again is of no use. */
function showProblem(problem) {
  if (problem.status === 401) {
    enter("login");
    byId("login-problem").replaceChildren(createProblemBox(problem));
    byId("login-title").focus();
    return true;
  }
  byId("overview").setAttribute("aria-busy", "false");
  byId("problem").replaceChildren(createProblemBox(problem, begin));
  if (problem.isFinal) byId("figures").hidden = true;
  showState(problem.isFinal ? "off" : "broken");
  return problem.isFinal;
}

function showState(state) {
  byId("live").dataset.state = state;
  byId("live").textContent = STATE_TEXTS[state];
}

function enter(name) {
  current.abort();
  for (const view of ["login", "overview"]) byId(view).hidden = view !== name;
  byId("forget").hidden = token.get() === "";
  showState(name === "login" ? "off" : "connecting");
}

function begin() {
  enter("overview");
  current = new AbortController();
  follow(current.signal);
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(byId("token").value);
  event.target.reset();
  begin();
});
byId("forget").addEventListener("click", () => {
  token.forget();
  byId("figures").hidden = true;
  begin();
});
byId("zone").textContent = `Times in ${Intl.DateTimeFormat().resolvedOptions().timeZone}`;
begin();
