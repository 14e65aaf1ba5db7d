// Tokens in the colour of log p - log q, with their numbers in one small window.

const EDGES = [0.25, 1, 2, 4]; // nats
const shade = (difference) => Math.sign(difference) * EDGES.filter((edge) => Math.abs(difference) >= edge).length;

// Elements: the text, and what unfolds it where it has more than `long` characters.
function tokenText([pieces, differences, logQ], long) {
  let length = 0;
  const folded = pieces.findIndex((piece) => (length += piece.length) > long);
  const make = (piece, index) => {
    const difference = differences[index];
    const span = el("span", { class: "token" + (difference == null ? "" : ` d${shade(difference)}`), tabindex: index ? -1 : 0 }, piece);
    const log = (value) => number(value, 2);
    span.tip = difference == null ? `“${piece}”\nno value` :
      `“${piece}”\nlog p − log q = ${log(difference)}\nlog p ${log(logQ[index] + difference)}   log q ${log(logQ[index])}`;
    span.setAttribute("aria-label", span.tip.replaceAll("\n", ", "));
    span.setAttribute("role", "img");
    return span;
  };
  const spans = (folded < 0 ? pieces : pieces.slice(0, folded)).map(make);
  const text = el("p", { class: "text", dir: "auto", role: "group", "aria-label": "Tokens; arrow keys move" }, ...spans);
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    const from = spans.indexOf(document.activeElement);
    if (!step || from < 0) return;
    event.preventDefault();
    spans[from].tabIndex = -1;
    const to = spans[Math.max(0, Math.min(spans.length - 1, from + step))];
    to.tabIndex = 0;
    to.focus();
  });
  if (folded < 0) return [text];
  const more = el("button", { type: "button", class: "more" }, `Show all ${pieces.length.toLocaleString("en")} tokens`);
  more.addEventListener("click", () => {
    const rest = pieces.slice(folded).map((piece, index) => make(piece, folded + index));
    spans.push(...rest);
    text.append(...rest);
    more.remove();
  });
  return [text, more];
}

function tokenLegend(target) {
  const names = ["≤ −4", "−2", "−1", "−¼", "0", "¼", "1", "2", "≥ 4"];
  const steps = names.map((name, index) => el("li", { class: index === 4 ? null : `d${index - 4}` }, name));
  target.replaceChildren("less likely under the teacher", el("ol", { "aria-label": "log p − log q in nats" }, ...steps),
    "more likely; log p − log q, nats");
}

function tips(area) {
  function show(event) {
    const token = event.target.closest?.(".token");
    if (token) tipAt(token.getClientRects()[0] ?? token.getBoundingClientRect(), token.tip);
  }
  for (const name of ["mouseover", "focusin"]) area.addEventListener(name, show);
  for (const name of ["mouseout", "focusout"]) area.addEventListener(name, hideTip);
  addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
  addEventListener("scroll", hideTip, { passive: true });
}
