// Tokens in the colour of log p - log q, with their numbers in one small window.

const EDGES = [0.25, 1, 2, 4]; // nats
const shade = (difference) => Math.sign(difference) * EDGES.filter((edge) => Math.abs(difference) >= edge).length;

// Elements: the text, and what unfolds it where it has more than `long` characters.
function tokenText({ tokens: pieces, log_p: logP, log_q: logQ }, long) {
  let length = 0;
  const folded = pieces.findIndex((piece) => (length += piece.length) > long);
  const make = (piece, index) => {
    const difference = logP[index] == null || logQ[index] == null ? null : logP[index] - logQ[index];
    const span = el("span", { class: "token" + (difference == null ? "" : ` d${shade(difference)}`), tabindex: index ? -1 : 0 }, piece);
    const log = (value) => number(value, 2);
    span.tip = difference == null ? `“${piece}”\nno value` :
      `“${piece}”\nlog p − log q = ${log(difference)}\nlog p ${log(logP[index])}   log q ${log(logQ[index])}`;
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

// The browser of samples: items are one prompt, decoding and seed, with the answer of each model.

const PAGE = 8; // prompts at a time
const LONG = 1500; // characters of a text before it is folded

function samples(all) {
  const form = document.getElementById("sample-controls");
  const list = document.getElementById("sample-list");
  const legend = document.getElementById("sample-legend");
  const coloured = all.tokens.length > 0;
  let shown = [], page = 0, timer;

  // Names as numbers: models and files in the order of the page, the others as they come.
  const models = new Map(all.models.map((model, index) => [model.label, index]));
  const files = new Map(all.files.map((file, index) => [file, index]));
  const numbers = (name) => [...new Set(all.answers.map((answer) => answer[name] ?? "greedy"))];
  const decodings = numbers("decoding"), seeds = numbers("seed");
  const ofPrompt = (row) => JSON.stringify([row.file, row.id]);
  const ofAnswer = (row) => JSON.stringify([row.model, row.file, row.id, row.decoding, row.seed ?? null]);
  const prompts = new Map(all.prompts.map((prompt, index) => [ofPrompt(prompt), { ...prompt, index }]));
  const tokens = new Map(all.tokens.map((row) => [ofAnswer(row), row]));
  const items = new Map();
  for (const answer of all.answers) {
    const prompt = prompts.get(ofPrompt(answer));
    const decoding = decodings.indexOf(answer.decoding), seed = seeds.indexOf(answer.seed ?? "greedy");
    const key = `${prompt.index}/${decoding}/${seed}`;
    if (!items.has(key)) items.set(key, { prompt, decoding, seed, answers: [], tokens: false });
    items.get(key).answers.push(answer);
    if (tokens.has(ofAnswer(answer))) items.get(key).tokens = true;
  }
  const ordered = [...items.values()].sort((a, b) => a.prompt.index - b.prompt.index || a.decoding - b.decoding || a.seed - b.seed);
  for (const item of ordered) item.answers.sort((a, b) => models.get(a.model) - models.get(b.model));

  const everything = (names) => [["", "all"], ...names.map((name, index) => [index, name])];
  const restart = () => { page = 0; filter(); };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.append(
    choice("Data set", "file", everything(all.files), restart),
    choice("Decoding", "decoding", everything(decodings), restart),
    choice("Seed", "seed", everything(seeds), restart),
  );
  form.elements.decoding.value = "0";
  form.elements.seed.value = "0";
  const search = el("input", { type: "search", name: "search", placeholder: "words of a prompt or an answer", autocomplete: "off" });
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(restart, 150); });
  form.append(el("label", {}, "Search", search));
  const check = (name, text, checked, then) => {
    const input = el("input", { type: "checkbox", name, checked });
    input.addEventListener("change", then);
    return el("label", { class: "check" }, input, text);
  };
  if (coloured) {
    form.append(check("colours", "Colour tokens", true, draw), check("only", "Only with colours", false, restart));
    tokenLegend(legend);
  }

  function textOf(item) {
    item.text ??= [item.prompt.prompt, ...item.prompt.references, ...item.answers.map(({ answer }) => answer)]
      .join("\n").toLowerCase();
    return item.text;
  }

  function filter() {
    const { file, decoding, seed, only } = form.elements;
    const words = search.value.trim().toLowerCase();
    const fits = (wanted, value) => wanted === "" || Number(wanted) === value;
    shown = ordered.filter((item) =>
      fits(file.value, files.get(item.prompt.file)) && fits(decoding.value, item.decoding) && fits(seed.value, item.seed) &&
      (!only?.checked || item.tokens) && (!words || textOf(item).includes(words)));
    draw();
  }

  function pager(top) {
    const turn = (text, by) => {
      const next = page + by;
      const button = el("button", { type: "button", disabled: next < 0 || next * PAGE >= shown.length }, text);
      button.addEventListener("click", () => {
        page = next;
        draw();
        form.scrollIntoView();
        list.querySelectorAll(".pager button:enabled")[by > 0 ? 1 : 0]?.focus({ preventScroll: true });
      });
      return button;
    };
    const last = Math.min(shown.length, (page + 1) * PAGE);
    const range = shown.length ? `${page * PAGE + 1}–${last} of ${shown.length.toLocaleString("en")}` : "nothing fits";
    return el("div", { class: "pager" }, turn("Previous", -1), turn("Next", 1), el("p", { role: top ? "status" : null }, range));
  }

  // The text with what was searched for marked, folded where it is long.
  function written(text) {
    if (text === "") return [el("p", { class: "text empty" }, "(empty)")];
    const body = el("p", { class: "text", dir: "auto" }, ...marked(text.slice(0, LONG)));
    if (text.length <= LONG) return [body];
    body.append("…");
    const more = el("button", { type: "button", class: "more" }, `Show all ${text.length.toLocaleString("en")} characters`);
    more.addEventListener("click", () => { body.replaceChildren(...marked(text)); more.remove(); });
    return [body, more];
  }

  function marked(text) {
    const words = search.value.trim().toLowerCase(), lower = text.toLowerCase(), parts = [];
    if (!words || lower.length !== text.length) return [text];
    let from = 0;
    for (let at = lower.indexOf(words); at >= 0; at = lower.indexOf(words, from)) {
      parts.push(text.slice(from, at), el("mark", {}, text.slice(at, at + words.length)));
      from = at + words.length;
    }
    return [...parts, text.slice(from)];
  }

  function answerOf(row) {
    const { label, slot } = all.models[models.get(row.model)];
    const { answer, rouge_l: rouge, n_tokens: length, reverse_kl: kl } = row, coloured = tokens.get(ofAnswer(row));
    const meta = [
      rouge == null ? null : `Rouge-L ${number(rouge, 1)}`, row.exact_match ? "exact" : null,
      kl == null || !length ? null : `KL ${number(kl / length, 2)}`, // the file has the sum over tokens
      length == null ? null : `${length} token${length === 1 ? "" : "s"}`, row.truncated ? "cut off" : null,
    ].filter(Boolean).join(" · ");
    const body = coloured && answer !== "" && form.elements.colours.checked ? tokenText(coloured, LONG) : written(answer);
    return el("div", { class: `answer m${slot}` }, el("h4", {}, label), el("p", { class: "meta" }, meta || "\u00a0"), ...body);
  }

  function draw() {
    const shownItems = shown.slice(page * PAGE, (page + 1) * PAGE).map((item) => {
      const { file, id, prompt, references } = item.prompt;
      const place = [...new Set([file, id, decodings[item.decoding], `seed ${seeds[item.seed]}`])].join(" · ");
      const asked = [el("div", { class: "part prompt" }, el("h4", {}, "Prompt"), ...written(prompt))];
      if (references.length) {
        const name = references.length > 1 ? `${references.length} references` : "Reference";
        asked.push(el("div", { class: "part reference" }, el("h4", {}, name), ...references.flatMap(written)));
      }
      return el("article", { class: "sample" }, el("h3", {}, place), el("div", { class: "asked" }, ...asked),
        el("div", { class: "answers" }, ...item.answers.map(answerOf)));
    });
    legend.hidden = !coloured || !form.elements.colours.checked;
    list.replaceChildren(pager(true), ...shownItems, ...(shown.length > PAGE ? [pager(false)] : []));
  }

  tips(list);
  filter();
}

const data = read("data");
if (data.table?.figures.length) results(data.table);
contents();
// After the first picture of the page.
setTimeout(() => {
  samples(read("samples-data"));
  for (const [name, plot] of Object.entries(data.plots)) curves(name, plot);
});
