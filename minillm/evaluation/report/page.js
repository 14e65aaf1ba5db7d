"use strict";
// Texts of models and files only ever become text nodes.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const number = (value, digits) => (value == null ? "–" : value.toFixed(digits).replace("-", "−"));

// A name may go on in the next line behind these characters.
const foldable = (name) => name.split(/(?<=[_/.-])/).flatMap((part) => [part, el("wbr")]);

function choice(label, name, options, onchange) {
  const select = el("select", { name }, ...options.map(([value, text]) => el("option", { value }, text)));
  select.addEventListener("change", onchange);
  return el("label", {}, label, select);
}

function segments(label, name, options, onchange) {
  const buttons = options.map((text, index) => {
    const input = el("input", { type: "radio", name, value: index, checked: index === 0 });
    input.addEventListener("change", onchange);
    return el("label", {}, input, el("span", {}, text));
  });
  return el("fieldset", {}, el("legend", {}, label), el("div", { class: "segments" }, ...buttons));
}

// One small window for numbers, below a box of the screen or, where there is no room, above it.
const tip = document.getElementById("tip");
const hideTip = () => { tip.hidden = true; };
function tipAt(box, ...children) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8));
  const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(4, box.top - tip.offsetHeight - 6)}px`;
}

function results(table) {
  const form = document.getElementById("table-controls");
  const target = document.getElementById("results-table");
  form.addEventListener("submit", (event) => event.preventDefault());
  const options = table.figures.map((figure, index) => [index, figure.name]);
  form.append(choice("Figure", "figure", options, draw));
  if (table.decodings.length > 1) form.append(segments("Decoding", "decoding", table.decodings, draw));

  function cell(values, digits, best) {
    if (!values || values[0] == null) return el("td", {}, "–");
    const [mean, deviation, low, high] = values;
    const interval = low == null ? null : `[${number(low, digits)}, ${number(high, digits)}]`;
    return el(
      "td", {},
      el("span", { class: best ? "best" : null }, number(mean, digits)),
      deviation == null ? null : el("span", { class: "deviation" }, ` ± ${number(deviation, digits)}`),
      interval && el("span", { class: "interval" }, interval),
    );
  }

  function draw() {
    const figure = table.figures[form.elements.figure.value];
    const decoding = table.decodings[Number(form.elements.decoding?.value ?? 0)];
    const rows = table.cells[decoding][figure.key] ?? table.models.map(() => table.files.map(() => null));
    const sizes = table.files.map((_, column) => Math.max(0, ...rows.map((row) => row[column]?.[4] ?? 0)));
    const better = { 1: ", higher is better", 0: "", "-1": ", lower is better" }[figure.better];
    const head = table.files.map((file, column) =>
      el("th", { scope: "col" }, file, el("small", {}, sizes[column] ? `n = ${sizes[column]}` : "not measured")));
    const best = table.best[decoding][figure.key] ?? table.files.map(() => []);
    const body = table.models.flatMap((model, index) => {
      const line = el("tr", { class: model.role === "teacher" ? "teacher" : null }, el("th", { scope: "row" }, ...foldable(model.label)),
        ...rows[index].map((values, column) => cell(values, figure.digits, best[column].includes(index))));
      const paper = figure.key === "rouge_l" && table.published[index];
      if (!paper) return [line];
      const values = paper.values.map((value) => el("td", {}, number(value, 1)));
      return [line, el("tr", { class: "published" }, el("th", { scope: "row" }, `published: ${paper.name}`), ...values)];
    });
    target.replaceChildren(
      el("caption", {}, `${figure.name}${better}; decoding ${decoding}`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Model"), ...head)),
      el("tbody", {}, ...body),
    );
  }
  draw();
}

function contents() {
  const links = [...document.querySelectorAll("nav a")];
  const sections = links.map((link) => document.querySelector(link.getAttribute("href")));
  function mark() {
    const current = sections.findLastIndex((section) => section.getBoundingClientRect().top < innerHeight / 3);
    links.forEach((link, index) => index === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"));
  }
  addEventListener("scroll", mark, { passive: true });
  mark();
}
