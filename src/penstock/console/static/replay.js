// A replay's use, line and waits over time: one chart a scenario, the same scale on both sides.
"use strict";
(() => {
  const HEIGHT = 170;
  const HUES = 9; // --q0 ... --q8
  const KINDS = [
    { key: "gpus", title: "GPUs in use", stacked: true },
    { key: "waiting", title: "Jobs in line", stacked: true },
    { key: "wait_s", title: "Mean wait, by submission", stacked: false },
  ];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const plain = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 2 });
  const time = (s) => (s < 60 ? `${plain(s)}s` : s < 3600 ? `${plain(s / 60)}m` : s < 172800 ? `${plain(s / 3600)}h` : `${plain(s / 86400)}d`);
  const STEPS = [1, 5, 15, 60, 300, 900, 3600, 10800, 21600, 43200, ...[1, 2, 5, 10, 20, 30, 50, 100, 200, 365, 1000, 3650].map((days) => days * 86400)];
  let charts = [], answer = null, drawnFor = null;

  // Stacked: of each queue the sum of itself and all after it, the tallest first, so that each is painted over the last.
  function layers(timeline, kind, names) {
    const rows = names.map((name) => timeline[kind.key][name] || timeline.at.map(() => null));
    if (!kind.stacked) return rows;
    const sums = [];
    let above = timeline.at.map(() => 0);
    for (const row of [...rows].reverse()) {
      above = above.map((value, n) => value + (row[n] || 0));
      sums.unshift(above);
    }
    return sums;
  }
  function top(timelines, kind, names) {
    let most = kind.key === "gpus" ? Math.max(...timelines.map((t) => t.capacity)) : 0;
    for (const t of timelines) for (const row of layers(t, kind, names)) for (const v of row) if (v > most) most = v;
    return most || 1;
  }

  function make(box, timeline, kind, names, most, last) {
    const grid = { stroke: colour("--line"), width: 1 }, stroke = colour("--muted"), font = "11px system-ui, sans-serif";
    const write = kind.key === "wait_s" ? time : plain;
    const show = box.querySelector("h3 span");
    const rows = layers(timeline, kind, names);
    const series = names.map((_, n) => {
      const hue = colour(`--q${n % HUES}`);
      return { stroke: hue, width: kind.stacked ? 0.5 : 1.5, fill: kind.stacked ? hue : undefined, points: { show: timeline.at.length < 2 }, spanGaps: true };
    });
    const data = [timeline.at, ...rows];
    if (kind.key === "gpus") {
      series.push({ stroke: colour("--text"), width: 1, dash: [4, 4], points: { show: false } });
      data.push(timeline.at.map(() => timeline.capacity));
    }
    const label = (index) => {
      const n = index === null || index === undefined ? null : index;
      if (n === null) { show.textContent = kind.key === "gpus" ? `of ${plain(timeline.capacity)}` : ""; return; }
      const value = timeline.all[kind.key][n];
      show.textContent = `${value === null ? "-" : write(value)} after ${time(timeline.at[n])}`;
    };
    const chart = new uPlot({
      width: Math.max(180, box.clientWidth), height: HEIGHT, legend: { show: false },
      cursor: { sync: { key: "replay" }, y: false, points: { show: false } },
      scales: { x: { time: false, range: [0, last] }, y: { range: [0, most * 1.04] } },
      series: [{}, ...series],
      axes: [
        { stroke, grid, font, size: 26, ticks: { stroke: colour("--line"), size: 4 }, incrs: STEPS, space: 60, values: (_, marks) => marks.map(time) },
        { stroke, grid, font, size: 48, ticks: { show: false }, ...(kind.key === "wait_s" ? { incrs: STEPS } : {}), values: (_, marks) => marks.map(write) },
      ],
      hooks: { setCursor: [(plot) => label(plot.cursor.idx)] },
    }, data, box);
    label(null);
    charts.push({ chart, box });
  }

  function draw() {
    const panel = document.querySelector("[data-replay]");
    if (!panel || !answer) return;
    for (const { chart } of charts) chart.destroy();
    charts = [];
    const pairs = panel.querySelector("[data-pairs]"), legend = panel.querySelector("[data-legend]");
    pairs.replaceChildren();
    legend.replaceChildren();
    const timelines = answer.result.scenarios.map((each) => each.timeline);
    const names = [...new Set(timelines.flatMap((t) => Object.keys(t.gpus)))];
    const last = Math.max(...timelines.map((t) => (t.at.length ? t.at[t.at.length - 1] + t.width_s : 1)));
    names.forEach((name, n) => {
      const item = document.createElement("li");
      item.className = `key hue-${n % HUES}`;
      item.textContent = name;
      legend.append(item);
    });
    for (const kind of KINDS) {
      const most = top(timelines, kind, names);
      timelines.forEach((timeline, n) => {
        const box = document.createElement("div");
        box.className = "plot";
        const title = document.createElement("h3");
        title.append(timelines.length > 1 ? `${"AB"[n]}: ${kind.title}` : kind.title, document.createElement("span"));
        box.append(title);
        pairs.append(box);
        make(box, timeline, kind, names, most, last);
      });
    }
  }

  async function load() {
    const panel = document.querySelector("[data-replay]");
    if (!panel || drawnFor === panel.dataset.replay) return;
    drawnFor = panel.dataset.replay;
    try {
      const got = await fetch(panel.dataset.replay, { headers: { Accept: "application/json" } });
      if (!got.ok) throw new Error(String(got.status));
      answer = await got.json();
    } catch {
      panel.querySelector("[data-none]").hidden = false;
      return;
    }
    draw();
  }
  document.addEventListener("penstock:refreshed", load);
  document.addEventListener("penstock:theme", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let resized = 0;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => { for (const { chart, box } of charts) chart.setSize({ width: Math.max(180, box.clientWidth), height: HEIGHT }); }, 120); });
  load();
})();
