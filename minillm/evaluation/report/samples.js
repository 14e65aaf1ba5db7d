// The browser of samples: items are one prompt, decoding and seed, with the answer of each model.

const PAGE = 8; // prompts at a time
const LONG = 1500; // characters of a text before it is folded

function samples(all) {
  const form = document.getElementById("sample-controls");
  const list = document.getElementById("sample-list");
  const legend = document.getElementById("sample-legend");
  const coloured = all.tokens.length > 0;
  let shown = [], page = 0, timer;

  const items = new Map();
  for (const answer of all.answers) {
    const [model, prompt, decoding, seed] = answer;
    const key = `${prompt}/${decoding}/${seed}`;
    if (!items.has(key)) items.set(key, { prompt, decoding, seed, answers: [], tokens: false });
    items.get(key).answers.push(answer);
    if (answer[10] >= 0) items.get(key).tokens = true;
  }
  const ordered = [...items.values()].sort((a, b) => a.prompt - b.prompt || a.decoding - b.decoding || a.seed - b.seed);
  for (const item of ordered) item.answers.sort((a, b) => a[0] - b[0]);

  const everything = (names) => [["", "all"], ...names.map((name, index) => [index, name])];
  const restart = () => { page = 0; filter(); };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.append(
    choice("Data set", "file", everything(all.files), restart),
    choice("Decoding", "decoding", everything(all.decodings), restart),
    choice("Seed", "seed", everything(all.seeds), restart),
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
    item.text ??= [all.prompts[item.prompt][2], ...all.prompts[item.prompt][3], ...item.answers.map((answer) => answer[4])]
      .join("\n").toLowerCase();
    return item.text;
  }

  function filter() {
    const { file, decoding, seed, only } = form.elements;
    const words = search.value.trim().toLowerCase();
    const fits = (wanted, value) => wanted === "" || Number(wanted) === value;
    shown = ordered.filter((item) =>
      fits(file.value, all.prompts[item.prompt][0]) && fits(decoding.value, item.decoding) && fits(seed.value, item.seed) &&
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

  function answerOf([model, , , , text, cut, tokens, kl, rouge, exact, place]) {
    const { label, slot } = all.models[model];
    const meta = [
      rouge == null ? null : `Rouge-L ${number(rouge, 1)}`, exact ? "exact" : null, kl == null ? null : `KL ${number(kl, 2)}`,
      tokens == null ? null : `${tokens} token${tokens === 1 ? "" : "s"}`, cut ? "cut off" : null,
    ].filter(Boolean).join(" · ");
    const body = place >= 0 && text !== "" && form.elements.colours.checked ? tokenText(all.tokens[place], LONG) : written(text);
    return el("div", { class: `answer m${slot}` }, el("h4", {}, label), el("p", { class: "meta" }, meta || "\u00a0"), ...body);
  }

  function draw() {
    const shownItems = shown.slice(page * PAGE, (page + 1) * PAGE).map((item) => {
      const [file, id, prompt, references] = all.prompts[item.prompt];
      const place = [...new Set([all.files[file], id, all.decodings[item.decoding], `seed ${all.seeds[item.seed]}`])].join(" · ");
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
if (data.table) results(data.table);
contents();
// After the first picture of the page.
setTimeout(() => {
  samples(read("samples-data"));
  for (const [name, plot] of Object.entries(data.plots)) curves(name, plot);
});
