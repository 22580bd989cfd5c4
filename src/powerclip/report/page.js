"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const svg = (name, attributes, text = "") => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
};
const short = (value) => String(Number(value.toPrecision(4)));

for (const image of all("[data-image]")) {
  image.setAttribute(image.tagName === "IMG" ? "src" : "href", data.images[image.dataset.image]);
}

// Curves: one slider for each group of panels; pointing at a panel moves it.
const WIDTH = 300, HEIGHT = 180, LEFT = 44, RIGHT = 6, TOP = 6, BOTTOM = 20;

function ticks(low, high, count, logarithmic) {
  if (logarithmic) {
    const powers = Array.from({length: Math.ceil(high) - Math.floor(low) + 1}, (_, i) => Math.floor(low) + i);
    const factors = powers.length > 4 ? [1] : [1, 2, 5];
    return powers.flatMap((power) => factors.map((factor) => Math.log10(factor) + power)).filter((t) => t >= low && t <= high);
  }
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step); tick * step <= high && found.length < 12; tick++) found.push(tick * step);
  return found;
}

function draw(panel, steps) {
  const scaled = panel.logarithmic ? Math.log10 : Number;
  const values = panel.lines.flatMap((line) => line.points.flatMap((point) => [scaled(point[2]), scaled(point[3])]));
  const [least, most] = [Math.min(...values), Math.max(...values)], around = least < most ? 0 : Math.abs(least) / 10 || 1;
  const [low, high] = panel.limits || [least - around, most + around];
  const x = (step) => LEFT + (WIDTH - LEFT - RIGHT) * step / steps;
  const y = (value) => HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (scaled(value) - low) / (high - low);
  const chart = svg("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img"});
  for (const tick of ticks(low, high, 4, panel.logarithmic)) {
    const value = panel.logarithmic ? 10 ** tick : tick;
    chart.append(svg("line", {class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value)}));
    chart.append(svg("text", {x: LEFT - 4, y: y(value) + 4, "text-anchor": "end"}, short(value)));
  }
  for (const tick of ticks(0, steps, 3)) {
    chart.append(svg("text", {x: x(tick), y: HEIGHT - 4, "text-anchor": !tick ? "start" : x(tick) > WIDTH - 30 ? "end" : "middle"}, short(tick)));
  }
  const path = (points, at) => points.map((point) => `${x(point[0]).toFixed(1)} ${y(point[at]).toFixed(1)}`);
  for (const {run, dashed, points} of panel.lines) {
    const band = [...path(points, 2), ...path(points, 3).reverse()];
    chart.append(svg("path", {class: `band run${run % 8}`, d: `M${band.join("L")}Z`}));
    const line = points.length > 1 ? path(points, 1) : [...path(points, 1), ...path(points, 1)];
    chart.append(svg("path", {class: `line run${run % 8}${dashed ? " dashed" : ""}${points.length > 1 ? "" : " dot"}`, "stroke-linecap": "round", d: `M${line.join("L")}`}));
  }
  chart.cursor = svg("line", {class: "at", y1: TOP, y2: HEIGHT - BOTTOM});
  chart.move = (step) => { for (const end of ["x1", "x2"]) chart.cursor.setAttribute(end, x(step)); };
  chart.stepAt = (event) => {
    const box = chart.getBoundingClientRect();
    return steps * ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
  };
  chart.append(chart.cursor);
  return chart;
}

for (const group of all(".curves")) {
  const panels = data.curves[group.dataset.group], slider = group.querySelector("input"), figures = all("figure", group);
  const steps = Math.max(1, ...panels.flatMap((panel) => panel.lines.map((line) => line.points.at(-1)[0])));
  slider.max = slider.value = steps;
  const charts = panels.map((panel, i) => {
    const chart = draw(panel, steps);
    chart.setAttribute("aria-label", `Curves of ${panel.title} over the training steps`);
    figures[i].insertBefore(chart, figures[i].lastElementChild);
    chart.addEventListener("pointermove", (event) => { slider.value = chart.stepAt(event); show(); });
    return chart;
  });
  const show = () => {
    const step = Number(slider.value);
    group.querySelector(".cursor output").textContent = step;
    panels.forEach((panel, i) => {
      charts[i].move(step);
      figures[i].querySelector("output").replaceChildren(...panel.lines.map(({run, dashed, points}) => {
        const near = points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
        const value = document.createElement("span");
        value.className = `run run${run % 8}`;
        value.textContent = `${data.runs[run]}${dashed ? " (dashed)" : ""} ${short(near[1])} `;
        return value;
      }));
    });
  };
  slider.addEventListener("input", show);
  show();
}

