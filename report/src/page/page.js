"use strict";
(() => {
  const root = document.documentElement;
  const find = (id) => document.getElementById(id);

  // Light and dark: the system's choice until the button is pressed.
  const button = find("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const remember = (theme) => { try { localStorage.setItem("t3s-theme", theme); } catch { /* a page without storage forgets */ } };
  const recall = () => { try { return localStorage.getItem("t3s-theme"); } catch { return null; } };
  const known = recall();
  if (known === "light" || known === "dark") root.dataset.theme = known;
  const showTheme = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(isDark()));
    button.setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours");
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  const source = find("data");
  if (!source) return;
  const { columns, traces } = JSON.parse(source.textContent);
  if (!traces.length) return;
  const box = find("tokens"), detail = find("detail"), prompt = find("prompt");
  const traceMenu = find("trace"), colourMenu = find("colour");
  let trace = 0, colour = 0, at = -1;

  const add = (parent, tag, text, className) => {
    const child = document.createElement(tag);
    if (text !== undefined) child.textContent = text;
    if (className) child.className = className;
    parent.append(child);
    return child;
  };
  const shown = (value) => {
    if (value === null || value === undefined) return "none";
    const size = Math.abs(value);
    return (size !== 0 && size < 0.001) || size >= 1e5 ? value.toExponential(1) : String(value);
  };
  const weights = columns.findIndex((column) => column.name === "weight");
  const delta = columns.findIndex((column) => column.name === "delta-c");

  // How dark, from -1 to 1: the sign chooses the colour. Weights: what is dropped is coloured.
  const place = (column, value) => {
    if (value === null) return 0;
    if (column.name === "weight") return value - 1;
    const log = (size) => Math.log1p(size / column.knee);
    const share = (part, whole) => (whole > 0 ? Math.min(1, log(part) / log(whole)) : 0);
    if (column.signed) return -Math.sign(value) * share(Math.abs(value), column.high);
    return share(Math.max(0, value - column.low), column.high - column.low);
  };
  const paint = (share) => {
    if (share === 0) return "";
    const hue = share < 0 ? "--dropped-rgb" : "--kept-rgb";
    return `rgba(var(${hue}), calc(var(--strength) * ${Math.abs(share).toFixed(3)}))`;
  };
  // A tab and a line break are seen, and do what they do.
  const visible = (piece) => piece.replace(/\n/g, "↵\n").replace(/\t/g, "⇥\t") || "·";
  const rightToLeft = /[\u0590-\u08FF\uFB1D-\uFDFF\uFE70-\uFEFC]/g;

  const spans = () => box.querySelectorAll("[role=option]");

  const drawTrace = () => {
    const t = traces[trace];
    const nodes = document.createDocumentFragment();
    const gaps = new Set(t.gaps);
    t.pieces.forEach((piece, i) => {
      if (gaps.has(i)) add(nodes, "span", "⋯", "gap").setAttribute("aria-hidden", "true");
      const span = add(nodes, "span", visible(piece));
      if (piece === "") span.classList.add("sign");
      span.id = `token-${i}`;
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      if (weights >= 0 && t.columns[weights][i] === 0) span.classList.add("off");
    });
    if (t.pieces.length < t.n) add(nodes, "span", `  … ${t.n - t.pieces.length} more tokens`, "gap");
    box.replaceChildren(nodes);
    const text = t.pieces.join("");
    const share = (text.match(rightToLeft) || []).length / Math.max(1, text.length);
    box.dir = share > 0.3 ? "rtl" : "ltr";
    box.setAttribute("aria-label", `Tokens of trace ${t.id}, ${t.pieces.length} of them`);
    prompt.textContent = t.prompt === null ? "The run did not write down what this trace answers."
      : t.prompt.trim() + (t.answer === null ? "" : `\n\nGold answer: ${t.answer}`);
    box.scrollTop = 0;
    traceMenu.value = String(trace);
    find("previous").disabled = trace === 0;
    find("next").disabled = trace === traces.length - 1;
    at = -1;
    drawColours();
    show(-1);
  };

  const drawColours = () => {
    const column = columns[colour];
    const values = traces[trace].columns[colour];
    spans().forEach((span, i) => { span.style.backgroundColor = paint(place(column, values[i])); });
    const [low, high] = column.name === "weight" ? [0, 1] : [column.low, column.high];
    find("low").textContent = column.name === "weight" ? "0 dropped" : shown(low);
    find("high").textContent = column.name === "weight" ? "1 kept" : shown(high);
    const stops = Array.from({ length: 21 }, (_, u) => u / 20).map((u) => paint(place(column, low + u * (high - low))) || "transparent");
    find("ramp").style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
    colourMenu.value = String(colour);
  };

  // Shows the numbers of a token without choosing it.
  const show = (i) => {
    detail.replaceChildren();
    const t = traces[trace];
    if (i < 0) {
      add(detail, "span", `${t.n} tokens${t.kept === null ? "" : `, ${Math.round(1000 * t.kept) / 10} % of them kept`}. Point at a token, or go through them with the arrow keys.`);
      return;
    }
    const what = add(detail, "div", undefined, "what");
    add(what, "bdi", t.pieces[i] === "" ? "(part of the next character)" : JSON.stringify(t.pieces[i]));
    add(what, "span", ` token ${i + 1} of ${t.n}, id ${t.ids[i]}${weights >= 0 ? (t.columns[weights][i] > 0 ? ", kept" : ", dropped") : ""}`);
    columns.forEach((column, c) => {
      const item = add(detail, "span", `${column.label} `);
      add(item, "b", shown(t.columns[c][i]));
    });
  };

  const choose = (i) => {
    const all = spans();
    if (!all.length) return;
    if (at >= 0) { all[at].classList.remove("at"); all[at].setAttribute("aria-selected", "false"); }
    at = Math.max(0, Math.min(all.length - 1, i));
    all[at].classList.add("at");
    all[at].setAttribute("aria-selected", "true");
    box.setAttribute("aria-activedescendant", all[at].id);
    // Not scrollIntoView: the page itself stays where it is.
    const here = all[at].getBoundingClientRect(), frame = box.getBoundingClientRect();
    if (here.top < frame.top) box.scrollTop += here.top - frame.top - 24;
    if (here.bottom > frame.bottom) box.scrollTop += here.bottom - frame.bottom + 24;
    show(at);
  };

  // The token nearest to this one in the line above or below.
  const line = (step) => {
    const all = spans();
    if (at < 0) return choose(0);
    const here = all[at].getBoundingClientRect();
    const middle = here.left + here.width / 2;
    let best = at, distance = Infinity, top = null;
    for (let i = at + step; i >= 0 && i < all.length; i += step) {
      const there = all[i].getBoundingClientRect();
      if (Math.abs(there.top - here.top) < here.height / 2) continue;
      if (top === null) top = there.top;
      if (Math.abs(there.top - top) > here.height / 2) break;
      const d = Math.abs(there.left + there.width / 2 - middle);
      if (d < distance) { distance = d; best = i; }
    }
    choose(best);
  };

  const go = (to) => {
    const next = Math.max(0, Math.min(traces.length - 1, to));
    if (next === trace) return;
    trace = next;
    drawTrace();
  };
  const cycle = (step) => { colour = (colour + step + columns.length) % columns.length; drawColours(); };

  traces.forEach((t, i) => {
    const kept = t.kept === null ? "" : `, ${Math.round(100 * t.kept)} % kept`;
    add(traceMenu, "option", `${t.id} (${t.n} tokens${kept})`).value = String(i);
  });
  columns.forEach((column, i) => { add(colourMenu, "option", column.label).value = String(i); });
  if (delta >= 0) colour = delta;

  traceMenu.addEventListener("change", () => go(Number(traceMenu.value)));
  colourMenu.addEventListener("change", () => { colour = Number(colourMenu.value); drawColours(); });
  find("previous").addEventListener("click", () => go(trace - 1));
  find("next").addEventListener("click", () => go(trace + 1));
  const marks = () => box.classList.toggle("marks", find("marks").checked);
  find("marks").addEventListener("change", marks);
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const forward = box.dir === "rtl" ? -1 : 1;
    const actions = {
      ArrowRight: () => choose(at + forward), ArrowLeft: () => choose(at - forward),
      ArrowDown: () => line(1), ArrowUp: () => line(-1),
      Home: () => choose(0), End: () => choose(Infinity),
      n: () => go(trace + 1), p: () => go(trace - 1),
      PageDown: () => go(trace + 1), PageUp: () => go(trace - 1),
      c: () => cycle(1), C: () => cycle(-1),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  box.addEventListener("focus", () => { if (at < 0) choose(0); });
  const tokenOf = (event) => {
    const span = event.target.closest("[role=option]");
    return span ? Number(span.id.slice("token-".length)) : -1;
  };
  box.addEventListener("pointerover", (event) => { const i = tokenOf(event); if (i >= 0) show(i); });
  box.addEventListener("pointerleave", () => show(at));
  box.addEventListener("click", (event) => { const i = tokenOf(event); if (i >= 0) choose(i); });
  marks();
  drawTrace();
})();
