/** One order: its status, its contents, and the timeline of its events and refused commands. */

import { getJson } from "./api.js";
import { createContents } from "./contents.js";
import { byId, createProblemBox, h, setChildren } from "./dom.js";
import { createStatusLabel, createTime } from "./format.js";
import { follow } from "./stream.js";
import { createEventEntry, createRefusalEntry } from "./timeline.js";
import { throttle } from "./timing.js";

const REFRESH_INTERVAL_MS = 5000; // the stream has no refused commands
const EVENTS_MAX = 1000; // an order has 55 events at most
const PARTS = ["order-facts", "order-problem", "progress", "timeline", "past-version-problem", "contents"];

/** Show an order until `page.signal` aborts; return a function that selects the version shown, 0 for now. */
export function showOrder(page, orderId, version) {
  const order = new Order(page, orderId, version);
  order.begin();
  return (selected) => order.select(selected);
}

class Order {
  #current = null;
  #entries = new Map();
  #lastVersion = 0; // of the last event received
  #selected;
  #drawnVersion = 0;

  constructor(page, orderId, version) {
    this.page = page;
    this.orderId = orderId;
    this.path = `/v1/orders/${encodeURIComponent(orderId)}`;
    this.refreshSoon = throttle(() => this.refresh(), 200, page.signal);
    this.#selected = version;
    byId("order-name").textContent = orderId;
    byId("current-version").href = `#/orders/${encodeURIComponent(orderId)}`;
    byId("order-body").hidden = true;
    byId("past-version").hidden = true;
    for (const id of PARTS) byId(id).replaceChildren();
    byId("order").setAttribute("aria-busy", "true");
  }

