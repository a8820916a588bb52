/** Small charts of the last hour: a line with gaps, its scale in words, and the same as a table. */

import { h, setChildren } from "./dom.js";
import { formatLocalTime } from "./format.js";

const WIDTH = 600;
const HEIGHT = 120;
const ROWS = 12; // of the table: one for five minutes
const SVG = "http://www.w3.org/2000/svg";

/**
 * Show one field of the points in a box. `what` completes its description: "12 commands are not decided". `current` is
 * the value above the line, null if it is unknown, and `when` says of what time it is.
 */
export function showChart(box, points, field, { what, current, when, format }) {
  const values = points.map((point) => point[field]);
  const known = values.filter((value) => value !== null);
  if (known.length === 0) {
    setChildren(box, [h("p", { class: "hint" }, "There are no figures yet.")]);
    return;
  }
  const most = Math.max(...known);
  const value = current === null ? "unknown" : format(current);
  const highest = `at most ${format(most)} in the last hour`;
  const details = box.querySelector("details") ?? createDetails(what); // it stays open
  details.querySelector("tbody").replaceChildren(...createRows(points, field, format));
  setChildren(box, [
    h("p", { class: "big" }, h("strong", {}, value), " ", h("span", {}, `${when}, ${highest}`)),
    createDrawing(values, most, `So many ${what}: ${value} ${when}, ${highest}.`),
    h("p", { class: "axis", "aria-hidden": "true" }, ...createAxis(points)),
    details,
  ]);
}

function createDrawing(values, most, label) {
  const drawing = svg("svg", {
    class: "chart", role: "img", "aria-label": label, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none",
  });
  const x = (index) => round((index / Math.max(1, values.length - 1)) * WIDTH);
  for (const segment of splitAtGaps(values)) {
    const path = segment.map(([index, value]) => `${x(index)} ${scale(value, most)}`).join(" L ");
    const [first, end] = [x(segment[0][0]), x(segment.at(-1)[0])];
    drawing.append(svg("path", { class: "area", d: `M ${first} ${HEIGHT} L ${path} L ${end} ${HEIGHT} Z` }));
    drawing.append(svg("path", { class: "line", d: segment.length > 1 ? `M ${path}` : `M ${path} h 0.1` }));
  }
  return drawing;
}

/** Split values into runs of known ones, as [index, value]. */
export function splitAtGaps(values) {
  const segments = [];
  values.forEach((value, index) => {
    if (value === null) return;
    if (values[index - 1] === null || values[index - 1] === undefined) segments.push([]);
    segments.at(-1).push([index, value]);
  });
  return segments;
}

/** Return the largest value of each of `count` spans, null where nothing is known. */
export function summarize(points, field, count) {
  const size = Math.ceil(points.length / count);
  return Array.from({ length: Math.ceil(points.length / size) }, (_, index) => {
    const span = points.slice(index * size, (index + 1) * size);
    const known = span.map((point) => point[field]).filter((value) => value !== null);
    return { at: span.at(-1).at, value: known.length ? Math.max(...known) : null };
  });
}

function createAxis(points) {
  const middle = points[Math.floor((points.length - 1) / 2)];
  return [points[0], middle, points.at(-1)].map(({ at }) => h("span", {}, formatTime(at)));
}

function createDetails(what) {
  const heads = [h("th", { scope: "col" }, "Up to"), h("th", { scope: "col", class: "number" }, "At most")];
  const caption = h("caption", { class: "unseen" }, `How many ${what}, at most in five minutes`);
  const table = h("table", {}, caption, h("thead", {}, h("tr", {}, heads)), h("tbody"));
  return h("details", {}, h("summary", {}, "As a table"), table);
}

function createRows(points, field, format) {
  return summarize(points, field, ROWS).map(({ at, value }) => {
    const number = h("td", { class: "number" }, value === null ? "–" : format(value));
    return h("tr", {}, h("th", { scope: "row" }, formatTime(at)), number);
  });
}

const formatTime = (iso) => formatLocalTime(iso).slice(11, 16);
const round = (number) => Math.round(number * 10) / 10;
const scale = (value, most) => round(HEIGHT - 4 - (most > 0 ? (value / most) * (HEIGHT - 12) : 0));

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
