/** One order: its status, its contents, and the timeline of its events and refused commands. */

import { ask } from "./api.js";
import { contentsOf } from "./contents.js";
import { byId, h, place, problemBox } from "./dom.js";
import { statusMark, time } from "./format.js";
import { follow } from "./stream.js";
import { eventEntry, refusedEntry } from "./timeline.js";
import { seldom } from "./timing.js";

const LOOK_EVERY_MS = 5000; // the stream has no refused commands
const MOST = 1000; // an order has 55 events at most
const PARTS = ["order-facts", "order-problem", "strip", "timeline", "then-problem", "contents"];

/** Show an order until `page.signal` aborts; return a function that selects the version shown, 0 for now. */
export function showOrder(page, orderId, version) {
  const order = new Order(page, orderId, version);
  order.begin();
  return (chosen) => order.select(chosen);
}

class Order {
  #now = null;
  #entries = new Map();
  #version = 0; // of the last event received
  #selected;
  #drawn = 0;

  constructor(page, orderId, version) {
    this.page = page;
    this.orderId = orderId;
    this.path = `/v1/orders/${encodeURIComponent(orderId)}`;
    this.lookSoon = seldom(() => this.look(), 200, page.signal);
    this.#selected = version;
    byId("order-name").textContent = orderId;
    byId("now").href = `#/orders/${encodeURIComponent(orderId)}`;
    byId("found").hidden = true;
    byId("then").hidden = true;
    for (const id of PARTS) byId(id).replaceChildren();
    byId("order").setAttribute("aria-busy", "true");
  }

  /** Read the order, then follow it. */
  async begin() {
    const { signal } = this.page;
    const problem = await this.look();
    if (signal.aborted) return;
    if (problem?.isFinal) {
      this.page.stands("off");
      return;
    }
    const lookIfSeen = () => document.visibilityState === "visible" && this.lookSoon();
    const looking = setInterval(lookIfSeen, LOOK_EVERY_MS);
    signal.addEventListener("abort", () => clearInterval(looking));
    follow(`${this.path}/stream`, {
      signal,
      lastEventId: String(this.#version),
      onState: (state, problem) => {
        this.page.stands(state, problem);
        if (state === "live") this.lookSoon();
      },
      onEvent: ({ data }) => {
        this.#take([JSON.parse(data)], []);
        this.lookSoon();
      },
    });
  }

  /** Read the current order and its events since the last read; return the problem, or null. */
  async look() {
    let problem = null;
    try {
      const query = { after_version: this.#version, limit: MOST, include_refused: true };
      const [now, history] = await Promise.all([
        ask(this.path, {}, this.page.signal),
        ask(`${this.path}/events`, query, this.page.signal),
      ]);
      byId("order-problem").replaceChildren();
      this.#now = now;
      this.#take(history.events, history.rejections);
      await this.#draw();
      byId("found").hidden = false;
    } catch (error) {
      problem = error;
      this.page.fault(error, () => this.#showProblem(error));
    }
    if (!this.page.signal.aborted) byId("order").setAttribute("aria-busy", "false");
    return problem;
  }

  /** Show the order as it was at a version; 0 is now. */
  select(version) {
    if (document.activeElement === byId("now") && version === 0) byId("contents-title").focus(); // the link disappears
    this.#selected = version;
    this.#markSelected();
    if (this.#now) this.#draw();
    if (version) byId("contents-title").parentElement.scrollIntoView({ block: "nearest" });
  }

  /** Add events and refused commands to the timeline; each appears once, however often it arrives. */
  #take(events, rejections) {
    const isNews = this.#entries.size > 0;
    const entries = [
      ...events.map((event) => ({ key: event.event_id, at: event.occurred_at, isEvent: true, message: event })),
      ...rejections.map((one) => ({ key: one.rejection_id, at: one.rejected_at, isEvent: false, message: one })),
    ].filter(({ key }) => !this.#entries.has(key));
    if (entries.length === 0) return;
    for (const entry of entries) this.#entries.set(entry.key, entry);
    this.#version = Math.max(this.#version, ...events.map(({ version }) => version));
    this.#drawTimeline(isNews);
    if (isNews) this.page.tell(entries.map(newsOf).join("; "));
  }

  /** Draw new timeline entries: events by version, a refused command after the version at which it was refused. */
  #drawTimeline(isNews) {
    const sorted = [...this.#entries.values()].sort(
      (a, b) => a.message.version - b.message.version || b.isEvent - a.isEvent || new Date(a.at) - new Date(b.at),
    );
    const before = [];
    for (const entry of sorted) {
      const { message, isEvent } = entry;
      entry.item ??= isEvent ? eventEntry(message, before, isNews) : refusedEntry(message, isNews);
      if (isEvent) before.push(message);
    }
    place(byId("timeline"), sorted.map(({ item }) => item));
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
    const version = this.#selected || this.#now.version;
    if (version !== this.#drawn) {
      try {
        const isNow = version === this.#now.version;
        const view = isNow ? this.#now : await ask(this.path, { version }, this.page.signal);
        if (version !== (this.#selected || this.#now.version)) return; // another version was selected in the meantime
        this.#drawView(view);
      } catch (error) {
        this.page.fault(error, () => byId("then-problem").replaceChildren(problemBox(error, this.page.again)));
        return;
      }
    }
    this.page.name(`${this.#now.status} · ${this.orderId}`);
    byId("then").hidden = this.#selected === 0;
    byId("then-said").textContent = `This is the order as it was at version ${version} of ${this.#now.version}.`;
  }

  #drawView(view) {
    this.#drawn = view.version;
    byId("then-problem").replaceChildren();
    const owner = h("a", { href: `#/?${new URLSearchParams({ user_id: view.user_id })}` }, view.user_id);
    byId("order-facts").replaceChildren(
      statusMark(view.status),
      ` version ${view.version} of `,
      owner,
      "’s order, created ",
      time(view.created_at),
    );
    byId("strip").replaceChildren(...stepsOf(view));
    byId("contents").replaceChildren(...contentsOf(view));
  }

  /** Show a problem; an unknown order id may be a user id. */
  #showProblem(problem) {
    const box = problemBox(problem, this.page.again);
    if (problem.status === 404) {
      const address = `#/?${new URLSearchParams({ user_id: this.orderId })}`;
      box.lastElementChild.append(h("a", { href: address }, `Orders of a user ${this.orderId}`));
    }
    byId("order-problem").replaceChildren(box);
  }
}

function newsOf({ message, isEvent }) {
  const { type, version, command_type, reason } = message;
  return isEvent ? `${type}: version ${version}` : `${command_type} refused: ${reason}`;
}

/** Create the steps that an order has taken and, unless it is cancelled, the steps to come. */
function stepsOf(view) {
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
      return h("li", step, h("strong", {}, name), " ", at ? time(at) : h("span", { class: "unseen" }, "not yet"));
    });
}
