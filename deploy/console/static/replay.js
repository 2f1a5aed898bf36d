// Replays a failover on the slots of which it changed the active. The times are those of the trace, slowed down.

import { setText } from "./live.js";

const root = document.getElementById("replay");
const SLOWER = 20; // a failover of 100 ms takes two seconds
const LONGEST = 8000; // and a longer one no more than this

if (root) {
  const rows = [...root.querySelectorAll("tr.step")];
  const steps = rows.map(row => JSON.parse(row.dataset.step));
  const map = document.getElementById("replay-map");
  const looks = new Map([...root.querySelectorAll("#legend li")].map(one => [one.dataset.member, one.firstElementChild]));
  const slots = Object.keys(steps[0].slots).map(Number).sort((a, b) => a - b);
  const cells = new Map();
  for (let at = 0; at < slots.length; at += 32) {
    const row = document.createElement("div");
    row.setAttribute("role", "row");
    for (const slot of slots.slice(at, at + 32)) {
      const cell = document.createElement("div");
      cell.setAttribute("role", "gridcell");
      row.append(cell);
      cells.set(slot, cell);
    }
    map.append(row);
  }
  const slower = Math.min(SLOWER, LONGEST / Math.max(...steps.map(step => step.ms ?? 0), 1));
  let at = 0;
  let timer = 0;

  const draw = to => {
    at = to;
    const actives = {};
    for (const step of steps.slice(0, to + 1)) Object.assign(actives, step.slots);
    for (const [slot, member] of Object.entries(actives)) {
      const cell = cells.get(Number(slot));
      const look = looks.get(member);
      cell.className = look ? look.className.replace("swatch ", "") : "t-1";
      setText(cell, look ? look.textContent : "?");
      cell.title = `slot ${slot}: ${member || "nobody"}`;
    }
    for (const [number, row] of rows.entries()) row.classList.toggle("on", number === to);
    const ms = steps[to].ms;
    setText(document.getElementById("replay-now"), `${ms === null ? "at an unknown moment" : `${ms} ms`}: ${steps[to].text}`);
  };

  const next = () => {
    clearTimeout(timer);
    if (at + 1 >= steps.length) return;
    const pause = ((steps[at + 1].ms ?? 0) - (steps[at].ms ?? 0)) * slower;
    timer = setTimeout(() => {
      draw(at + 1);
      next();
    }, Math.max(pause, Math.min(150, LONGEST / steps.length)));
  };

  const on = (id, act) => {
    const button = document.getElementById(id);
    button.hidden = false;
    button.addEventListener("click", act);
  };
  on("replay-play", () => {
    draw(0);
    next();
  });
  on("replay-back", () => {
    clearTimeout(timer);
    draw(Math.max(at - 1, 0));
  });
  on("replay-next", () => {
    clearTimeout(timer);
    draw(Math.min(at + 1, steps.length - 1));
  });
  draw(0);
}
