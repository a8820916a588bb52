/** The timeline of an order: what changed, when, by whom, and at which offset in Kafka. */

import { id, jsonOf, pairs } from "./contents.js";
import { h, problemLink } from "./dom.js";
import { later, MILLISECONDS, money, time, words } from "./format.js";

const LINES_SHOWN = 3;

/** Create the entry of an event; `before` holds the earlier events. */
export function eventEntry(event, before, isNews) {
  const since = before.length ? later(event.occurred_at, before.at(-1).occurred_at) : "";
  const place = [["partition", id(String(event.partition))], ["offset", id(String(event.offset))]];
  return entry(event, isNews ? "news" : null, linkTo(event), since, event.occurred_at, changeOf(event, before), place);
}

/** Create the entry of a refused command. */
export function refusedEntry(rejection, isNews) {
  const { command_type, reason, detail, version, rejected_at } = rejection;
  const why = [problemLink(`/problems/${reason}`, reason), detail && `: ${detail}`, ` (at version ${version})`];
  const title = h("strong", {}, `${command_type} refused`);
  return entry(rejection, isNews ? "refused news" : "refused", title, "", rejected_at, why, []);
}

function entry(message, kind, title, since, at, what, place) {
  const meta = [
    ["actor", id(message.actor)],
    ...place,
    ["command", id(message.command_id)],
    ["correlation", message.correlation_id && id(message.correlation_id)],
  ];
  return h(
    "li",
    { class: kind, "data-type": message.type },
    h("p", { class: "head" }, title, h("span", { class: "at" }, since && `${since} · `, time(at, MILLISECONDS))),
    h("p", { class: "what" }, what),
    pairs("meta", meta),
    jsonOf(message),
  );
}

function linkTo({ order_id, version, type }) {
  const address = `#/orders/${encodeURIComponent(order_id)}?version=${version}`;
  const number = h("span", { class: "version" }, h("span", { class: "unseen" }, "version "), String(version));
  return h("a", { href: address, "data-version": String(version) }, number, " ", type);
}

/** Return a text of what an event changed. */
function changeOf(event, before) {
  switch (event.type) {
    case "OrderCreated":
      return `${event.user_id} orders ${linesText(event)}; total ${money(event.total, event.currency)}`;
    case "OrderAmended":
      return amendedText(before.findLast(({ lines }) => lines), event);
    case "OrderPaid":
      return `${money(event.amount, event.currency)}, payment ${event.payment_id}`;
    case "OrderShipped":
      return `${event.carrier}, ${event.tracking_number}`;
    case "OrderCancelled": {
      const refund = `refund due ${money(event.refund_due, before[0].currency)}`;
      return [words(event.reason), event.note, refund].filter(Boolean).join("; ");
    }
    default:
      return "";
  }
}

/** Return a text of the differences between two states of an order. */
function amendedText(was, is) {
  const amount = (name) => `${name} ${money(was[name], was.currency)} → ${money(is[name], is.currency)}`;
  const said = {
    lines: `lines now ${linesText(is)}`,
    shipping_address_ref: `address ${was.shipping_address_ref ?? "none"} → ${is.shipping_address_ref ?? "none"}`,
    metadata: `metadata ${JSON.stringify(was.metadata)} → ${JSON.stringify(is.metadata)}`,
    discount: amount("discount"),
    tax: amount("tax"),
    shipping: amount("shipping"),
    total: amount("total"),
  };
  const differs = (name) => JSON.stringify(was[name]) !== JSON.stringify(is[name]);
  return Object.keys(said).filter(differs).map((name) => said[name]).join("; ") || "nothing changed";
}

function linesText({ lines, currency }) {
  const some = lines.slice(0, LINES_SHOWN);
  const said = some.map(({ quantity, sku, unit_price }) => `${quantity} × ${sku} at ${money(unit_price, currency)}`);
  const rest = lines.length - some.length;
  return said.join(", ") + (rest ? ` and ${rest} more` : "");
}
