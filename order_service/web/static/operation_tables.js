/** The tables of the operator's page. A cell whose value is unchanged stays, so that focus and selection stay. */

import { BASE_PATH } from "./api.js";
import { byId, h, setChildren } from "./dom.js";
import { createTime } from "./format.js";

const UNITS = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
const LETTERS_MAX = 20; // the server lists no more
const tables = new Map();

/** Show what needs attention, each with the page that says what to do. */
export function showFindings({ findings, notes }) {
  byId("no-findings").hidden = findings.length + notes.length > 0;
  showItems("findings", findings.map(({ text, page }) => [text, page]), ([text, page]) => [text, " ", createPage(page)]);
  showItems("notes", notes, (text) => [text]);
}

/** Show all tables. */
export function showTables({ at, lanes, processes, refusals, dead_letter_reasons, dead_letters, waiting }) {
  showRows("lanes", lanes, ({ partition }) => partition, (lane) => [
    createHead(lane.partition, "number"),
    createState(lane.state),
    createNumber(lane.lag),
    createNumber(lane.waiting),
    createNumber(lane.position),
    createId(lane.worker),
    createId(lane.standby, "id standby"),
    createMoment(lane.since),
    createText(lane.reason),
  ]);
  byId("lanes-table").classList.toggle("without-standbys", !lanes.some(({ standby }) => standby));
  showRows("processes", processes, ({ address }) => address, (process) => [
    createHead(process.address, "id"),
    createText(process.component),
    createText(process.versions.join(", ")),
    createNumber(process.process_count || null),
    createState(process.state),
    createText(process.reasons.join("; ")),
  ]);
  showRows("refusals", refusals, ({ reason }) => reason, ({ reason, count }) => [
    createHead(reason, "id"),
    createNumber(count),
  ]);
  byId("refusals-facts").textContent = refusals.length ? "" : "No command was refused in the last hour.";
  byId("refusals-table").hidden = refusals.length === 0;
  showWaiting(waiting, Date.parse(at));
  showLetters(dead_letters, dead_letter_reasons);
}

function showWaiting(waiting, now) {
  const users = waiting?.users ?? [];
  byId("waiting-facts").textContent = describeWaiting(waiting);
  byId("waiting-table").hidden = users.length === 0;
  showRows("waiting", users, ({ user_id, order_id }) => user_id ?? `\0${order_id}`, (user) => [
    user.user_id === null ? createHead("a create that was decided") : createHead(createUserLink(user.user_id), "id", user.user_id),
    createNumber(user.command_count),
    [user.since, () => h("td", { class: "number" }, h("time", { datetime: user.since, title: user.since })), (cell) => {
      cell.firstElementChild.textContent = formatAge((now - Date.parse(user.since)) / 1000);
    }],
    [user.order_id, () => h("td", { class: "id" }, createOrderLink(user.order_id))],
  ]);
}

function describeWaiting(waiting) {
  if (waiting === null) return "It is being read.";
  const { is_complete, command_count, user_count, users } = waiting;
  const more = user_count > users.length ? `; the ${users.length} that wait longest are listed` : "";
  const facts = command_count === 0 ? "No command waits" : `${count(command_count, "command")} of ${count(user_count, "user")}${more}`;
  return is_complete ? `${facts}.` : `${facts} so far; it is still being read.`;
}

function showLetters(letters, reasons) {
  byId("letters-facts").textContent = describeLetters(letters, reasons);
  byId("letters-table").hidden = !letters?.length;
  showRows("letters", letters ?? [], ({ id }) => id, (letter) => [
    createHead(letter.id, "id"),
    createMoment(letter.at),
    [[letter.reason, letter.detail], () => h("td", {}, letter.reason, letter.detail ? h("span", { class: "detail" }, letter.detail) : null)],
    [letter.order_id, () => h("td", { class: "id" }, letter.order_id ? createOrderLink(letter.order_id) : "unknown")],
    createId(letter.command),
    createText(letter.state),
  ]);
}

function describeLetters(letters, reasons) {
  const recent = reasons.map(({ reason, count }) => `${reason} ${count}`).join(", ");
  const facts = recent ? `In the last hour: ${recent}.` : "None in the last hour.";
  if (letters === null) return `${facts} The newest ones are being read.`;
  if (letters.length === 0) return `${facts} There are none.`;
  return letters.length === LETTERS_MAX ? `${facts} The newest ${LETTERS_MAX} are listed.` : facts;
}

/** Show rows. `createCells` returns for each cell its value, how it is created, and perhaps what is updated always. */
function showRows(id, items, keyOf, createCells) {
  const before = tables.get(id) ?? new Map();
  const rows = new Map();
  for (const item of items) {
    const row = before.get(keyOf(item)) ?? { element: h("tr"), values: [] };
    createCells(item).forEach(([value, create, update], index) => {
      const text = JSON.stringify(value);
      if (row.values[index] !== text) {
        const old = row.element.children[index];
        const cell = create();
        if (old) old.replaceWith(cell);
        else row.element.append(cell);
        row.values[index] = text;
      }
      update?.(row.element.children[index]);
    });
    rows.set(keyOf(item), row);
  }
  tables.set(id, rows);
  setChildren(byId(id), [...rows.values()].map(({ element }) => element));
}

function showItems(id, items, createParts) {
  const before = tables.get(id) ?? new Map();
  const elements = new Map(items.map((item) => {
    const key = JSON.stringify(item);
    return [key, before.get(key) ?? h("li", {}, createParts(item))];
  }));
  tables.set(id, elements);
  setChildren(byId(id), [...elements.values()]);
}

const createHead = (content, className = null, value = content) =>
  [value, () => h("th", { scope: "row", class: className }, typeof content === "number" ? String(content) : content)];
const createText = (text) => [text, () => h("td", {}, text)];
const createId = (text, className = "id") => [text, () => h("td", { class: className }, text ?? "–")];
const createNumber = (number) => [number, () => h("td", { class: "number" }, number?.toLocaleString() ?? "–")];
const createMoment = (iso) => [iso, () => h("td", {}, iso ? createTime(iso) : "")];
const createState = (state) => [state, () => h("td", {}, h("span", { class: "state", "data-state": state }, state))];
const createOrderLink = (id) => h("a", { href: `${BASE_PATH}/#/orders/${encodeURIComponent(id)}` }, id);
const createUserLink = (id) => h("a", { href: `${BASE_PATH}/#/?${new URLSearchParams({ user_id: id })}` }, id);
const count = (number, noun) => `${number.toLocaleString()} ${noun}${number === 1 ? "" : "s"}`;

/** Create a link to a page of the documents; without their URL, its path in them. */
function createPage(page) {
  if (page === "") return null;
  if (/^https?:/.test(page)) return h("a", { href: page, rel: "noreferrer" }, "What to do");
  return h("code", {}, `docs/${page}`);
}

function formatAge(seconds) {
  const [size, unit] = UNITS.find(([unitS]) => seconds >= unitS) ?? [1, "s"];
  return `${Math.max(0, Math.floor(seconds / size))} ${unit}`;
}
