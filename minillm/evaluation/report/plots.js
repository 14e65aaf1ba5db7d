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
