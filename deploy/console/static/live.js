// Keeps a page up to date. The server has drawn it already; this puts text into the elements that are marked with
// data-f (a field of an object), data-list (rows of objects) and data-attr-NAME (a field as data-NAME). Text is only
// ever set as text.

import { Stream, part } from "./stream.js";

const body = document.body.dataset;
const topics = body.topics.split(" ");
const hooks = new Set();
const AT_FIRST = { live: false, since: 0, silent: 0, gone: "" };
export const now = { frame: null, mode: AT_FIRST, paused: 0, revision: Number(body.revision) };

export function onFrame(hook) {
  hooks.add(hook);
  if (now.frame) hook(now.frame);
}

// ---- text

// Characters that hide or turn round text are shown as their escapes, as the commands show them.
const DANGEROUS = /[\u0000-\u0008\u000a-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\u2028\u2029\ud800-\udfff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;
const escaped = sign => "\\u" + sign.codePointAt(0).toString(16).padStart(4, "0");
export const clean = value => String(value).replace(DANGEROUS, escaped);

export function setText(element, value) {
  const text = clean(value ?? "");
  if (element.textContent !== text) element.textContent = text;
}

export const moment = seconds => (seconds ? new Date(seconds * 1000).toISOString().replace("T", " ").slice(0, 19) + " UTC" : "");
const SIGNS = ["✓", "i", "!", "✗"];
const SHOWN = {
  sign: level => SIGNS[level],
  moment,
  name: value => value || "none",
  unnamed: value => value || "(not known)",
  known: value => value ?? "not known",
  took: value => (value ? `, took ${value}` : ""),
  role: leads => (leads ? "leader" : "standby"),
  order: members => members.join(" > "),
  types: types => types.map(t => `${t.type} ${t.sent}/${t.acked}${t.error ? ` rejected: ${t.error}` : ""}`).join("; "),
};

const field = (object, path) => path.split(".").reduce((value, name) => value?.[name], object);

export function fill(root, object) {
  for (const one of root.querySelectorAll("[data-f]")) {
    if (one.closest("template") || outside(one, root)) continue;
    const value = field(object, one.dataset.f);
    setText(one, one.dataset.as ? SHOWN[one.dataset.as](value) : value);
  }
  for (const one of [root, ...root.querySelectorAll("*")]) if (!outside(one, root)) setAttributes(one, object);
}

// Rows of a list inside belong to objects of their own.
const outside = (one, root) => {
  const list = one.closest("[data-list]");
  return list !== null && list !== root && root.contains(list);
};

function setAttributes(one, object) {
  for (const [name, path] of Object.entries(one.dataset)) {
    if (!name.startsWith("attr") || name === "attr") continue;
    const key = name[4].toLowerCase() + name.slice(5);
    const value = clean(field(object, path) ?? "");
    if (one.dataset[key] !== value) one.dataset[key] = value;
  }
  if (one.dataset.meter) {
    if (one.dataset.most) one.max = field(object, one.dataset.most);
    one.value = field(object, one.dataset.meter) ?? 0;
  }
  if (one.dataset.parts) setParts(one, field(object, one.dataset.parts) ?? []);
  if (one.dataset.link) {
    const href = one.dataset.prefix + encodeURIComponent(field(object, one.dataset.link) ?? "");
    if (one.getAttribute("href") !== href) one.setAttribute("href", href);
  }
}

// The rectangles of a bar. Only those that differ are changed.
function setParts(bar, parts) {
  while (bar.childElementCount > parts.length) bar.lastElementChild.remove();
  parts.forEach((part, index) => {
    const one = bar.children[index] ?? bar.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "rect"));
    const wanted = { class: part.group, x: part.x, width: part.width, height: 10 };
    for (const [name, value] of Object.entries(wanted)) {
      if (one.getAttribute(name) !== String(value)) one.setAttribute(name, value);
    }
  });
}

// ---- lists

function keyed(list) {
  return new Map([...list.children].filter(row => row.dataset?.key !== undefined).map(row => [row.dataset.key, row]));
}

