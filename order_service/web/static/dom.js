/** DOM elements. Text from the service becomes text nodes and attributes, never markup. */

import { BASE_PATH } from "./api.js";

export const byId = (id) => document.getElementById(id);

/** Create an element; null attributes are left out, children are elements, texts or null. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== ""));
  return element;
}

/** Set the children of a parent, in this order; existing ones are not moved needlessly, so that focus stays. */
export function setChildren(parent, children) {
  const childSet = new Set(children);
  for (const child of [...parent.children]) {
    if (!childSet.has(child)) child.remove();
  }
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
}

/** Create a box that shows a problem, with a button to try again. */
export function createProblemBox(problem, retry = null) {
  const box = h(
    "div",
    { class: "problem", role: "alert" },
    h("p", {}, h("strong", {}, problem.title)),
    h("p", {}, problem.detail),
    problem.errors.length ? h("ul", {}, problem.errors.map(createFaultItem)) : null,
    h("p", { class: "actions" }, createProblemLink(problem.type, "What this means")),
  );
  if (retry) {
    const button = h("button", { type: "button" }, "Try again");
    button.addEventListener("click", retry);
    box.lastElementChild.prepend(button);
  }
  return box;
}

/** Create a link to the page of a problem type; a type from elsewhere is shown as text. */
export function createProblemLink(type, text) {
  const path = type.startsWith(`${BASE_PATH}/`) ? type.slice(BASE_PATH.length) : type;
  return /^\/problems\/[a-z_]+$/.test(path) ? h("a", { href: BASE_PATH + path }, text) : h("span", {}, type);
}

const createFaultItem = ({ pointer, detail }) => h("li", {}, h("code", {}, pointer), " ", detail);
