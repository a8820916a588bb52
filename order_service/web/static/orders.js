/** The orders page: routing between its views, and the frame around them. It is read-only. */

import { Problem, token } from "./api.js";
import { byId, createProblemBox } from "./dom.js";
import { formatLocalTime } from "./format.js";
import { buildAddress, showList } from "./list.js";
import { showOrder } from "./order.js";

const VIEWS = ["login", "list", "order"];
const STATE_TEXTS = {
  off: "",
  connecting: "connecting",
  live: "live",
  broken: "disconnected, retrying",
  refused: "not live",
};

let current = { name: "", address: "", controller: new AbortController(), select: null };

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
  if (current.address === path) current.select?.(version);
  else enter("order", path, (page) => showOrder(page, decode(orderId), version));
}

/** Leave the current view and show another one. */
function enter(name, address, show) {
  current.controller.abort();
  const controller = new AbortController();
  const isOther = current.name !== "" && current.name !== name;
  current = { name, address, controller, select: null };
  for (const view of VIEWS) byId(view).hidden = view !== name;
  byId("forget").hidden = token.get() === "";
  document.title = "Orders";
  byId("news").textContent = "";
  showState(name === "login" ? "off" : "connecting");
  if (isOther) byId(name).querySelector("h1").focus();
  current.select = show(createPage(controller.signal)) ?? null;
}

/** Return what a view may change in the frame; each function does nothing once the view is left. */
function createPage(signal) {
  const whileCurrent = (action) => (...args) => signal.aborted || action(...args);
  return {
    signal,
    reload: whileCurrent(reload),
    showState: whileCurrent(showState),
    announce: whileCurrent(announce),
    setTitle: whileCurrent((title) => (document.title = `${title} · Orders`)),
    /** Show a problem with `draw`; if the user is not authenticated, ask for a token instead. */
    handleError: whileCurrent((error, draw) => {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 401) askForToken(error);
      else draw();
    }),
  };
}

function showState(state, problem = null) {
  if (problem?.status === 401) {
    askForToken(problem);
    return;
  }
  byId("live").dataset.state = state;
  byId("live").textContent = problem ? `${STATE_TEXTS[state]}: ${problem.title}` : STATE_TEXTS[state];
}

function announce(message) {
  byId("news").textContent = `${formatLocalTime(new Date()).slice(11, 19)} ${message}`;
}

function askForToken(problem) {
  enter("login", "login", () => byId("login-problem").replaceChildren(createProblemBox(problem)));
}

function reload() {
  current.address = "";
  route();
  byId(current.name).querySelector("h1").focus();
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Call `action` when a form is submitted, instead of sending it. */
function onSubmit(id, action) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    action(event.target);
  });
}

onSubmit("search", (form) => {
  location.hash = `#/orders/${encodeURIComponent(form.elements.order_id.value.trim())}`;
  form.reset();
});
onSubmit("filters", (form) => {
  location.hash = buildAddress(form);
});
onSubmit("token-form", () => {
  token.set(byId("token").value);
  byId("token-form").reset();
  reload();
});
byId("forget").addEventListener("click", () => {
  token.forget();
  reload();
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the fragment of the URL selects the view, so it cannot be #main
  byId("main").focus();
});
byId("zone").textContent = `Times in ${Intl.DateTimeFormat().resolvedOptions().timeZone}`;
window.addEventListener("hashchange", route);
route();
