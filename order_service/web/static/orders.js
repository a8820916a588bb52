/** The orders page: routing between its views, and the frame around them. It is read-only. */

import { Problem, token } from "./api.js";
import { byId, problemBox } from "./dom.js";
import { localTime } from "./format.js";
import { addressOf, showList } from "./list.js";
import { showOrder } from "./order.js";

const VIEWS = ["door", "list", "order"];
const SAID = { off: "", connecting: "connecting", live: "live", broken: "disconnected, retrying", refused: "not live" };

let shown = { name: "", address: "", leave: new AbortController(), select: null };

/** Show the view of the current URL: `#/?user_id=…&status=…` or `#/orders/<id>?version=<n>`. */
function route() {
  const [path, search] = (location.hash.slice(1) || "/").split(/\?(.*)/s);
  const query = new URLSearchParams(search);
  const orderId = /^\/orders\/([^/]+)$/.exec(path)?.[1];
  if (orderId === undefined) {
    enter("list", `/?${query}`, (page) => showList(page, query));
    return;
  }
  const version = Number(query.get("version")) || 0;
  if (shown.address === path) shown.select?.(version);
  else enter("order", path, (page) => showOrder(page, decoded(orderId), version));
}

/** Leave the current view and show another one. */
function enter(name, address, show) {
  shown.leave.abort();
  const leave = new AbortController();
  const isAnother = shown.name !== "" && shown.name !== name;
  shown = { name, address, leave, select: null };
  for (const view of VIEWS) byId(view).hidden = view !== name;
  byId("forget").hidden = token.get() === "";
  document.title = "Orders";
  byId("news").textContent = "";
  stands(name === "door" ? "off" : "connecting");
  if (isAnother) byId(name).querySelector("h1").focus();
  shown.select = show(pageOf(leave.signal)) ?? null;
}

/** Return what a view may change in the frame; each function does nothing once the view is left. */
function pageOf(signal) {
  const whileShown = (act) => (...given) => signal.aborted || act(...given);
  return {
    signal,
    again: whileShown(again),
    stands: whileShown(stands),
    tell: whileShown(tell),
    name: whileShown((title) => (document.title = `${title} · Orders`)),
    /** Show a problem with `draw`; if the user is not authenticated, ask for a token instead. */
    fault: whileShown((error, draw) => {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 401) askForToken(error);
      else draw();
    }),
  };
}

function stands(state, problem = null) {
  if (problem?.status === 401) {
    askForToken(problem);
    return;
  }
  byId("live").dataset.state = state;
  byId("live").textContent = problem ? `${SAID[state]}: ${problem.title}` : SAID[state];
}

function tell(news) {
  byId("news").textContent = `${localTime(new Date()).slice(11, 19)} ${news}`;
}

function askForToken(problem) {
  enter("door", "door", () => byId("door-problem").replaceChildren(problemBox(problem)));
}

function again() {
  shown.address = "";
  route();
  byId(shown.name).querySelector("h1").focus();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Call `act` when a form is submitted, instead of sending it. */
function onSubmit(id, act) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    act(event.target);
  });
}

onSubmit("search", (form) => {
  location.hash = `#/orders/${encodeURIComponent(form.elements.order_id.value.trim())}`;
  form.reset();
});
onSubmit("filters", (form) => {
  location.hash = addressOf(form);
});
onSubmit("token-form", () => {
  token.set(byId("token").value);
  byId("token-form").reset();
  again();
});
byId("forget").addEventListener("click", () => {
  token.forget();
  again();
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the fragment of the URL selects the view, so it cannot be #main
  byId("main").focus();
});
byId("zone").textContent = `Times in ${Intl.DateTimeFormat().resolvedOptions().timeZone}`;
window.addEventListener("hashchange", route);
route();