// Grounding: a phrase lights its regions in every view, a region the phrases that it grounds.
for (const card of all("article.grounding")) {
  const phrases = all(".phrase", card), said = card.querySelector("output"), names = all(".run", card).map((run) => run.textContent);
  const views = all(".views figure", card).map((figure, run) => {
    const layer = figure.querySelector("g"), masks = data.masks[card.dataset.sample][run].map((mask) => [...mask].map(Number));
    const rows = Number(layer.dataset.rows), columns = Number(layer.dataset.columns);
    const cells = Array.from({length: rows * columns}, (_, n) =>
      svg("rect", {x: n % columns, y: Math.floor(n / columns), width: 1, height: 1}));
    const outlines = [svg("path", {class: "under"}), svg("path", {})];
    layer.append(...cells, ...outlines);
    return {figure, masks, rows, columns, cells, outlines, single: "single" in figure.dataset, slider: figure.querySelector("input"),
      area: masks.map((mask) => mask.reduce((a, b) => a + b, 0)),
      covering: cells.map((_, n) => masks.reduce((count, mask) => count + mask[n], 0))};
  });
  // Of a phrase in a run, the parts of its score, [region, similarity, element], and the similarities of other regions.
  const pairs = (text) => (text || "").split(" ").filter(Boolean).map((pair) => pair.split(":").map(Number));
  const parts = phrases.map((phrase) => views.map((_, run) =>
    all(`[data-run="${run}"] i`, phrase).flatMap((part) => pairs(part.dataset.parts).map((pair) => [...pair, part]))));
  const others = phrases.map((phrase) => views.map((_, run) => pairs(phrase.querySelector(`[data-run="${run}"]`)?.dataset.others)));
  // A patch is bright by the mean s of its regions; where the best region alone counts, by the highest one above the mean.
  const heat = parts.map((of_run, k) => of_run.map((found, run) => {
    const {single, masks, cells, covering} = views[run], regions = [...found, ...others[k][run]], lit = cells.map(() => 0);
    const zero = single ? regions.reduce((sum, [, s]) => sum + s, 0) / regions.length : 0;
    for (const [region, s] of regions.filter(([, s]) => s > zero)) {
      masks[region].forEach((one, n) => { if (one) lit[n] = single ? Math.max(lit[n], s - zero) : lit[n] + s / covering[n]; });
    }
    return lit;
  }));
  const most = heat.map((of_run) => of_run.map((cells) => Math.max(1e-9, ...cells)));
  let pinned = -1;

  function clear() {
    for (const lit of all(".lit", card)) lit.classList.remove("lit");
    for (const view of views) {
      view.outlines.forEach((outline) => outline.setAttribute("d", ""));
      view.slider.value = 0;
      view.slider.setAttribute("aria-valuetext", "none");
      view.cells.forEach((cell) => { cell.style.fillOpacity = 0; });
    }
    said.textContent = "";
  }

  function showPhrase(k) {
    clear();
    if (k < 0) return;
    const counts = views.map((view, run) => {
      if (!phrases[k].querySelector(`[data-run="${run}"]`)) return `${names[run]} does not score this`;
      view.cells.forEach((cell, n) => { cell.style.fillOpacity = 0.8 * (1 - heat[k][run][n] / most[k][run]); });
      const found = parts[k][run];
      const sum = found.reduce((total, [, s]) => total + s, 0);
      if (view.single) return `${names[run]}: ${sum.toFixed(2)}, its best region`;
      return `${names[run]}: ${sum.toFixed(2)}, the sum of ${found.length} region${found.length === 1 ? "" : "s"}`;
    });
    said.textContent = counts.join("; ");
  }

  function showRegion(run, region) {
    clear();
    const {masks, rows, columns, outlines, slider} = views[run], mask = masks[region];
    const inside = (row, column) => row >= 0 && column >= 0 && row < rows && column < columns && mask[row * columns + column];
    let edges = "";
    mask.forEach((one, n) => {
      const row = Math.floor(n / columns), column = n % columns;
      if (!one) return;
      if (!inside(row - 1, column)) edges += `M${column} ${row}h1`;
      if (!inside(row + 1, column)) edges += `M${column} ${row + 1}h1`;
      if (!inside(row, column - 1)) edges += `M${column} ${row}v1`;
      if (!inside(row, column + 1)) edges += `M${column + 1} ${row}v1`;
    });
    outlines.forEach((outline) => outline.setAttribute("d", edges));
    const grounded = [];
    parts.forEach((of_run, k) => {
      for (const [m, s, part] of of_run[run]) {
        if (m !== region) continue;
        phrases[k].classList.add("lit");
        part.classList.add("lit");
        grounded.push(`${phrases[k].querySelector("button").lastChild.textContent.trim()} ${s.toFixed(2)}`);
      }
    });
    slider.value = region + 1;
    said.textContent = `${names[run]}, region ${region + 1}: ${grounded.join("; ") || "grounds no phrase"}`;
    slider.setAttribute("aria-valuetext", said.textContent);
  }

  phrases.forEach((phrase, k) => {
    const button = phrase.querySelector("button");
    phrase.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") showPhrase(k); });
    phrase.addEventListener("pointerleave", () => showPhrase(pinned));
    button.addEventListener("focus", () => showPhrase(k));
    button.addEventListener("blur", () => showPhrase(pinned));
    button.addEventListener("click", () => {
      pinned = pinned === k ? -1 : k;
      phrases.forEach((other, i) => other.querySelector("button").setAttribute("aria-pressed", i === pinned));
      showPhrase(pinned);
    });
  });
  views.forEach(({figure, masks, rows, columns, slider, area}, run) => {
    const picture = figure.querySelector("svg");
    const point = (event) => {
      const box = picture.getBoundingClientRect();
      const column = Math.floor((event.clientX - box.left) / box.width * columns);
      const n = Math.floor((event.clientY - box.top) / box.height * rows) * columns + column;
      const under = masks.map((_, m) => m).filter((m) => masks[m][n]);  // the smallest: larger ones are beside it
      if (under.length) showRegion(run, under.reduce((a, b) => (area[b] < area[a] ? b : a)));
    };
    picture.addEventListener("pointermove", point);
    picture.addEventListener("click", point);  // a tap, after the focus has left a button
    picture.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") showPhrase(pinned); });
    slider.addEventListener("input", () => (Number(slider.value) ? showRegion(run, slider.value - 1) : showPhrase(pinned)));
  });
  // At first, and on paper, the first innermost phrase of those that most runs ground: it most often names a thing.
  const runs = parts.map((of_run) => of_run.filter((found) => found.length).length), wide = Math.max(...runs);
  const first = runs.findIndex((count, k) => count === wide && !phrases.some((inner, j) =>
    j !== k && runs[j] === wide && phrases[k].parentElement.contains(inner)));
  if (phrases.length) phrases[first].querySelector("button").click();
}
// A page that is kept fresh loads itself again, once its reader has been idle for that long.
if (document.body.dataset.reloadS) {
  const wait = 1000 * document.body.dataset.reloadS;
  let timer = setTimeout(() => location.reload(), wait);
  for (const used of ["pointermove", "keydown", "scroll"]) {
    addEventListener(used, () => { clearTimeout(timer); timer = setTimeout(() => location.reload(), wait); }, {passive: true});
  }
}
document.getElementById("unscripted").remove();
