/** The contents of an order: lines, sums, facts and metadata. */

import { h } from "./dom.js";
import { computeLineAmount, createTime, formatMoney, formatWords, MILLISECONDS } from "./format.js";

/** Create the elements that show a state of an order. */
export function createContents(view) {
  const attributes = { class: "scroll", tabindex: "0", role: "group", "aria-label": "Lines" };
  const lines = h("div", attributes, createLineTable(view));
  return [lines, createFacts(view), ...createMetadata(view), createJsonView(view)];
}

/** Create a foldable view of a value as JSON. */
export function createJsonView(value) {
  const text = h("pre", { tabindex: "0", role: "group", "aria-label": "JSON" }, JSON.stringify(value, null, 2));
  return h("details", {}, h("summary", {}, "JSON"), text);
}

/** Create an id, in a font whose letters are easy to distinguish. */
export const createId = (text) => h("span", { class: "id" }, text);

/** Create a list of names with values; empty values are left out. */
export function createPairs(className, pairs) {
  const present = pairs.filter(([, value]) => value);
  const rows = present.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));
  return h("dl", { class: className }, rows);
}

function createLineTable(view) {
  const adjustments = [["Discount", -view.discount], ["Tax", view.tax], ["Shipping", view.shipping]];
  const sums = [
    ["Subtotal", view.lines.reduce((sum, line) => sum + computeLineAmount(line), 0n)],
    ...adjustments.filter(([, amount]) => amount !== 0),
    ["Total", view.total],
  ];
  const textHeads = ["Line", "Article"].map((name) => h("th", { scope: "col" }, name));
  const numberHeads = ["Quantity", "Price", "Amount"].map((name) => h("th", { scope: "col", class: "number" }, name));
  return h(
    "table",
    { class: "lines" },
    h("caption", { class: "unseen" }, "Lines of the order"),
    h("thead", {}, h("tr", {}, textHeads, numberHeads)),
    h("tbody", {}, view.lines.map((line) => createLineRow(line, view.currency))),
    h("tfoot", {}, sums.map(([name, amount]) => createSumRow(name, formatMoney(amount, view.currency)))),
  );
}

function createLineRow(line, currency) {
  const name = line.name ? h("span", { class: "name" }, line.name) : null;
  const amounts = [line.unit_price, computeLineAmount(line)].map((amount) => formatMoney(amount, currency));
  const numbers = [String(line.quantity), ...amounts];
  return h(
    "tr",
    {},
    h("th", { scope: "row", class: "id" }, line.line_id),
    h("td", {}, name, createId(line.sku)),
    numbers.map((number) => h("td", { class: "number" }, number)),
  );
}

function createSumRow(name, amount) {
  const row = h("tr", {}, h("th", { scope: "row", colspan: "4" }, name), h("td", { class: "number" }, amount));
  row.classList.toggle("total", name === "Total");
  return row;
}

function createFacts(view) {
  const { payment, shipment, cancellation, currency } = view;
  const createTimestamp = (iso) => createTime(iso, MILLISECONDS);
  return createPairs("facts", [
    ["Payment", payment && [
      formatMoney(payment.amount, currency), ", ", createId(payment.payment_id), ", ", createTimestamp(payment.paid_at),
    ]],
    ["Shipment", shipment && [
      shipment.carrier, ", ", createId(shipment.tracking_number), ", ", createTimestamp(shipment.shipped_at),
    ]],
    ["Delivered", view.delivered_at && createTimestamp(view.delivered_at)],
    ["Cancelled", cancellation && [
      formatWords(cancellation.reason), ", ", createTimestamp(cancellation.cancelled_at),
    ]],
    ["Note", cancellation?.note],
    ["Refund due", cancellation && formatMoney(cancellation.refund_due, currency)],
    ["Address", view.shipping_address_ref && createId(view.shipping_address_ref)],
  ]);
}

/** Create the metadata in a list of its own: callers choose its names, which can equal the name of a fact. */
function createMetadata(view) {
  const pairs = Object.entries(view.metadata);
  return pairs.length ? [h("h3", {}, "Metadata"), createPairs("facts metadata", pairs)] : [];
}
