// A node's recent history: one small chart for each question, a line for each device.
"use strict";
(() => {
  const REFRESH_MS = 10_000;
  const HEIGHT = 150;
  const HUES = 8;
  const panel = document.querySelector("[data-telemetry]");
  if (!panel) return;
  const plots = panel.querySelector(".plots"), empty = panel.querySelector(".empty"), span = panel.querySelector("[data-minutes]");
  const drawn = new Map(); // chart's id -> {chart, box, value, names}
  let found = [], timer = 0;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const write = (value) => (value === null || value === undefined ? "-" : Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 9 }));
  const short = (name) => (name.length > 14 ? `${name.slice(0, 12)}…` : name);

  // All lines along the times that any of them has; where one was not told, nothing is drawn.
  function table(lines) {
    const times = [...new Set(lines.flatMap((line) => line.samples.map((sample) => sample[0])))].sort((a, b) => a - b);
    const rows = lines.map((line) => {
      const known = new Map(line.samples);
      return times.map((time) => (known.has(time) ? known.get(time) : null));
    });
    return [times, ...rows];
  }

  function make(one) {
    const box = document.createElement("div"), title = document.createElement("h3"), value = document.createElement("span");
    box.className = "plot";
    box.dataset.chart = one.id;
    title.append(`${one.title}, ${one.unit}`, value);
    box.append(title);
    plots.append(box);
    const grid = { stroke: colour("--line"), width: 1 }, font = "11px system-ui, sans-serif", stroke = colour("--muted");
    const entry = { box, value, names: one.lines.map((line) => line.name) };
    entry.chart = new uPlot({
      width: Math.max(200, box.clientWidth), height: HEIGHT, legend: { show: false },
      cursor: { sync: { key: "node" }, y: false, points: { size: 5 } },
      scales: { y: { range: (_, low, high) => [Math.min(0, low), high > 0 ? high * 1.08 : 1] } },
      series: [{}, ...one.lines.map((_, index) => ({ stroke: colour(`--q${index % HUES}`), width: 1.5, spanGaps: false, points: { show: false } }))],
      axes: [
        { stroke, grid, font, size: 26, ticks: { stroke: colour("--line"), size: 4 } },
        { stroke, grid, font, size: 48, ticks: { show: false }, values: (_, marks) => marks.map(write) },
      ],
      hooks: { setCursor: [(plot) => label(one.id, plot.cursor.idx)] },
    }, table(one.lines), box);
    drawn.set(one.id, entry);
  }
  // One line is told by its value, a few by theirs, many by the lowest and the highest.
  function label(id, index) {
    const entry = drawn.get(id);
    if (!entry) return;
    const [times, ...rows] = entry.chart.data;
    const at = index === null || index === undefined ? times.length - 1 : index;
    const known = rows.map((row, line) => [entry.names[line], row[at]]).filter((pair) => pair[1] !== null && pair[1] !== undefined);
    const values = known.map((pair) => pair[1]);
    if (!values.length) entry.value.textContent = "-";
    else if (known.length === 1) entry.value.textContent = known[0][0] === "node" ? write(values[0]) : `${short(known[0][0])} ${write(values[0])}`;
    else if (known.length <= 3) entry.value.textContent = known.map(([name, value]) => `${short(name)} ${write(value)}`).join(", ");
    else entry.value.textContent = `${write(Math.min(...values))} to ${write(Math.max(...values))}`;
  }

  function draw() {
    if (empty) empty.hidden = found.length > 0;
    else panel.hidden = !found.length; // a page that can do without it
    const wanted = new Map(found.map((one) => [one.id, one]));
    for (const [id, entry] of drawn) {
      const one = wanted.get(id);
      if (one && one.lines.map((line) => line.name).join() === entry.names.join()) continue;
      entry.chart.destroy();
      entry.box.remove();
      drawn.delete(id);
    }
    for (const one of found) {
      if (drawn.has(one.id)) drawn.get(one.id).chart.setData(table(one.lines));
      else make(one);
      plots.append(drawn.get(one.id).box); // in the order in which they came
      label(one.id, drawn.get(one.id).chart.cursor.idx);
    }
  }
  function redraw() {
    for (const entry of drawn.values()) { entry.chart.destroy(); entry.box.remove(); }
    drawn.clear();
    draw();
  }

  async function load() {
    clearTimeout(timer);
    if (!document.hidden) {
      try {
        const answer = await fetch(`${panel.dataset.telemetry}?minutes=${span.value}`, { headers: { Accept: "application/json" } });
        if (answer.ok) { found = (await answer.json()).charts; draw(); }
      } catch { /* the page's refresh says that the server is away */ }
    }
    timer = setTimeout(load, REFRESH_MS);
  }

  span.addEventListener("change", load);
  document.addEventListener("penstock:theme", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(() => {
    for (const { chart, box } of drawn.values()) if (box.clientWidth && chart.width !== box.clientWidth) chart.setSize({ width: box.clientWidth, height: HEIGHT });
  }).observe(plots);
  load();
})();
