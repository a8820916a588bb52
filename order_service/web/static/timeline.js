/** The timeline of an order: what changed, when, by whom, and at which offset in Kafka. */

import { createId, createJsonView, createPairs } from "./contents.js";
import { createProblemLink, h } from "./dom.js";
import { createTime, formatDelay, formatMoney, formatWords, MILLISECONDS } from "./format.js";

const LINES_SHOWN = 3;

/** Create the entry of an event; `earlierEvents` are those of lower versions. */
export function createEventEntry(event, earlierEvents, isNew) {
  const delay = earlierEvents.length ? formatDelay(event.occurred_at, earlierEvents.at(-1).occurred_at) : "";
  const position = [["partition", createId(String(event.partition))], ["offset", createId(String(event.offset))]];
  const change = describeChange(event, earlierEvents);
  return createEntry(event, isNew ? "news" : null, createLink(event), delay, event.occurred_at, change, position);
}

/** Create the entry of a refused command. */
export function createRefusalEntry(rejection, isNew) {
  const { command_type, reason, detail, version, rejected_at } = rejection;
  const link = createProblemLink(`/problems/${reason}`, reason);
  const explanation = [link, detail && `: ${detail}`, ` (at version ${version})`];
  const title = h("strong", {}, `${command_type} refused`);
  return createEntry(rejection, isNew ? "refused news" : "refused", title, "", rejected_at, explanation, []);
}

function createEntry(message, className, title, delay, at, text, position) {
  const meta = [
    ["actor", createId(message.actor)],
    ...position,
    ["command", createId(message.command_id)],
    ["correlation", message.correlation_id && createId(message.correlation_id)],
  ];
  return h(
    "li",
    { class: className, "data-type": message.type },
    h("p", { class: "head" }, title, h("span", { class: "at" }, delay && `${delay} · `, createTime(at, MILLISECONDS))),
    h("p", { class: "what" }, text),
    createPairs("meta", meta),
    createJsonView(message),
  );
}

function createLink({ order_id, version, type }) {
  const address = `#/orders/${encodeURIComponent(order_id)}?version=${version}`;
  const number = h("span", { class: "version" }, h("span", { class: "unseen" }, "version "), String(version));
  return h("a", { href: address, "data-version": String(version) }, number, " ", type);
}

/** Return a text of what an event changed. */
function describeChange(event, earlierEvents) {
  switch (event.type) {
    case "OrderCreated":
      return `${event.user_id} orders ${describeLines(event)}; total ${formatMoney(event.total, event.currency)}`;
    case "OrderAmended":
      return describeAmendment(earlierEvents.findLast(({ lines }) => lines), event);
    case "OrderPaid":
      return `${formatMoney(event.amount, event.currency)}, payment ${event.payment_id}`;
    case "OrderShipped":
      return `${event.carrier}, ${event.tracking_number}`;
    case "OrderCancelled": {
      const refund = `refund due ${formatMoney(event.refund_due, earlierEvents[0].currency)}`;
      return [formatWords(event.reason), event.note, refund].filter(Boolean).join("; ");
    }
    default:
      return "";
  }
}

/** Return a text of the differences between two states of an order. */
function describeAmendment(earlier, later) {
  const formatAmount = (order, name) => formatMoney(order[name], order.currency);
  const describeAmount = (name) => `${name} ${formatAmount(earlier, name)} → ${formatAmount(later, name)}`;
  const formatAddress = (order) => order.shipping_address_ref ?? "none";
  const differences = {
    lines: `lines now ${describeLines(later)}`,
    shipping_address_ref: `address ${formatAddress(earlier)} → ${formatAddress(later)}`,
    metadata: `metadata ${JSON.stringify(earlier.metadata)} → ${JSON.stringify(later.metadata)}`,
    discount: describeAmount("discount"),
    tax: describeAmount("tax"),
    shipping: describeAmount("shipping"),
    total: describeAmount("total"),
  };
  const differs = (name) => JSON.stringify(earlier[name]) !== JSON.stringify(later[name]);
  return Object.keys(differences).filter(differs).map((name) => differences[name]).join("; ") || "nothing changed";
}

function describeLines({ lines, currency }) {
  const shownLines = lines.slice(0, LINES_SHOWN);
  const texts = shownLines.map(
    ({ quantity, sku, unit_price }) => `${quantity} × ${sku} at ${formatMoney(unit_price, currency)}`,
  );
  const hiddenCount = lines.length - shownLines.length;
  return texts.join(", ") + (hiddenCount ? ` and ${hiddenCount} more` : "");
}
