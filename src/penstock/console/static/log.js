// The log of one job: streamed, followed, bounded. Text goes in as text only.
"use strict";
(() => {
  const KEEP = 5000; // lines in the page
  const RETRY_MS = 2000;
  const HIDDEN_MS = 15000; // a hidden tab gives its connection back after this long
  const panel = document.querySelector("[data-log]");
  if (!panel) return;
  const $ = (query) => panel.querySelector(query);
  const box = $(".log"), state = $(".log-state"), toEnd = $(".to-end"), hits = $("[data-hits]");
  const rank = $("[data-rank]"), attempt = $("[data-attempt]"), query = $("input[type=search]"), followBox = $("[data-follow]");
  const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;
  const PREFIX = /^\[(?:rank )?(\d{1,6}|launcher)\] ?/;
  let stop = null; // aborts the stream
  let pending = []; // lines that are not in the page yet
  let partial = "", dropped = 0, frame = 0, total = 0, at = -1, restart = 0;

  const live = () => document.querySelector("[data-live]");
  const final = () => live().hasAttribute("data-final");

  function address(follow) {
    const given = new URLSearchParams();
    if (rank.value) given.set("rank", rank.value);
    if (attempt.value) given.set("attempt", attempt.value);
    if (follow) { given.set("follow", "true"); given.set("tail", KEEP); }
    const text = given.toString();
    return panel.dataset.log + (text ? `?${text}` : "");
  }

  async function read() {
    if (stop) stop.abort();
    clearTimeout(restart);
    const mine = (stop = new AbortController());
    pending = []; partial = ""; dropped = 0; total = 0;
    let fresh = true;
    state.textContent = "Reading";
    try {
      const answer = await fetch(address(true), { signal: mine.signal, headers: { Accept: "text/plain" } });
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error((await problem(answer)) || `The server answered ${answer.status}`);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      state.textContent = live().dataset.attemptNow === "0" ? "Lines appear here once the job runs" : "Following";
      for (;;) {
        const { value, done } = await reader.read();
        if (mine !== stop) return;
        if (fresh) { box.replaceChildren(); fresh = false; }
        if (done) break;
        take(value);
      }
      if (partial) { pending.push(partial); partial = ""; schedule(); }
      if (final()) ended(); else { state.textContent = "Waiting for output"; again(); }
    } catch (error) {
      if (mine !== stop || error.name === "AbortError") return;
      state.textContent = `${error.message}; trying again`;
      again();
    }
  }
  function again() { clearTimeout(restart); restart = setTimeout(read, RETRY_MS); }
  function ended() {
    draw();
    state.textContent = total ? `End of the log, ${total.toLocaleString("en")} ${total === 1 ? "line" : "lines"}${total > KEEP ? `, the last ${KEEP.toLocaleString("en")} shown` : ""}` : "The job wrote nothing";
  }
  async function problem(answer) {
    try { return (await answer.json()).message; } catch { return ""; }
  }

  function take(text) {
    const lines = (partial + text).split("\n");
    partial = lines.pop();
    if (partial.length > 65536) { lines.push(partial); partial = ""; }
    total += lines.length;
    for (const line of lines) pending.push(line);
    if (pending.length > KEEP) { dropped += pending.length - KEEP; pending = pending.slice(-KEEP); }
    schedule();
  }
  function schedule() { if (!frame) frame = requestAnimationFrame(draw); }

  function draw() {
    cancelAnimationFrame(frame);
    frame = 0;
    if (!pending.length) return;
    const lines = pending;
    pending = [];
    const overflow = box.childElementCount + lines.length - KEEP;
    if (overflow >= box.childElementCount) box.replaceChildren();
    else for (let n = 0; n < overflow; n += 1) box.firstElementChild.remove();
    if (dropped) { box.append(lineNode(`... ${dropped.toLocaleString("en")} older lines are in the download ...`, "gap")); dropped = 0; }
    const batch = document.createDocumentFragment();
    for (const line of lines) batch.append(lineNode(line));
    box.append(batch);
    if (query.value) count();
    if (followBox.checked) box.scrollTop = box.scrollHeight;
    else toEnd.hidden = false;
  }

  function lineNode(text, kind) {
    const node = document.createElement("div");
    if (kind) node.className = kind;
    fill(node, text.slice(0, 20000).replace(CONTROLS, "\ufffd"));
    return node;
  }
  function fill(node, text) {
    node.text = text;
    node.textContent = "";
    const found = rank.value ? null : PREFIX.exec(text);
    if (found) {
      const label = document.createElement("b");
      label.textContent = found[1];
      label.className = found[1] === "launcher" ? "r0" : `r${(Number(found[1]) % 5) + 1}`;
      node.append(label);
      text = text.slice(found[0].length);
    }
    const wanted = query.value.toLowerCase();
    if (!wanted) { node.append(text); return; }
    const lower = text.toLowerCase();
    let from = 0;
    for (let hit = lower.indexOf(wanted); hit >= 0; hit = lower.indexOf(wanted, from)) {
      const mark = document.createElement("mark");
      mark.textContent = text.slice(hit, hit + wanted.length);
      node.append(text.slice(from, hit), mark);
      from = hit + wanted.length;
    }
    node.append(text.slice(from));
  }

  // -- searching ------------------------------------------------------------------------------------------------
  function search() {
    for (const node of box.children) fill(node, node.text);
    at = -1;
    count();
    if (query.value) step(-1);
  }
  function count() {
    const found = box.querySelectorAll("mark").length;
    hits.textContent = query.value ? (found ? `${at >= 0 ? `${at + 1} of ` : ""}${found}` : "none") : "";
  }
  function step(by) {
    const marks = [...box.querySelectorAll("mark")];
    if (!marks.length) return;
    box.querySelector(".at")?.classList.remove("at");
    at = at < 0 ? (by < 0 ? marks.length - 1 : 0) : (at + by + marks.length) % marks.length;
    marks[at].parentElement.classList.add("at");
    setFollow(false);
    const node = marks[at].parentElement;
    box.scrollTop = node.offsetTop - box.clientHeight / 2;
    count();
  }
  let typed = 0;
  query.addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(search, 120); });
  query.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    step(event.shiftKey ? 1 : -1);
  });

  // -- following ------------------------------------------------------------------------------------------------
  function setFollow(on) {
    followBox.checked = on;
    toEnd.hidden = on;
    if (on) box.scrollTop = box.scrollHeight;
  }
  let top = 0;
  box.addEventListener("scroll", () => {
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    if (atEnd && !followBox.checked) setFollow(true);
    else if (!atEnd && box.scrollTop < top - 4 && followBox.checked) setFollow(false);
    top = box.scrollTop;
  }, { passive: true });
  followBox.addEventListener("change", () => setFollow(followBox.checked));
  toEnd.addEventListener("click", () => setFollow(true));
  $("[data-wrap]").addEventListener("change", (event) => box.classList.toggle("wrap", event.target.checked));
  for (const field of [rank, attempt]) field.addEventListener("change", () => { $("[data-download]").href = address(false); read(); });

  // -- a new attempt, the end of the job, a hidden tab -----------------------------------------------------------
  let known = live().dataset.attemptNow;
  document.addEventListener("penstock:refreshed", () => {
    const number = live().dataset.attemptNow;
    if (number === known) return;
    known = number;
    if (![...attempt.options].some((option) => option.value === number)) attempt.add(new Option(number, number), 1);
    if (!attempt.value) read();
  });
  let asleep = 0;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(asleep);
    if (document.hidden) asleep = setTimeout(() => { if (stop) stop.abort(); stop = null; clearTimeout(restart); }, HIDDEN_MS);
    else if (!stop) read();
  });
  read();
})();