  /** Read the order, then follow it. */
  async begin() {
    const { signal } = this.page;
    const problem = await this.refresh();
    if (signal.aborted) return;
    if (problem?.isFinal) {
      this.page.showState("off");
      return;
    }
    const refreshIfVisible = () => document.visibilityState === "visible" && this.refreshSoon();
    const timer = setInterval(refreshIfVisible, REFRESH_INTERVAL_MS);
    signal.addEventListener("abort", () => clearInterval(timer));
    follow(`${this.path}/stream`, {
      signal,
      lastEventId: String(this.#lastVersion),
      onState: (state, problem) => {
        this.page.showState(state, problem);
        if (state === "live") this.refreshSoon();
      },
      onEvent: ({ data }) => {
        this.#addEntries([JSON.parse(data)], []);
        this.refreshSoon();
      },
    });
  }

  /** Read the current order and its events since the last read; return the problem, or null. */
  async refresh() {
    let problem = null;
    try {
      const query = { after_version: this.#lastVersion, limit: EVENTS_MAX, include_refused: true };
      const [current, history] = await Promise.all([
        getJson(this.path, {}, this.page.signal),
        getJson(`${this.path}/events`, query, this.page.signal),
      ]);
      byId("order-problem").replaceChildren();
      this.#current = current;
      this.#addEntries(history.events, history.rejections);
      await this.#draw();
      byId("order-body").hidden = false;
    } catch (error) {
      problem = error;
      this.page.handleError(error, () => this.#showProblem(error));
    }
    if (!this.page.signal.aborted) byId("order").setAttribute("aria-busy", "false");
    return problem;
  }

  /** Show the order as it was at a version; 0 is now. */
  select(version) {
    const link = byId("current-version");
    if (document.activeElement === link && version === 0) byId("contents-title").focus(); // the link disappears
    this.#selected = version;
    this.#markSelected();
    if (this.#current) this.#draw();
    if (version) byId("contents-title").parentElement.scrollIntoView({ block: "nearest" });
  }

  /** Add events and refused commands to the timeline; each appears once, however often it arrives. */
  #addEntries(events, rejections) {
    const isNew = this.#entries.size > 0;
    const entries = [
      ...events.map((event) => ({ key: event.event_id, at: event.occurred_at, isEvent: true, message: event })),
      ...rejections.map((message) => ({ key: message.rejection_id, at: message.rejected_at, isEvent: false, message })),
    ].filter(({ key }) => !this.#entries.has(key));
    if (entries.length === 0) return;
    for (const entry of entries) this.#entries.set(entry.key, entry);
    this.#lastVersion = Math.max(this.#lastVersion, ...events.map(({ version }) => version));
    this.#drawTimeline(isNew);
    if (isNew) this.page.announce(entries.map(describeEntry).join("; "));
  }

  /** Draw new timeline entries: events by version, a refused command after the version at which it was refused. */
  #drawTimeline(isNew) {
    const sorted = [...this.#entries.values()].sort(
      (a, b) => a.message.version - b.message.version || b.isEvent - a.isEvent || new Date(a.at) - new Date(b.at),
    );
    const earlierEvents = [];
    for (const entry of sorted) {
      const { message, isEvent } = entry;
      entry.item ??= isEvent ? createEventEntry(message, earlierEvents, isNew) : createRefusalEntry(message, isNew);
      if (isEvent) earlierEvents.push(message);
    }
    setChildren(byId("timeline"), sorted.map(({ item }) => item));
    this.#markSelected();
  }

  #markSelected() {
    for (const link of byId("timeline").querySelectorAll("a[data-version]")) {
      if (Number(link.dataset.version) === this.#selected) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  /** Draw the selected state. */
  async #draw() {
    const version = this.#selected || this.#current.version;
    if (version !== this.#drawnVersion) {
      try {
        const isCurrent = version === this.#current.version;
        const view = isCurrent ? this.#current : await getJson(this.path, { version }, this.page.signal);
        // another version may have been selected in the meantime
        if (version !== (this.#selected || this.#current.version)) return;
        this.#drawView(view);
      } catch (error) {
        const draw = () => byId("past-version-problem").replaceChildren(createProblemBox(error, this.page.reload));
        this.page.handleError(error, draw);
        return;
      }
    }
    this.page.setTitle(`${this.#current.status} · ${this.orderId}`);
    byId("past-version").hidden = this.#selected === 0;
    const text = `This is the order as it was at version ${version} of ${this.#current.version}.`;
    byId("past-version-text").textContent = text;
  }

  #drawView(view) {
    this.#drawnVersion = view.version;
    byId("past-version-problem").replaceChildren();
    const owner = h("a", { href: `#/?${new URLSearchParams({ user_id: view.user_id })}` }, view.user_id);
    byId("order-facts").replaceChildren(
      createStatusLabel(view.status),
      ` version ${view.version} of `,
      owner,
      "’s order, created ",
      createTime(view.created_at),
    );
    byId("progress").replaceChildren(...createSteps(view));
    byId("contents").replaceChildren(...createContents(view));
  }

  /** Show a problem; an unknown order id may be a user id. */
  #showProblem(problem) {
    const box = createProblemBox(problem, this.page.reload);
    if (problem.status === 404) {
      const address = `#/?${new URLSearchParams({ user_id: this.orderId })}`;
      box.lastElementChild.append(h("a", { href: address }, `Orders of a user ${this.orderId}`));
    }
    byId("order-problem").replaceChildren(box);
  }
}

function describeEntry({ message, isEvent }) {
  const { type, version, command_type, reason } = message;
  return isEvent ? `${type}: version ${version}` : `${command_type} refused: ${reason}`;
}

/** Create the steps that an order has taken and, unless it is cancelled, the steps to come. */
function createSteps(view) {
  const steps = [
    ["created", view.created_at],
    ["paid", view.payment?.paid_at],
    ["shipped", view.shipment?.shipped_at],
    ["delivered", view.delivered_at],
    ["cancelled", view.cancellation?.cancelled_at],
  ];
  return steps
    .filter(([name, at]) => at || (name !== "cancelled" && !view.cancellation))
    .map(([name, at]) => {
      const current = name === view.status ? "step" : null;
      const step = { "data-step": name, class: at ? "done" : null, "aria-current": current };
      return h("li", step, h("strong", {}, name), " ", at ? createTime(at) : h("span", { class: "unseen" }, "not yet"));
    });
}
