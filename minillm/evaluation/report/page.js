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

  function cell(spread, digits, best) {
    if (spread?.mean == null) return el("td", {}, "–");
    const { mean, deviation, low, high } = spread;
    const interval = low == null ? null : `[${number(low, digits)}, ${number(high, digits)}]`;
    return el(
      "td", {},
      el("span", { class: best ? "best" : null }, number(mean, digits)),
      deviation == null ? null : el("span", { class: "deviation" }, ` ± ${number(deviation, digits)}`),
      interval && el("span", { class: "interval" }, interval),
    );
  }

  // The students with the best mean as it is shown, where one way is better and not all have the same.
  function bestOf(column, figure) {
    const values = column.map((spread, index) => (table.models[index].role === "teacher" || spread?.mean == null ? null :
      Number((figure.better * spread.mean).toFixed(figure.digits))));
    const found = values.filter((value) => value != null), top = Math.max(...found);
    return values.map((value) => value === top && found.some((other) => other < top));
  }

  function draw() {
    const figure = table.figures[form.elements.figure.value];
    const at = Number(form.elements.decoding?.value ?? 0);
    const rows = table.cells[at].map((row) => row.map((figures) => figures[figure.key]));
    const columns = table.files.map((_, column) => rows.map((row) => row[column]));
    const sizes = columns.map((column) => Math.max(0, ...column.map((spread) => spread?.n ?? 0)));
    const best = columns.map((column) => bestOf(column, figure));
    const better = { 1: ", higher is better", 0: "", "-1": ", lower is better" }[figure.better];
    const head = table.files.map((file, column) =>
      el("th", { scope: "col" }, file, el("small", {}, sizes[column] ? `n = ${sizes[column]}` : "not measured")));
    const body = table.models.flatMap((model, index) => {
      const line = el("tr", { class: model.role === "teacher" ? "teacher" : null }, el("th", { scope: "row" }, ...foldable(model.label)),
        ...rows[index].map((spread, column) => cell(spread, figure.digits, best[column][index])));
      const paper = figure.key === "rouge_l" && table.published[index];
      if (!paper) return [line];
      const values = paper.values.map((value) => el("td", {}, number(value, 1)));
      return [line, el("tr", { class: "published" }, el("th", { scope: "row" }, `published: ${paper.name}`), ...values)];
    });
    target.replaceChildren(
      el("caption", {}, `${figure.name}${better}; decoding ${table.decodings[at]}`),
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

// The numbers of curves at the place that is pointed at, or that the arrow keys have reached.

function curves(name, { box: [left, right, top, bottom], limits: [low, high], x: axis, series }) {
  const svg = document.getElementById(`plot-${name}`).querySelector("svg");
  const cursor = document.createElementNS(svg.namespaceURI, "line");
  cursor.setAttribute("class", "cursor");
  const tables = series.map(({ points }) => new Map(points));
  const places = [...new Set(series.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);
  let at = -1;

  function show(index) {
    at = Math.max(0, Math.min(places.length - 1, index));
    const where = left + ((places[at] - low) / (high - low)) * (right - left);
    for (const [key, value] of Object.entries({ x1: where, x2: where, y1: top, y2: bottom })) cursor.setAttribute(key, value);
    svg.append(cursor);
    const lines = series.map(({ label, slot }, index) =>
      el("div", {}, el("span", { class: `swatch m${slot}` }), `${label}  `, el("b", {}, short(tables[index].get(places[at])))));
    const { left: start, top: from } = cursor.getBoundingClientRect();
    tipAt({ left: start, top: from, bottom: svg.getBoundingClientRect().bottom }, `${axis} ${places[at]}`, ...lines);
  }
  function hide() { cursor.remove(); hideTip(); }

  function nearest(event) {
    const frame = svg.getBoundingClientRect();
    const x = low + (((event.clientX - frame.left) / frame.width * svg.viewBox.baseVal.width - left) / (right - left)) * (high - low);
    return places.reduce((best, place, index) => (Math.abs(place - x) < Math.abs(places[best] - x) ? index : best), 0);
  }
  svg.addEventListener("pointermove", (event) => show(nearest(event)));
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    show(at + step);
  });
  svg.setAttribute("tabindex", 0);
}

const short = (value) => (value == null ? "–" : String(Number(value.toPrecision(4))).replace("-", "−"));

// A table that is wider than its place says that it scrolls.
const scrolling = new ResizeObserver((entries) => {
  for (const box of entries.map(({ target }) => target.closest(".scroll"))) {
    box.classList.toggle("wide", box.scrollWidth > box.clientWidth + 1);
  }
});
for (const node of document.querySelectorAll(".scroll, .scroll > table")) scrolling.observe(node);
