/** The list of orders: filtered, in pages, and refreshed after every event. */

import { ask, token } from "./api.js";
import { byId, h, place, problemBox } from "./dom.js";
import { localTime, money, statusMark, time } from "./format.js";
import { follow } from "./stream.js";
import { oneByOne, seldom } from "./timing.js";

const PAGE = 50;
const MOST = 200; // maximum page size of the service
const FILTERS = ["user_id", "status", "created_from", "created_to"];

/** Show the orders that match `query`, until `page.signal` aborts. */
export function showList(page, query) {
  const wanted = Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? ""]));
  fillForm(wanted);
  new List(page, wanted).begin();
}

/** Return the URL of the list with the filters of a form. */
export function addressOf(form) {
  const given = [...new FormData(form)].filter(([, value]) => value.trim() !== "");
  const query = new URLSearchParams(given.map(([name, value]) => [name, inUtc(name, value.trim())]));
  return query.size ? `#/?${query}` : "#/";
}

class List {
  #orders = [];
  #rows = new Map();
  #next = null;
  #seenUntil = Infinity; // time of the newest change shown; at first nothing is highlighted as new
  #untold = [];
  #isLive = false;
  #inTurn = oneByOne();

  constructor(page, wanted) {
    this.page = page;
    this.wanted = wanted;
    this.lookSoon = seldom(() => this.#tellAndLook(), 1000, page.signal);
    byId("rows").replaceChildren();
    for (const id of ["orders", "empty", "more"]) byId(id).hidden = true;
    byId("list").setAttribute("aria-busy", "true");
  }

  /** Read the first page, then follow all events. */
  async begin() {
    const { signal } = this.page;
    byId("more").addEventListener("click", () => this.more(), { signal });
    const problem = await this.look();
    if (problem?.isFinal) {
      this.page.stands("off");
      return;
    }
    follow("/v1/events", {
      signal,
      onState: (state, refusal) => {
        this.page.stands(state, refusal);
        this.#isLive = state === "live";
        if (state === "live") this.lookSoon(); // for changes before the stream began, or while it was broken
      },
      onEvent: ({ name, data }) => {
        const { order_id, version } = JSON.parse(data);
        this.#untold.push(`${name}: ${order_id} is at version ${version}`);
        this.lookSoon();
      },
    });
  }

  /** Read as many orders again as are shown; return the problem, or null. */
  look() {
    return this.#inTurn(() => this.#read(async () => {
      const wanted = Math.max(PAGE, this.#orders.length);
      const found = [];
      let next = null;
      do {
        const more = await this.#ask(next, Math.min(MOST, wanted - found.length));
        found.push(...more.orders);
        next = more.next;
      } while (next && found.length < wanted);
      return [found, next];
    }));
  }

  /** Read the next page of orders. */
  more() {
    return this.#inTurn(() => this.#read(async () => {
      const more = await this.#ask(this.#next, PAGE);
      return [[...this.#orders, ...more.orders], more.next];
    }));
  }

  /** Announce and refresh once, however many events have arrived. */
  #tellAndLook() {
    const news = this.#untold.splice(0);
    if (news.length) this.page.tell(news.at(-1) + (news.length > 1 ? `, the last of ${news.length} events` : ""));
    return this.look();
  }

  #ask(cursor, limit) {
    return ask("/v1/orders", { ...this.wanted, cursor, limit }, this.page.signal);
  }

  async #read(work) {
    let problem = null;
    try {
      [this.#orders, this.#next] = await work();
      byId("list-problem").replaceChildren();
      this.#draw();
    } catch (error) {
      problem = error;
      this.page.fault(error, () => byId("list-problem").replaceChildren(problemBox(error, this.page.again)));
    }
    if (!this.page.signal.aborted) byId("list").setAttribute("aria-busy", "false");
    if (problem?.status === 0 && this.#isLive) this.lookSoon(); // no reconnection will cause a refresh
    return problem;
  }

  #draw() {
    const known = this.#rows;
    const isNews = (order) => Date.parse(order.changed_at) > this.#seenUntil;
    this.#rows = new Map(
      this.#orders.map((order) => {
        const old = known.get(order.order_id);
        if (old?.version === order.version) return [order.order_id, old];
        return [order.order_id, { version: order.version, row: rowOf(order, isNews(order), old?.row) }];
      }),
    );
    this.#seenUntil = Math.max(...this.#orders.map(({ changed_at }) => Date.parse(changed_at)), 0);
    place(byId("rows"), [...this.#rows.values()].map(({ row }) => row));
    byId("orders").hidden = this.#orders.length === 0;
    byId("more").hidden = this.#next === null;
    byId("empty").hidden = this.#orders.length > 0;
    const isFiltered = Object.values(this.wanted).some(Boolean);
    byId("empty-title").textContent = isFiltered ? "No orders match these filters" : "No orders yet";
    byId("example").textContent = example();
  }
}

/** Create the row of an order, or update its existing row, so that focus in it stays. */
function rowOf(order, isNews, row = null) {
  const link = h("a", { href: `#/orders/${encodeURIComponent(order.order_id)}` }, order.order_id);
  const cells = [
    h("td", { class: "id" }, order.user_id),
    h("td", {}, statusMark(order.status)),
    h("td", { class: "number" }, money(order.total, order.currency)),
    h("td", { class: "wide" }, time(order.created_at)),
    h("td", { class: "wide" }, time(order.changed_at)),
    h("td", { class: "wide number" }, String(order.version)),
  ];
  const head = row?.firstElementChild ?? h("th", { scope: "row", class: "id" }, link);
  const made = row ?? h("tr", {}, head);
  place(made, [head, ...cells]);
  made.classList.remove("news");
  if (isNews) requestAnimationFrame(() => made.classList.add("news"));
  return made;
}

function fillForm(wanted) {
  const fields = byId("filters").elements;
  for (const [name, value] of Object.entries(wanted)) {
    fields[name].value = name.startsWith("created") ? atClock(value) : value;
  }
}

const inUtc = (name, value) => (name.startsWith("created") ? new Date(value).toISOString() : value);
const atClock = (iso) => (Number.isNaN(Date.parse(iso)) ? "" : localTime(iso).replace(/(:00)?\.\d+$/, ""));

function example() {
  const body = { user_id: "dana", currency: "EUR", lines: [{ sku: "mug-blue", quantity: 2, unit_price: 1250 }] };
  if (token.get()) delete body.user_id; // the order then belongs to the caller
  return [
    `curl ${location.origin}/v1/orders`,
    ...(token.get() ? ['  -H "Authorization: Bearer $TOKEN"'] : []),
    "  -H 'Content-Type: application/json'",
    `  -d '${JSON.stringify(body)}'`,
  ].join(" \\\n");
}