function setRows(list, rows, { whole }) {
  const template = list.querySelector(":scope > template");
  const known = keyed(list);
  for (const [key, object] of rows) {
    let row = known.get(key);
    if (object === null) {
      if (row) remove(row);
      continue;
    }
    if (!row) {
      if (!template) continue;
      row = template.content.firstElementChild.cloneNode(true);
      row.dataset.key = key;
      if (list.dataset.newest === "first" && !whole) template.after(row);
      else list.append(row);
      for (const button of row.querySelectorAll("button[disabled][data-act]")) button.disabled = false;
    }
    fillRow(row, object);
  }
  if (whole && template) {
    const wanted = new Set(rows.map(([key]) => key));
    for (const [key, row] of known) if (!wanted.has(key)) remove(row);
  }
}

// A button that an act has made pointless disappears. The focus goes to the one that took its place.
function fillRow(row, object) {
  const held = row.contains(document.activeElement) ? document.activeElement : null;
  fill(row, object);
  if (held && !held.offsetParent) {
    [...row.querySelectorAll("a,button:not(:disabled)")].find(one => one.offsetParent)?.focus();
  }
}

function remove(row) {
  const held = row.contains(document.activeElement);
  const next = row.nextElementSibling ?? row.previousElementSibling;
  row.remove();
  if (held) (next?.querySelector("a,button:not(:disabled)") ?? document.getElementById("main")).focus();
}

// ---- frames

function show(frame, { whole }) {
  now.revision = frame.revision;
  if (frame.overview) {
    for (const one of document.querySelectorAll('[data-obj="overview"]')) fill(one, frame.overview);
    setTitle(frame.overview.level);
  }
  for (const list of document.querySelectorAll("[data-list]")) {
    const [kind, ...path] = list.dataset.list.split(".");
    if (!(kind in frame)) continue;
    if (path.length) {
      const rows = field(frame[kind], path.join(".")) ?? [];
      setRows(list, rows.map(row => [String(row[list.dataset.keyField]), row]), { whole: true });
    } else setRows(list, Object.entries(frame[kind]), { whole });
  }
  for (const list of document.querySelectorAll("[data-rows]")) {
    const rows = frame[list.dataset.rows] ?? {};
    for (const [key, row] of keyed(list)) if (rows[key]) fillRow(row, rows[key]);
  }
  tick();
}

function setTitle(level) {
  const title = SIGNS[level] + document.title.slice(1);
  if (document.title !== title) document.title = title;
}

function take(message) {
  if (message.type === "mode") {
    now.mode = message;
    tick();
    return;
  }
  if (now.paused) {
    now.missed = true;
    return;
  }
  const whole = message.type === "frame";
  const frame = message[message.type];
  if (whole || !now.frame) now.frame = frame;
  else join(now.frame, frame);
  show(frame, { whole });
  announce(frame, whole);
  for (const hook of hooks) hook(now.frame, whole ? null : frame);
}

function join(known, changed) {
  for (const [kind, value] of Object.entries(changed)) {
    if (value === null || typeof value !== "object" || kind === "overview") {
      known[kind] = value;
      continue;
    }
    known[kind] ??= {};
    for (const [key, row] of Object.entries(value)) {
      if (row === null) delete known[kind][key];
      else known[kind][key] = row;
    }
  }
}

// ---- what a screen reader is told: one sentence per change of active, and slots without an owner

let saidLast = "";
let saidAt = 0;

export function announce(frame, whole) {
  const overview = frame.overview;
  if (!overview) return;
  const { total, served } = overview.slots;
  setText(document.getElementById("alarm"), total > served ? `${total - served} slots have no living owner` : "");
  const last = overview.last;
  if (!last || last.trace === saidLast) return;
  const first = !saidLast && whole;
  if (!first && Date.now() - saidAt < 5000) return;
  saidLast = last.trace;
  if (first) return;
  saidAt = Date.now();
  setText(document.getElementById("say"), `${last.kind}: ${last.who}`);
}

// ---- the line that says how fresh the page is

