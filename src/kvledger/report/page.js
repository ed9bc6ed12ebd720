"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, parent, text, classes) => {
    const made = parent.appendChild(document.createElement(tag));
    if (text !== undefined) made.textContent = text;
    if (classes) made.className = classes;
    return made;
  };

  // A picture's <title> would also pop up as the browser's own tooltip: keep its words for screen readers only.
  for (const picture of all("svg[aria-labelledby]")) {
    const title = picture.querySelector("title");
    const words = picture.querySelector("desc");
    picture.setAttribute("aria-label", `${title.textContent}. ${words.textContent}`);
    picture.removeAttribute("aria-labelledby");
    title.remove();
  }

  const wanted = (form) => all("select", form).map((select) => [select.dataset.key, select.value]).filter(([, value]) => value);
  for (const form of all("form.pick")) {
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", () => {
      const facts = wanted(form);
      for (const item of all(".item", form.closest("section"))) {
        item.hidden = facts.some(([key, value]) => item.dataset[key] && item.dataset[key] !== value);
      }
    });
  }

  let held = null;
  const emphasise = (line) => {
    for (const part of all("[data-line]:not(button)")) part.classList.toggle("dim", line !== null && part.dataset.line !== line);
  };
  for (const key of all("button.key")) {
    key.addEventListener("pointerenter", () => emphasise(key.dataset.line));
    key.addEventListener("pointerleave", () => emphasise(held));
    key.addEventListener("click", () => {
      held = held === key.dataset.line ? null : key.dataset.line;
      for (const other of all("button.key")) other.setAttribute("aria-pressed", String(other.dataset.line === held));
      emphasise(held);
    });
  }

  // ---- numbers, written as in report/units.py ----
  const NONE = "\u2013";
  const fixed = (value, digits) => {  // exact halves to the even digit, as everywhere else
    const text = value.toFixed(digits);
    if (!/^50*$/.test(value.toFixed(digits + 30).split(".")[1].slice(digits))) return text;
    return Number(text.at(-1)) % 2 ? (value - 0.5 * 10 ** -digits).toFixed(digits) : text;
  };
  const points = (value, signed) => {
    const text = fixed(Math.abs(value) * 100, 1);
    return (text === "0.0" ? "" : value < 0 ? "\u2212" : signed ? "+" : "") + text;
  };
  const bytes = (value) => {
    let unit = 0;
    for (; Math.abs(value) >= 1000 && unit < 4; unit++) value /= 1024;
    return `${fixed(value, !unit || Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2)}\u202f${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
  };
  const seconds = (value) => value < 1 ? `${fixed(value * 1000, 0)}\u202fms` : `${fixed(value, value < 10 ? 2 : value < 100 ? 1 : 0)}\u202fs`;
  const WRITE = {
    text: String, number: String, points, bytes, seconds,
    signed: (value) => points(value, true),
    percent: (value) => `${fixed(value * 100, 1)}\u202f%`,
  };
  const main = (cell) => Array.isArray(cell) ? cell[0] : cell;
  const write = (column, cell) => main(cell) === null ? NONE : WRITE[column.kind](main(cell));
  const range = (column, cell) => Array.isArray(cell) ? `${WRITE[column.kind](cell[1])} to ${WRITE[column.kind](cell[2])}` : "";

  const source = document.getElementById("data");
  const { columns, rows } = source ? JSON.parse(source.textContent) : { columns: [], rows: [] };
  const place = (head) => columns.findIndex((column) => column.head === head);

  // ---- what a pointer is told ----
  const TOLD = ["score", "against full", "entry footprint", "byte footprint", "peak", "samples"];
  const story = (mark) => {
    const owner = mark.closest("[data-r]");
    const row = owner ? rows[owner.dataset.r] : null;
    const own = mark.dataset.tip;
    if (!row || own) return [row ? row[place("recipe")] : null, own].filter(Boolean).join("\n");
    const facts = TOLD.map(place).filter((number) => number >= 0 && main(row[number]) !== null).map((number) => {
      const span = range(columns[number], row[number]);
      return `${columns[number].head} ${write(columns[number], row[number])}${span ? `  [${span}]` : ""}`;
    });
    return [row[place("recipe")], ...facts].join("\n");
  };
  const tip = document.getElementById("tip");
  const show = (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip], .mark > [data-r], .mark[data-r]") : null;
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = story(mark);
    const spot = mark.getBoundingClientRect();
    const left = Math.min(Math.max(8, spot.left + spot.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const above = spot.top - tip.offsetHeight - 10;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : spot.bottom + 10}px`;
  };
  document.addEventListener("pointerover", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);

  // ---- the full table: sorted, filtered, drawn ----
  const table = document.querySelector("table.all");
  if (!table || !columns.length) return;
  const form = table.closest("section").querySelector("form.pick");
  const find = document.getElementById("find");
  const more = document.getElementById("more");
  const step = Number(table.dataset.shown);
  let limit = step, by = -1, down = true, found = rows;

  const fits = (row, [key, value]) => {
    const cell = row[place(key)];
    return place(key) < 0 || cell === null || (typeof cell === "number" ? cell === Number(value) : cell === value);
  };
  const compare = (a, b) => {
    const [x, y] = [main(a[by]), main(b[by])];
    if (x === null || y === null) return (x === null) - (y === null);  // what has no value comes last either way
    return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
  };
  const draw = () => {
    const body = table.tBodies[0];
    body.replaceChildren();
    for (const row of found.slice(0, limit)) {
      const line = make("tr", body);
      columns.forEach((column, number) => {
        const cell = make(number ? "td" : "th", line, write(column, row[number]), column.kind === "text" ? "" : "number");
        if (!number) cell.scope = "row";
        const span = column.interval ? range(column, row[number]) : "";
        if (span) make("small", cell, span);
      });
    }
    document.getElementById("matches").textContent = `${found.length} of ${rows.length} rows`;
    more.hidden = found.length <= limit;
    more.textContent = `Show ${Math.min(step, found.length - limit)} more`;
  };
  const select = () => {
    const facts = form ? wanted(form) : [];
    const word = find.value.trim().toLowerCase();
    found = rows.filter((row) => facts.every((fact) => fits(row, fact)) && row[0].toLowerCase().includes(word));
    if (by >= 0) found.sort(compare);
    draw();
  };
  const heads = make("tr", table.tHead);
  columns.forEach((column, number) => {
    const head = make("th", heads, undefined, column.kind === "text" ? "" : "number");
    head.scope = "col";
    head.title = column.title;
    const button = make("button", head, column.head);
    button.type = "button";
    button.addEventListener("click", () => {
      down = by === number ? !down : column.kind !== "text";
      by = number;
      for (const other of heads.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      select();
    });
  });
  if (form) form.addEventListener("change", () => { limit = step; select(); });
  find.addEventListener("input", () => { limit = step; select(); });
  more.addEventListener("click", () => { limit += step; draw(); });
  select();

  const quoted = (text) => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  document.getElementById("download").addEventListener("click", () => {
    const names = columns.flatMap((c) => c.interval ? [c.head, `${c.head} low`, `${c.head} high`] : [c.head]);
    const values = (row) => columns.flatMap((c, n) => c.interval ? (Array.isArray(row[n]) ? row[n] : [row[n], null, null]) : [row[n]]);
    const text = [names, ...found.map(values)].map((line) => line.map((v) => v === null ? "" : quoted(String(v))).join(",")).join("\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "text/csv" }));
    link.download = "kvledger-report.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
})();
