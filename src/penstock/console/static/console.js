// Every page: refresh in place, relative times, keyboard, theme, dialogs, copying.
"use strict";
(() => {
  const REFRESH_MS = 2000;
  const $ = (query, root = document) => root.querySelector(query);
  const $$ = (query, root = document) => [...root.querySelectorAll(query)];
  const skew = Number(document.documentElement.dataset.now) * 1000 - Date.now(); // the server's clock counts
  const now = () => Date.now() + skew;

  // -- patching: the new markup is laid over the old, so focus, scroll and selection stay -----------------------
  function patch(have, want) {
    if (have.nodeType !== 1) {
      if (have.nodeValue !== want.nodeValue) have.nodeValue = want.nodeValue;
      return;
    }
    if (have.hasAttribute("data-own") || have.isEqualNode(want)) return;
    for (const { name } of [...have.attributes]) if (!want.hasAttribute(name) && name !== "open" && name !== "class") have.removeAttribute(name);
    for (const { name, value } of want.attributes) if (have.getAttribute(name) !== value) have.setAttribute(name, value);
    if (!want.hasAttribute("class")) have.removeAttribute("class");
    patchChildren(have, want);
  }

  function patchChildren(have, want) {
    const wanted = new Set([...want.children].map((node) => node.id).filter(Boolean));
    const known = new Map([...have.children].filter((node) => node.id).map((node) => [node.id, node]));
    let cursor = have.firstChild;
    for (const node of [...want.childNodes]) {
      while (cursor && cursor.id && !wanted.has(cursor.id)) cursor = removeAndNext(cursor);
      let match = node.id ? known.get(node.id) : null;
      if (!match && !node.id && cursor && !cursor.id && cursor.nodeType === node.nodeType && cursor.nodeName === node.nodeName) match = cursor;
      if (!match) have.insertBefore(node, cursor);
      else {
        if (match === cursor) cursor = cursor.nextSibling;
        else have.insertBefore(match, cursor);
        patch(match, node);
      }
    }
    while (cursor) cursor = removeAndNext(cursor);
  }

  function removeAndNext(node) {
    const next = node.nextSibling;
    node.remove();
    return next;
  }

  htmx.defineExtension("patch", {
    isInlineSwap: (style) => style === "patch",
    handleSwap: (style, target, fragment) => {
      if (style !== "patch") return false;
      const fresh = fragment.firstElementChild;
      if (!fresh) return [];
      const focused = document.activeElement;
      patch(target, fresh);
      if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
      times();
      document.dispatchEvent(new Event("penstock:refreshed"));
      return [target];
    },
  });

  // -- refreshing -----------------------------------------------------------------------------------------------
  let seen = null;
  let busy = false;
  let last = Date.now(); // a page may want to be asked for less often
  function refresh() {
    const live = $("[data-live]");
    if (!live || busy || document.hidden || live.hasAttribute("data-final")) return;
    if (new URLSearchParams(location.search).has("verify")) return; // a verification is asked for, not repeated
    if (Date.now() - last < Number(live.dataset.every || 0) * 1000) return;
    last = Date.now();
    busy = true;
    const address = location.pathname + location.search;
    htmx.ajax("GET", address, { source: live, target: live, swap: "patch", headers: seen && seen.address === address ? { "Penstock-Seen": seen.rev } : {} })
      .catch(() => { /* said by the banner */ })
      .finally(() => { busy = false; });
  }
  setInterval(refresh, REFRESH_MS);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) { refresh(); times(); } });

  document.addEventListener("htmx:beforeSwap", (event) => {
    const { xhr, requestConfig, target } = event.detail;
    const polled = requestConfig.elt === target;
    if (polled && requestConfig.path !== location.pathname + location.search) event.detail.shouldSwap = false; // filtered meanwhile
    const rev = xhr.getResponseHeader("Penstock-Rev");
    if (polled && rev) seen = { address: requestConfig.path, rev };
    else seen = null;
  });
  const lost = $(".lost");
  document.addEventListener("htmx:afterRequest", (event) => {
    const { xhr, successful } = event.detail;
    const failed = !successful;
    lost.hidden = !(failed && (xhr.status === 0 || xhr.status >= 500));
    if (failed && xhr.status === 404 && event.detail.requestConfig.elt.matches("[data-live]")) location.reload();
  });
  for (const name of ["htmx:replacedInHistory", "htmx:pushedIntoHistory"]) document.addEventListener(name, syncFromAddress);
  function syncFromAddress() {
    const given = new URLSearchParams(location.search);
    for (const field of $$("[data-from-address]")) field.value = given.get(field.dataset.fromAddress) || "";
  }
  // Empty fields stay out of the address.
  document.addEventListener("htmx:configRequest", (event) => {
    const given = event.detail.parameters;
    if (event.detail.elt.matches("form.filter")) for (const key of [...Object.keys(given)]) if (given[key] === "") delete given[key];
  });

  // -- times ----------------------------------------------------------------------------------------------------
  function ago(seconds) {
    if (seconds < 1.5) return "now";
    for (const [unit, size] of [["d", 86400], ["h", 3600], ["m", 60]]) if (seconds >= size) return `${Math.floor(seconds / size)}${unit} ago`;
    return `${Math.floor(seconds)}s ago`;
  }
  function span(seconds) {
    if (seconds < 10) return `${Number(Math.max(0, seconds).toFixed(1))}s`;
    let left = Math.round(seconds);
    if (left < 60) return `${left}s`;
    const parts = [];
    for (const [unit, size] of [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]]) {
      if (left >= size) { parts.push(`${Math.floor(left / size)}${unit}`); left %= size; }
    }
    return parts.slice(0, 2).join("");
  }
  function times() {
    const moment = now();
    for (const node of $$("time[data-ago], time[data-since]")) {
      const seconds = (moment - Date.parse(node.dateTime)) / 1000;
      const text = node.hasAttribute("data-ago") ? ago(seconds) : span(seconds);
      if (node.textContent !== text) node.textContent = text;
    }
  }
  setInterval(() => { if (!document.hidden) times(); }, 1000);

  // -- keyboard -------------------------------------------------------------------------------------------------
  let prefix = 0; // when "g" was pressed
  const typing = (node) => node.matches("input:not([type=checkbox]), select, textarea, [contenteditable]");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.key === "Escape" && typing(event.target)) { event.target.blur(); return; }
    if (typing(event.target) || $("dialog[open]")) return;
    if (Date.now() - prefix < 1200) {
      const to = { j: "/", s: "/services", q: "/queues", n: "/nodes", c: "/capacity", m: "/cost", p: "/goodput", e: "/events" }[event.key];
      prefix = 0;
      if (to) { event.preventDefault(); location.assign(to); return; }
    }
    const act = { "/": focusFilter, j: () => move(1), k: () => move(-1), g: () => { prefix = Date.now(); }, "?": () => open("keys"), f: follow }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  function focusFilter() {
    const field = $("[data-filter]");
    if (field) { field.focus(); field.select(); }
  }
  function move(by) {
    const rows = $$("a.row");
    if (!rows.length) return;
    const at = rows.findIndex((row) => row === document.activeElement);
    const next = rows[Math.min(rows.length - 1, Math.max(0, at < 0 ? (by > 0 ? 0 : rows.length - 1) : at + by))];
    next.focus();
    next.closest("tr, li").scrollIntoView({ block: "nearest" });
  }
  function follow() {
    const box = $("[data-follow]");
    if (box) box.click();
  }

  // -- theme, dialogs, copying ----------------------------------------------------------------------------------
  function say(text) { $("#say").textContent = text; }
  function open(id, opener) {
    const dialog = document.getElementById(id);
    if (!dialog) return;
    if (opener && opener.dataset.action) {
      $("form", dialog).setAttribute("action", opener.dataset.action);
      $("[data-name]", dialog).textContent = opener.dataset.name;
    }
    dialog.showModal();
  }
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.hasAttribute("data-theme-toggle")) nextTheme();
    else if (button.dataset.open) open(button.dataset.open, button);
    else if (button.hasAttribute("data-print")) print();
    else if (button.hasAttribute("data-close")) button.closest("dialog").close();
    else if (button.hasAttribute("data-copy")) {
      await copy(button.dataset.copy);
      const word = $("span", button);
      if (word) { word.textContent = "Copied"; setTimeout(() => { word.textContent = "Copy"; }, 1500); }
      say("Copied");
    }
  });
  function nextTheme() {
    const root = document.documentElement;
    const order = ["", "light", "dark"];
    const next = order[(order.indexOf(root.dataset.theme || "") + 1) % 3];
    if (next) root.dataset.theme = next; else delete root.dataset.theme;
    document.cookie = `penstock_theme=${next}; path=/; max-age=31536000; samesite=lax`;
    say(`Theme: ${next || "system"}`);
    $("[data-theme-toggle]").title = `Theme: ${next || "system"}`;
    document.dispatchEvent(new Event("penstock:theme"));
  }
  async function copy(text) {
    try { await navigator.clipboard.writeText(text); } catch { // no clipboard API over plain HTTP
      const area = Object.assign(document.createElement("textarea"), { value: text, className: "visually-hidden" });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }
  times();
})();
