/** Money, times and words formatted for people. */

import { h } from "./dom.js";

/**
 * The number of minor-unit digits of currencies where it is not two. Source: ISO 4217, list one.
 * Browsers use other data: they print HUF or COP without the digits that the standard, and so this service, counts
 * in, and would show amounts a hundred times too large.
 */
const DIGITS = new Map(
  Object.entries({
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
  }).flatMap(([digits, codes]) => codes.split(" ").map((code) => [code, Number(digits)])),
);

/** Format whole minor units (a number or a BigInt); exact, because the formatter reads the digits as text. */
export function formatMoney(minorUnits, currency) {
  const digits = DIGITS.get(currency) ?? 2;
  const options = { style: "currency", currency, minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(undefined, options).format(`${minorUnits}e-${digits}`);
}

/** Return the amount of a line as a BigInt, because it can exceed the exact range of a number. */
export const computeLineAmount = ({ quantity, unit_price }) => BigInt(quantity) * BigInt(unit_price);

/** Format a time in the user's time zone: `2026-11-24T09:13:32.581`. */
export function formatLocalTime(iso) {
  const date = new Date(iso);
  return new Date(date.getTime() - 60_000 * date.getTimezoneOffset()).toISOString().slice(0, -1);
}

/** Create a time in the user's time zone, to the second or the millisecond; its title is in UTC. */
export function createTime(iso, length = "2026-11-24 09:13:32".length) {
  return h("time", { datetime: iso, title: iso }, formatLocalTime(iso).replace("T", " ").slice(0, length));
}

export const MILLISECONDS = "2026-11-24 09:13:32.581".length;

const UNITS = [[86_400_000, "d"], [3_600_000, "h"], [60_000, "min"], [1000, "s"]];

/** Format the difference between two times: `+134 ms`, `+2.5 h`. */
export function formatDelay(iso, since) {
  const ms = new Date(iso) - new Date(since);
  const [size, unit] = UNITS.find(([unitMs]) => ms >= unitMs) ?? [1, "ms"];
  return `+${Number((ms / size).toFixed(1))} ${unit}`;
}

/** Create a status label; the style sheet gives it its colour. */
export const createStatusLabel = (status) => h("span", { class: "status", "data-status": status }, status);

/** Format `payment_timeout` as words. */
export const formatWords = (name) => name.replaceAll("_", " ");
