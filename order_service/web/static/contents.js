/** The contents of an order: lines, sums, facts and metadata. */

import { h } from "./dom.js";
import { lineAmount, MILLISECONDS, money, time, words } from "./format.js";

/** Create the elements that show a state of an order. */
export function contentsOf(view) {
  const lines = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Lines" }, linesOf(view));
  return [lines, factsOf(view), ...metadataOf(view), jsonOf(view)];
}

/** Create a foldable view of a value as JSON. */
export function jsonOf(value) {
  const text = h("pre", { tabindex: "0", role: "group", "aria-label": "JSON" }, JSON.stringify(value, null, 2));
  return h("details", {}, h("summary", {}, "JSON"), text);
}

/** Create an id, in a font whose letters are easy to distinguish. */
export const id = (text) => h("span", { class: "id" }, text);

/** Create a list of names with values; empty values are left out. */
export function pairs(kind, all) {
  const given = all.filter(([, value]) => value);
  return h("dl", { class: kind }, given.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function linesOf(view) {
  const rest = [["Discount", -view.discount], ["Tax", view.tax], ["Shipping", view.shipping]];
  const sums = [
    ["Subtotal", view.lines.reduce((sum, line) => sum + lineAmount(line), 0n)],
    ...rest.filter(([, amount]) => amount !== 0),
    ["Total", view.total],
  ];
  const heads = ["Line", "Article"].map((name) => h("th", { scope: "col" }, name));
  const numbers = ["Quantity", "Price", "Amount"].map((name) => h("th", { scope: "col", class: "number" }, name));
  return h(
    "table",
    { class: "lines" },
    h("caption", { class: "unseen" }, "Lines of the order"),
    h("thead", {}, h("tr", {}, heads, numbers)),
    h("tbody", {}, view.lines.map((line) => lineRow(line, view.currency))),
    h("tfoot", {}, sums.map(([name, amount]) => sumRow(name, money(amount, view.currency)))),
  );
}

function lineRow(line, currency) {
  const name = line.name ? h("span", { class: "name" }, line.name) : null;
  const numbers = [String(line.quantity), money(line.unit_price, currency), money(lineAmount(line), currency)];
  return h(
    "tr",
    {},
    h("th", { scope: "row", class: "id" }, line.line_id),
    h("td", {}, name, id(line.sku)),
    numbers.map((number) => h("td", { class: "number" }, number)),
  );
}

function sumRow(name, amount) {
  const row = h("tr", {}, h("th", { scope: "row", colspan: "4" }, name), h("td", { class: "number" }, amount));
  row.classList.toggle("total", name === "Total");
  return row;
}

function factsOf(view) {
  const { payment, shipment, cancellation, currency } = view;
  const at = (iso) => time(iso, MILLISECONDS);
  return pairs("facts", [
    ["Payment", payment && [`${money(payment.amount, currency)}, `, id(payment.payment_id), ", ", at(payment.paid_at)]],
    ["Shipment", shipment && [shipment.carrier, ", ", id(shipment.tracking_number), ", ", at(shipment.shipped_at)]],
    ["Delivered", view.delivered_at && at(view.delivered_at)],
    ["Cancelled", cancellation && [`${words(cancellation.reason)}, `, at(cancellation.cancelled_at)]],
    ["Note", cancellation?.note],
    ["Refund due", cancellation && money(cancellation.refund_due, currency)],
    ["Address", view.shipping_address_ref && id(view.shipping_address_ref)],
  ]);
}

/** Create the metadata in a list of its own: callers choose its names, which can equal the name of a fact. */
function metadataOf(view) {
  const all = Object.entries(view.metadata);
  return all.length ? [h("h3", {}, "Metadata"), pairs("facts metadata", all)] : [];
}