const live = document.getElementById("live");
const liveText = document.getElementById("live-text");
const pause = document.getElementById("pause");
const OPENING = 3000; // ms after which a page that never was live is stale
const PAINT_AWAITED = 1000; // ms
let wasLive = false;
const ago = ms => {
  const s = Math.max(0, Math.round(ms / 1000));
  return s < 120 ? `${s} s` : s < 7200 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`;
};

function tick() {
  const { live: up, since, silent, gone } = now.mode;
  wasLive ||= up;
  let mode = "live";
  let text = `Live, etcd revision ${now.revision}`;
  if (now.paused) {
    mode = "paused";
    text = `Paused since ${moment(now.paused / 1000)} (${ago(Date.now() - now.paused)} ago), at etcd revision ${now.revision}`;
  } else if (!up && !wasLive && performance.now() < OPENING) {
    mode = live.dataset.mode; // the stream is being opened: what the server wrote stays
    text = liveText.textContent;
  } else if (!up) {
    mode = "stale";
    const from = since || Number(body.at) * 1000;
    const why = gone || "the control server does not answer";
    text = `Stale since ${moment(from / 1000)} (${ago(Date.now() - from)} ago): ${why}`;
  } else if (silent) {
    mode = "stale";
    text = `Stale: etcd has been silent for ${Math.round(silent)} s; this is the last known state, revision ${now.revision}`;
  }
  if (live.dataset.mode !== mode) live.dataset.mode = mode;
  setText(liveText, text);
  for (const one of document.querySelectorAll("[data-until]")) {
    const until = Number(one.dataset.until);
    setText(one, until ? `until ${moment(until)}, ${ago(until * 1000 - Date.now())} left` : "");
  }
  for (const one of document.querySelectorAll("[data-since]")) {
    const since = Number(one.dataset.since);
    setText(one, since ? `since ${moment(since)} (${ago(Date.now() - since * 1000)})` : "");
  }
}

pause.hidden = false;
pause.addEventListener("click", () => {
  now.paused = now.paused ? 0 : Date.now();
  setText(pause, now.paused ? "Go on" : "Pause live");
  if (!now.paused && now.missed) {
    now.missed = false;
    connect(); // the worker answers with the whole frame
  }
  tick();
});

// ---- the stream

let port = null;
let own = null;

// A worker's address must be trusted: this policy lets the one script through, and nothing else.
const policy = globalThis.trustedTypes?.createPolicy("understudy", {
  createScriptURL: url => {
    if (url !== "/console/_static/stream.js") throw new TypeError(`not a script of the console: ${url}`);
    return url;
  },
});

// Of a list that has only some of the rows on this page: the keys of these. The others need not be sent to this tab.
function shownRows() {
  const lists = [...document.querySelectorAll("[data-rows]")];
  return Object.fromEntries(lists.map(list => [list.dataset.rows, [...keyed(list).keys()]]));
}

function connect() {
  if (typeof SharedWorker === "undefined") {
    own ??= new Stream((_pool, message) => taken(message));
    followWhileVisible();
    own.tellAll(body.pool, taken);
    return;
  }
  if (!port) {
    const url = "/console/_static/stream.js";
    port = new SharedWorker(policy ? policy.createScriptURL(url) : url, { type: "module", name: "console" }).port;
    port.onmessage = ({ data }) => take(data);
    port.start();
  }
  port.postMessage({ pool: body.pool, topics, rows: shownRows() });
}

const taken = message => take(part(message, topics, shownRows()));

// A stream of a tab's own is closed while nobody sees the tab: streams of hidden tabs would keep others from loading.
function followWhileVisible() {
  const hidden = document.visibilityState === "hidden";
  if (hidden && own.live) take({ type: "mode", ...AT_FIRST, since: own.heard });
  own.follow(hidden ? [] : [body.pool]);
}

document.addEventListener("visibilitychange", () => own && followWhileVisible());
addEventListener("pagehide", () => port?.postMessage({ bye: true }));
addEventListener("pageshow", event => event.persisted && connect());

// The stream begins when the page is painted, so that its first frame does not delay the paint.
function begin() {
  if (begun) return;
  begun = true;
  connect();
}
let begun = false;
requestAnimationFrame(() => setTimeout(begin));
setTimeout(begin, document.hidden ? 0 : PAINT_AWAITED); // hidden pages are not painted
tick();
setInterval(tick, 1000);
