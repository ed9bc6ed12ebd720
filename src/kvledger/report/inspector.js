"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { tokens, turns, levels } = data;
  const at = (id) => document.getElementById(id);
  const make = (tag, parent, text) => {
    const made = parent.appendChild(document.createElement(tag));
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const percent = (share) => `${Math.round(share * 100)}\u202f%`;

  // ---- bits ----
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const held = levels.map((level) => level.kept.map((layer) => layer.map(bytes)));
  const has = (bits, token) => (bits[token >> 3] >> (token & 7)) & 1;
  const chosen = (level, layer, head) => {
    const layers = layer < 0 ? held[level] : [held[level][layer]];
    return layers.flatMap((heads) => head < 0 ? heads : heads.slice(head, head + 1));
  };
  const known = new Map();
  const shares = (level, layer, head) => {  // for each token: the share of the chosen heads that hold it
    const key = `${level} ${layer} ${head}`;
    if (!known.has(key)) {
      const found = new Float32Array(tokens.length);
      const heads = chosen(level, layer, head);
      for (const bits of heads) for (let token = 0; token < tokens.length; token++) found[token] += has(bits, token);
      known.set(key, found.map((count) => count / Math.max(1, heads.length)));
    }
    return known.get(key);
  };
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);

  // ---- what is there once ----
  const option = (select, value, text) => { make("option", select, text).value = value; };
  const layers = held[0].length;
  const heads = Math.max(...held[0].map((layer) => layer.length));
  option(at("layer"), -1, "all");
  for (let layer = 0; layer < layers; layer++) option(at("layer"), layer, String(layer));
  option(at("head"), -1, "all");
  for (let head = 0; head < heads; head++) option(at("head"), head, String(head));
  if (at("turn")) turns.forEach((turn, number) => option(at("turn"), number, `${number + 1}: ${turn.question.slice(0, 60)}`));
  const spans = tokens.map((token, number) => {
    const span = make("span", at("text"), token);
    span.dataset.n = number;
    return span;
  });
  const top = make("tr", document.querySelector(".budget thead"));
  make("th", top, "layer");
  for (let layer = 0; layer < layers; layer++) make("th", top, String(layer)).scope = "col";
  const tiles = [];
  for (let head = 0; head < heads; head++) {
    const line = make("tr", document.querySelector(".budget tbody"));
    make("th", line, `head ${head}`).scope = "row";
    for (let layer = 0; layer < layers; layer++) {
      const cell = make("td", line);
      if (head >= held[0][layer].length) continue;
      const button = make("button", cell);
      button.type = "button";
      button.addEventListener("click", () => {
        const again = Number(at("layer").value) === layer && Number(at("head").value) === head;
        at("layer").value = again ? -1 : layer;
        at("head").value = again ? -1 : head;
        draw();
      });
      tiles.push({ button, layer, head });
    }
  }

  // ---- what follows the controls ----
  const draw = () => {
    const level = Number(at("level").value), layer = Number(at("layer").value), head = Number(at("head").value);
    const share = shares(level, layer, head);
    const turn = at("turn") ? Number(at("turn").value) : -1;
    const evidence = new Set(turn < 0 ? [] : turns[turn].evidence);
    spans.forEach((span, token) => {
      const step = share[token] ? Math.max(1, Math.round(share[token] * 10)) : 0;
      span.className = `t s${step}${evidence.has(token) ? " e" : ""}`;
    });
    at("keep").textContent = `${levels[level].keep} \u2013 ${percent(mean([...share]))} held`;
    at("level").setAttribute("aria-valuetext", `keep ${levels[level].keep}`);
    for (const tile of tiles) {
      const own = mean([...shares(level, tile.layer, tile.head)]);
      tile.button.textContent = String(Math.round(own * 100));
      tile.button.style.background = `color-mix(in srgb, var(--heat) ${(own * 100).toFixed(0)}%, var(--paper))`;
      tile.button.setAttribute("aria-label", `layer ${tile.layer}, head ${tile.head}: ${Math.round(own * 100)} percent`);
      const on = (layer < 0 || layer === tile.layer) && (head < 0 || head === tile.head) && (layer >= 0 || head >= 0);
      tile.button.setAttribute("aria-pressed", String(on));
    }
    if (turn < 0) return;
    const answer = levels[level].answers[turn];
    at("question").textContent = turns[turn].question;
    at("gold").textContent = turns[turn].gold;
    at("said").textContent = `${answer.text || "(nothing)"} \u2013 score ${(answer.score * 100).toFixed(0)}`;
    at("evidence").textContent = evidence.size ? survived(level, layer, head, [...evidence]) : "this question names none";
  };
  const survived = (level, layer, head, places) => {
    const among = chosen(level, layer, head);
    const whole = among.filter((bits) => places.every((token) => has(bits, token))).length;
    const share = mean(places.map((token) => shares(level, layer, head)[token]));
    return `${places.length} tokens, ${percent(share)} of their rows held; whole in ${whole} of ${among.length} heads`;
  };
  document.querySelector("form.controls").addEventListener("input", draw);
  document.querySelector("form.controls").addEventListener("submit", (event) => event.preventDefault());

  // ---- what a pointer is told ----
  const tip = at("tip");
  document.addEventListener("pointerover", (event) => {
    const span = event.target.closest ? event.target.closest("#text span") : null;
    tip.hidden = !span;
    if (!span) return;
    const token = Number(span.dataset.n), level = Number(at("level").value);
    const share = shares(level, Number(at("layer").value), Number(at("head").value))[token];
    tip.textContent = `token ${token}\nheld by ${percent(share)} of the heads shown`;
    const spot = span.getBoundingClientRect();
    tip.style.left = `${Math.min(Math.max(8, spot.left), innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${spot.top > tip.offsetHeight + 12 ? spot.top - tip.offsetHeight - 8 : spot.bottom + 8}px`;
  });
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);
  draw();
})();
