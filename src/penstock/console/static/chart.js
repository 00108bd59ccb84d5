// Metrics of one job: one small chart each, along the step or the time.
"use strict";
(() => {
  const REFRESH_MS = 2000;
  const MOST = 8; // charts
  const HEIGHT = 176;
  const panel = document.querySelector("[data-charts]");
  if (!panel) return;
  const plots = panel.querySelector(".plots"), empty = panel.querySelector(".empty");
  const axis = panel.querySelector("[data-axis]"), logScale = panel.querySelector("[data-log-scale]");
  const drawn = new Map(); // metric -> {chart, box, value}
  let series = {}, begin = 0, before = "";

  const live = () => document.querySelector("[data-live]");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const write = (value) => (value === null || value === undefined ? "-" : Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-4) ? value.toExponential(2) : Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 6 }));
  const seconds = (value) => (value < 60 ? `${Number(value.toPrecision(3))}s` : value < 3600 ? `${Number((value / 60).toPrecision(3))}m` : `${Number((value / 3600).toPrecision(3))}h`);

  // Along the step, what a restart repeats replaces what it repeats; along the time, all of it shows.
  function points(rows) {
    const along = [];
    const usable = rows.filter((row) => Number.isFinite(row[2]) && (!logScale.checked || row[2] > 0));
    if (axis.value === "time") return [usable.map((row) => when(row[1]) - begin), usable.map((row) => row[2])];
    for (const row of usable) {
      while (along.length && along[along.length - 1][0] >= row[0]) along.pop();
      along.push(row);
    }
    return [along.map((row) => row[0]), along.map((row) => row[2])];
  }
  const when = (t) => (typeof t === "string" ? Date.parse(t) / 1000 : t);

  // The server has made room for the metrics that it knew of, so that nothing moves when they are drawn.
  function placeFor(name) {
    let box = [...plots.children].find((node) => node.dataset.metric === name);
    if (!box) {
      box = document.createElement("div");
      box.className = "plot";
      box.dataset.metric = name;
      const title = document.createElement("h3");
      title.append(name, document.createElement("span"));
      box.append(title);
      plots.append(box);
    }
    return { box, value: box.querySelector("span") };
  }

  function make(name, data) {
    const { box, value } = placeFor(name);
    const grid = { stroke: colour("--line"), width: 1 }, font = "11px system-ui, sans-serif", stroke = colour("--muted");
    const chart = new uPlot({
      width: Math.max(200, box.clientWidth), height: HEIGHT, legend: { show: false },
      cursor: { sync: { key: "job" }, y: false, points: { size: 6 } },
      scales: { x: { time: false }, y: { distr: logScale.checked ? 3 : 1 } },
      series: [{}, { stroke: colour("--run"), width: 1.75, points: { show: data[0].length < 2 } }],
      axes: [
        { stroke, grid, font, size: 26, ticks: { stroke: colour("--line"), size: 4 }, values: (_, marks) => marks.map((mark) => (axis.value === "time" ? seconds(mark) : write(mark))) },
        { stroke, grid, font, size: 52, ticks: { show: false }, values: (_, marks) => marks.map((mark) => (mark === null ? "" : write(mark))) },
      ],
      hooks: { setCursor: [(plot) => label(drawn.get(name), plot.cursor.idx)] },
    }, data, box);
    drawn.set(name, { chart, box, value });
  }
  function label(entry, index) {
    if (!entry) return;
    const [x, y] = entry.chart.data;
    const shown = index === null || index === undefined ? x.length - 1 : index;
    if (shown < 0) return;
    entry.value.textContent = `${write(y[shown])} at ${axis.value === "time" ? seconds(x[shown]) : `step ${write(x[shown])}`}`;
  }

  function draw() {
    const names = Object.keys(series).sort((a, b) => (b === "loss") - (a === "loss") || (a < b ? -1 : 1)).slice(0, MOST);
    const first = Object.values(series).flatMap((rows) => (rows.length ? [when(rows[0][1])] : []));
    begin = first.length ? Math.min(...first) : 0;
    empty.hidden = names.length > 0;
    for (const [name, entry] of drawn) if (!names.includes(name)) { entry.chart.destroy(); drawn.delete(name); }
    for (const box of [...plots.children]) if (!names.includes(box.dataset.metric)) box.remove();
    for (const name of names) {
      const data = points(series[name]);
      if (drawn.has(name)) drawn.get(name).chart.setData(data);
      else make(name, data);
      label(drawn.get(name), drawn.get(name).chart.cursor.idx);
    }
  }
  function redraw() {
    for (const entry of drawn.values()) entry.chart.destroy();
    drawn.clear();
    draw();
  }

  async function load() {
    const done = live().hasAttribute("data-final");
    if (!document.hidden) {
      try {
        const answer = await fetch(panel.dataset.charts, { headers: { Accept: "application/json" } });
        if (answer.ok) {
          const text = await answer.text();
          if (text !== before) { before = text; series = JSON.parse(text).series || {}; draw(); }
        }
      } catch { /* the page's refresh says that the server is away */ }
    }
    if (!done || document.hidden) setTimeout(load, REFRESH_MS);
  }

  axis.addEventListener("change", redraw);
  logScale.addEventListener("change", redraw);
  document.addEventListener("penstock:theme", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(() => {
    for (const { chart, box } of drawn.values()) if (box.clientWidth && chart.width !== box.clientWidth) chart.setSize({ width: box.clientWidth, height: HEIGHT });
  }).observe(plots);
  load();
})();
