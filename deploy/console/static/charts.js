// The last hour as charts. The server has written what they show as sentences and as a table; this keeps both up to date.

/* global uPlot */
import { moment, now, setText } from "./live.js";

const { base } = document.body.dataset;
const ASKED_EACH = 15_000; // ms: the length of a step
const HEIGHT = 150;
const DASHES = [[], [7, 4], [2, 3]];
const FIELDS = {
  rate: ["rate"],
  trouble: ["failed", "elsewhere", "unanswered"],
  changes: ["takeover", "handover"],
};
const boxes = [...document.querySelectorAll("[data-chart]")];
const plots = new Map();
let data = null;
let askedAt = -Infinity;

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function options(name, width) {
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px sans-serif" };
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { sync: { key: "hour" }, drag: { x: false, y: false }, points: { size: 7 } },
    scales: { y: { range: (_, least, most) => [0, Math.max(most ?? 0, 1) * 1.1] } },
    axes: [
      { ...axis, size: 26, space: 70, values: (_, times) => times.map(time => moment(time).slice(11, 16)) },
      { ...axis, size: 44, space: 34, incrs: name === "rate" ? undefined : [1, 2, 5, 10, 20, 50, 100, 1000, 1e4, 1e5, 1e6] },
    ],
    series: [
      {},
      ...FIELDS[name].map((_, at) => ({
        stroke: colour(`--line${at}`),
        width: 2,
        dash: DASHES[at],
        points: { show: name === "changes", filter: (plot, series) => risen(plot.data[series]) },
      })),
    ],
    hooks: { setCursor: [plot => read(name, plot.cursor.idx)] },
  };
}

// Changes are rare: each gets a point of its own.
const risen = values => values.flatMap((value, at) => (value ? [at] : []));

function read(name, at) {
  for (const line of document.querySelectorAll(`[data-for="${name}"] [data-line]`)) {
    const value = at == null ? undefined : data.series[line.dataset.line][at];
    setText(line.querySelector("b"), at == null ? "" : `${value ?? "not known"} at ${moment(data.times[at]).slice(11, 19)}`);
  }
}

function draw({ anew }) {
  for (const box of boxes) {
    const name = box.dataset.chart;
    box.hidden = document.querySelector(`[data-for="${name}"]`).hidden = false;
    const values = [data.times, ...FIELDS[name].map(field => data.series[field])];
    if (anew || !plots.has(name)) {
      plots.get(name)?.destroy();
      plots.set(name, new uPlot(options(name, box.clientWidth), values, box));
    } else plots.get(name).setData(values);
  }
}

function show() {
  for (const [name, text] of Object.entries(data.summaries)) setText(document.getElementById(`sum-${name}`), text);
  const rows = document.querySelectorAll("#hour-table tbody tr");
  data.minutes.forEach((minute, at) => {
    setText(rows[at].querySelector("th"), moment(minute.at));
    for (const cell of rows[at].querySelectorAll("[data-c]")) setText(cell, minute[cell.dataset.c] ?? "not known");
  });
  draw({ anew: false });
}

async function ask() {
  if (now.paused || document.hidden || performance.now() - askedAt < ASKED_EACH) return;
  askedAt = performance.now();
  try {
    const answer = await fetch(`${base}traffic.json`);
    if (!answer.ok) return; // what was known stays; the line at the top says since when
    data = await answer.json();
    show();
  } catch {
    askedAt += 1000 - ASKED_EACH; // the control server does not answer: soon again
  }
}

const resized = new ResizeObserver(entries => {
  for (const { target } of entries) {
    if (target.clientWidth) plots.get(target.dataset.chart)?.setSize({ width: target.clientWidth, height: HEIGHT });
  }
});
for (const box of boxes) resized.observe(box);
for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
  matchMedia(query).addEventListener("change", () => data && draw({ anew: true }));
}
setInterval(ask, 1000);
ask();
