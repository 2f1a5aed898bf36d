// The slot map: one tab stop, arrow keys, and what is known of the slot under focus or pointer.

import { clean, moment, now, onFrame, setText } from "./live.js";

const map = document.getElementById("map");
const columns = Number(map.dataset.columns);
const legend = document.getElementById("legend");
const cells = new Map([...map.querySelectorAll("[role=gridcell]")].map(cell => [cell.id.slice(1), cell]));
let chosen = null; // the slot under focus
let shown = null; // the one whose details are shown

// ---- load: read while somebody looks at a slot, since that of all slots in each frame would be much

const LOAD_KEPT = 5000; // ms: members report as often
const { base } = document.body.dataset;
let load = {};
let loadAt = -Infinity;

async function readLoad() {
  if (now.paused || performance.now() - loadAt < LOAD_KEPT) return;
  loadAt = performance.now();
  try {
    const answer = await fetch(`${base}load.json`);
    load = answer.ok ? (await answer.json()).slots : {};
  } catch {
    load = {}; // the line at the top says that the control server does not answer
  }
  if (shown !== null) showLoad();
}

setInterval(() => shown !== null && !document.hidden && readLoad(), 1000);

function showLoad() {
  const { calls, sessions } = load[shown] ?? {};
  for (const [name, value] of Object.entries({ calls, sessions })) {
    setText(document.querySelector(`[data-d="${name}"]`), value ?? "not known");
  }
}

function classes(slot) {
  const single = slot.copies < 2 && slot.owner ? " single" : "";
  return `t${slot.tone} p${slot.pattern}${slot.moving ? " moving" : ""}${single}`;
}

const told = slot =>
  `Slot ${slot.slot}, active ${slot.owner ?? "not known"}, standby ${slot.order[1] ?? "none"}` +
  (slot.moving ? ", moving" : "");

function show(key) {
  const slot = now.frame?.slots?.[key];
  if (!slot) return;
  const values = {
    owner: slot.owner ?? "not known",
    order: slot.order.join(" > ") || "none",
    epoch: slot.epoch ?? "",
    phase: slot.to ? `${slot.phase} to ${slot.to}` : slot.phase,
    copies: slot.copies,
    cause: slot.cause || "not known",
    since: moment(slot.since),
  };
  setText(document.getElementById("detail-slot"), key);
  document.getElementById("detail-hint").hidden = true;
  document.getElementById("detail-facts").hidden = false;
  for (const one of document.querySelectorAll("[data-d]")) {
    if (one.dataset.d in values) setText(one, values[one.dataset.d]);
  }
  shown = key;
  showLoad();
  readLoad();
  cells.get(key)?.setAttribute("aria-label", clean(told(slot)));
}

function focus(key) {
  const cell = cells.get(String(key));
  if (!cell) return;
  map.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
  cell.setAttribute("tabindex", "0");
  chosen = String(key);
  show(chosen);
  cell.focus();
}

const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };

map.addEventListener("keydown", event => {
  const at = Number(event.target.id?.slice(1));
  if (Number.isNaN(at)) return;
  const row = at - (at % columns);
  const to = { Home: row, End: Math.min(row + columns, cells.size) - 1 }[event.key] ?? at + (STEPS[event.key] ?? NaN);
  if (Number.isNaN(to)) return;
  event.preventDefault();
  if (to >= 0 && to < cells.size) focus(to);
});
map.addEventListener("focusin", event => {
  if (event.target.id) show((chosen = event.target.id.slice(1)));
});
map.addEventListener("click", event => event.target.id && focus(event.target.id.slice(1)));
map.addEventListener("pointerover", event => event.target.id && show(event.target.id.slice(1)));
map.addEventListener("pointerleave", () => chosen && show(chosen));

function update(frame, changed) {
  for (const [key, slot] of Object.entries((changed ?? frame).slots ?? {})) {
    const cell = cells.get(key);
    if (!cell || !slot) continue;
    const wanted = classes(slot);
    if (cell.className !== wanted) cell.className = wanted;
    setText(cell, slot.mark);
    if (cell.hasAttribute("aria-label")) cell.setAttribute("aria-label", clean(told(slot)));
  }
  if (chosen) show(chosen);
  drawLegend(frame);
}

function drawLegend(frame) {
  const found = new Map();
  for (const slot of Object.values(frame.slots ?? {})) {
    if (slot.owner && !found.has(slot.owner)) found.set(slot.owner, slot);
    if (found.size > 48) break;
  }
  const known = new Map([...legend.children].map(one => [one.dataset.member, one]));
  for (const [member, slot] of found) {
    let one = known.get(member);
    if (!one) {
      one = document.createElement("li");
      one.dataset.member = member;
      one.append(document.createElement("span"), document.createTextNode(""));
      one.firstChild.setAttribute("aria-hidden", "true");
      legend.append(one);
    }
    one.firstChild.className = `swatch t${slot.tone} p${slot.pattern}`;
    setText(one.firstChild, slot.mark);
    const text = clean(` ${slot.mark}: ${member}`);
    if (one.lastChild.data !== text) one.lastChild.data = text;
  }
  for (const [member, one] of known) if (!found.has(member)) one.remove();
}

onFrame(update);
