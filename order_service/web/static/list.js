/** The list of orders: filtered, in pages, and refreshed after every event. */

import { BASE_PATH, getJson, token } from "./api.js";
import { byId, createProblemBox, h, setChildren } from "./dom.js";
import { createStatusLabel, createTime, formatLocalTime, formatMoney } from "./format.js";
import { follow } from "./stream.js";
import { createQueue, throttle } from "./timing.js";

const PAGE_SIZE = 50;
const PAGE_SIZE_MAX = 200; // maximum page size of the service
const FILTERS = ["user_id", "status", "created_from", "created_to"];

/** Show the orders that match `query`, until `page.signal` aborts. */
export function showList(page, query) {
  const filters = Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? ""]));
  fillForm(filters);
  new List(page, filters).begin();
}

/** Return the URL of the list with the filters of a form. */
export function buildAddress(form) {
  const fields = [...new FormData(form)].filter(([, value]) => value); // not trimmed: a user id may have blanks
  const query = new URLSearchParams(fields.map(([name, value]) => [name, convertToUtc(name, value)]));
  return query.size ? `#/?${query}` : "#/";
}

class List {
  #orders = [];
  #rows = new Map();
  #next = null;
  #newestChange = Infinity; // time of the newest change shown; at first nothing is highlighted as new
  #unannounced = [];
  #isLive = false;
  #enqueue = createQueue();

  constructor(page, filters) {
    this.page = page;
    this.filters = filters;
    this.refreshSoon = throttle(() => this.#announceAndRefresh(), 1000, page.signal);
    byId("rows").replaceChildren();
    for (const id of ["orders", "empty", "more"]) byId(id).hidden = true;
    byId("list").setAttribute("aria-busy", "true");
  }

  /** Read the first page, then follow all events. */
  async begin() {
    const { signal } = this.page;
    byId("more").addEventListener("click", () => this.showMore(), { signal });
    const problem = await this.refresh();
    if (problem?.isFinal) {
      this.page.showState("off");
      return;
    }
    follow("/v1/events", {
      signal,
      onState: (state, refusal) => {
        this.page.showState(state, refusal);
        this.#isLive = state === "live";
        if (state === "live") this.refreshSoon(); // for changes before the stream began, or while it was broken
      },
      onEvent: ({ name, data }) => {
        const { order_id, version } = JSON.parse(data);
        this.#unannounced.push(`${name}: ${order_id} is at version ${version}`);
        this.refreshSoon();
      },
    });
  }

  /** Read as many orders again as are shown; return the problem, or null. */
  refresh() {
    return this.#enqueue(() => this.#load(async () => {
      const count = Math.max(PAGE_SIZE, this.#orders.length);
      const orders = [];
      let next = null;
      do {
        const response = await this.#fetchPage(next, Math.min(PAGE_SIZE_MAX, count - orders.length));
        orders.push(...response.orders);
        next = response.next;
      } while (next && orders.length < count);
      return [orders, next];
    }));
  }

  /** Read the next page of orders. */
  showMore() {
    return this.#enqueue(() => this.#load(async () => {
      const response = await this.#fetchPage(this.#next, PAGE_SIZE);
      return [[...this.#orders, ...response.orders], response.next];
    }));
  }

  /** Announce and refresh once, however many events have arrived. */
  #announceAndRefresh() {
    const messages = this.#unannounced.splice(0);
    const suffix = messages.length > 1 ? `, the last of ${messages.length} events` : "";
    if (messages.length) this.page.announce(messages.at(-1) + suffix);
    return this.refresh();
  }

  #fetchPage(cursor, limit) {
    return getJson("/v1/orders", { ...this.filters, cursor, limit }, this.page.signal);
  }

  async #load(work) {
    let problem = null;
    try {
      [this.#orders, this.#next] = await work();
      byId("list-problem").replaceChildren();
      this.#draw();
    } catch (error) {
      problem = error;
      const draw = () => byId("list-problem").replaceChildren(createProblemBox(error, this.page.reload));
      this.page.handleError(error, draw);
    }
    if (!this.page.signal.aborted) byId("list").setAttribute("aria-busy", "false");
    if (problem?.status === 0 && this.#isLive) this.refreshSoon(); // no reconnection will cause a refresh
    return problem;
  }

  #draw() {
    const previousRows = this.#rows;
    const isNew = (order) => Date.parse(order.changed_at) > this.#newestChange;
    this.#rows = new Map(
      this.#orders.map((order) => {
        const previous = previousRows.get(order.order_id);
        if (previous?.version === order.version) return [order.order_id, previous];
        return [order.order_id, { version: order.version, row: createRow(order, isNew(order), previous?.row) }];
      }),
    );
    this.#newestChange = Math.max(...this.#orders.map(({ changed_at }) => Date.parse(changed_at)), 0);
    setChildren(byId("rows"), [...this.#rows.values()].map(({ row }) => row));
    byId("orders").hidden = this.#orders.length === 0;
    byId("more").hidden = this.#next === null;
    byId("empty").hidden = this.#orders.length > 0;
    const isFiltered = Object.values(this.filters).some(Boolean);
    byId("empty-title").textContent = isFiltered ? "No orders match these filters" : "No orders yet";
    byId("example").textContent = formatExample();
  }
}

/** Create the row of an order, or update its existing row, so that focus in it stays. */
function createRow(order, isNew, row = null) {
  const link = h("a", { href: `#/orders/${encodeURIComponent(order.order_id)}` }, order.order_id);
  const cells = [
    h("td", { class: "id user" }, order.user_id),
    h("td", {}, createStatusLabel(order.status)),
    h("td", { class: "number" }, formatMoney(order.total, order.currency)),
    h("td", { class: "wide" }, createTime(order.created_at)),
    h("td", { class: "changed" }, createTime(order.changed_at)),
    h("td", { class: "wide number" }, String(order.version)),
  ];
  const head = row?.firstElementChild ?? h("th", { scope: "row", class: "id" }, link);
  const element = row ?? h("tr", {}, head);
  setChildren(element, [head, ...cells]);
  element.classList.remove("news");
  if (isNew) requestAnimationFrame(() => element.classList.add("news"));
  return element;
}

function fillForm(filters) {
  const fields = byId("filters").elements;
  for (const [name, value] of Object.entries(filters)) {
    fields[name].value = name.startsWith("created") ? formatForInput(value) : value;
  }
  byId("filter-box").open = Object.values(filters).some(Boolean) || matchMedia("(min-width: 45rem)").matches;
}

const convertToUtc = (name, value) => (name.startsWith("created") ? new Date(value).toISOString() : value);
const formatForInput = (iso) => (Number.isNaN(Date.parse(iso)) ? "" : formatLocalTime(iso).replace(/(:00)?\.\d+$/, ""));

function formatExample() {
  const body = { user_id: "dana", currency: "EUR", lines: [{ sku: "mug-blue", quantity: 2, unit_price: 1250 }] };
  if (token.get()) delete body.user_id; // the order then belongs to the caller
  return [
    `curl ${location.origin}${BASE_PATH}/v1/orders`,
    ...(token.get() ? ['  -H "Authorization: Bearer $TOKEN"'] : []),
    "  -H 'Content-Type: application/json'",
    `  -d '${JSON.stringify(body)}'`,
  ].join(" \\\n");
}
