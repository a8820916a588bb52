/** Money, times and words as people read them. */

import { h } from "./dom.js";

/**
 * How many digits the minor unit of a currency has, where it is not two.
 * Source: ISO 4217, list one. What browsers know is another thing: they print HUF or COP without the digits that the
 * standard, and so this service, counts in, and would show a hundred times too much.
 */
const DIGITS = new Map(
  Object.entries({
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
  }).flatMap(([digits, codes]) => codes.split(" ").map((code) => [code, Number(digits)])),
);

/** Write whole minor units (a number or a BigInt) in a currency; exact, for the format reads the digits as text. */
export function money(minor, currency) {
  const digits = DIGITS.get(currency) ?? 2;
  const form = { style: "currency", currency, minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(undefined, form).format(`${minor}e-${digits}`);
}

/** What a line costs; it can be more than a number holds exactly. */
export const lineAmount = ({ quantity, unit_price }) => BigInt(quantity) * BigInt(unit_price);

/** Write a time in the reader's zone: `2026-11-24T09:13:32.581`. */
export function localTime(iso) {
  const date = new Date(iso);
  return new Date(date.getTime() - 60_000 * date.getTimezoneOffset()).toISOString().slice(0, -1);
}

/** Show a time in the reader's zone, to the second or the millisecond; the title has it in UTC. */
export function time(iso, length = "2026-11-24 09:13:32".length) {
  return h("time", { datetime: iso, title: iso }, localTime(iso).replace("T", " ").slice(0, length));
}

export const MILLISECONDS = "2026-11-24 09:13:32.581".length;

const UNITS = [[86_400_000, "d"], [3_600_000, "h"], [60_000, "min"], [1000, "s"]];

/** Say how much later one time is than another: `+134 ms`, `+2.5 h`. */
export function later(iso, than) {
  const ms = new Date(iso) - new Date(than);
  const [size, unit] = UNITS.find(([smallest]) => ms >= smallest) ?? [1, "ms"];
  return `+${Number((ms / size).toFixed(1))} ${unit}`;
}

/** Show a status as a word with its colour. */
export const statusMark = (status) => h("span", { class: "status", "data-status": status }, status);

/** `payment_timeout` as words. */
export const words = (name) => name.replaceAll("_", " ");
