"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // A picture's <title> would also pop up as the browser's own tooltip: keep its words for screen readers only.
  for (const picture of all("svg[aria-labelledby]")) {
    const title = picture.querySelector("title");
    const words = picture.querySelector("desc");
    picture.setAttribute("aria-label", `${title.textContent}. ${words.textContent}`);
    picture.removeAttribute("aria-labelledby");
    title.remove();
  }

  for (const form of all("form.pick")) {
    const section = form.closest("section");
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", () => {
      const wanted = all("select", form).map((select) => [select.dataset.key, select.value]);
      for (const item of all(".item", section)) {
        item.hidden = wanted.some(([key, value]) => value && item.dataset[key] && item.dataset[key] !== value);
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

  const tip = document.getElementById("tip");
  const show = (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const spot = mark.getBoundingClientRect();
    const left = Math.min(Math.max(8, spot.left + spot.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const above = spot.top - tip.offsetHeight - 10;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : spot.bottom + 10}px`;
  };
  document.addEventListener("pointerover", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);

  for (const button of all("table.all thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const index = [...head.parentNode.children].indexOf(head);
      const numbers = head.classList.contains("number");
      const down = head.getAttribute("aria-sort") === "descending" || (!numbers && !head.hasAttribute("aria-sort"));
      for (const other of all("th[aria-sort]", head.parentNode)) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      const body = head.closest("table").tBodies[0];
      const value = (row) => {
        const text = row.children[index].dataset.sort;
        if (!numbers && Number.isNaN(Number(text))) return text;
        return text === "-inf" ? -Infinity : Number(text);
      };
      const order = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (down ? 1 : -1);
      body.append(...[...body.rows].sort(order));
    });
  }

  const download = document.getElementById("download");
  if (download) {
    download.addEventListener("click", () => {
      const blob = new Blob([document.getElementById("data").textContent], { type: "application/json" });
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = "kvledger-report.json";
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
})();
