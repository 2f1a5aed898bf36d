// Acts: a dialog that shows what an act would do and the command that does the same, and then does it.

import { setText } from "./live.js";

const { base } = document.body.dataset;
const dialog = document.getElementById("act");
const byId = name => document.getElementById(`act-${name}`);
const field = name => byId(name).value.trim();
const TYPING_ENDED = 200; // ms
let wish = null;
let opener = null;
let asked = 0;

async function send(path, body) {
  const headers = { "Content-Type": "application/json", "X-Understudy-Console": "act" };
  try {
    const answer = await fetch(base + path, { method: "POST", headers, body: JSON.stringify(body) });
    return { ok: answer.ok, view: await answer.json() };
  } catch {
    return { ok: false, view: { detail: "the control server does not answer" } };
  }
}

const UNLIMITED = { drain: "no limit", "site offline": "2 hours", "drill drain": "5 s" };
const limited = act => act in UNLIMITED;
const moving = act => act === "rebalance apply" || act === "rebalance undo";

function current() {
  return {
    ...wish,
    duration: limited(wish.act) ? field("for") : "",
    rate: moving(wish.act) ? field("rate") : "",
    reason: field("reason"),
    who: field("who"),
  };
}

// A refused act is greyed, and the text beside it says why. The button keeps its focus, so it is not "disabled".
function mayDo(may) {
  byId("do").setAttribute("aria-disabled", String(!may));
}

async function preview() {
  const mine = ++asked;
  const { ok, view } = await send("preview", current());
  if (mine !== asked) return; // a later question is under way
  setText(byId("fault"), ok ? view.refused : view.detail);
  mayDo(!view.refused);
  const lines = view.effect ?? [];
  byId("effect").replaceChildren(
    ...lines.map(line => {
      const one = document.createElement("li");
      setText(one, line);
      return one;
    }),
  );
  setText(byId("command"), view.command);
}

document.addEventListener("click", event => {
  const button = event.target.closest?.("button[data-act]");
  if (!button) return;
  opener = button;
  const { act, plan, targetFrom } = button.dataset;
  const target = targetFrom ? document.getElementById(targetFrom).value.trim() : (button.dataset.target ?? "");
  wish = { act, target, ...(plan ? { plan: JSON.parse(plan) } : {}) };
  setText(byId("title"), `${act[0].toUpperCase()}${act.slice(1)} ${target}`);
  byId("for-row").hidden = !limited(act);
  byId("rate-row").hidden = !moving(act);
  for (const name of ["for", "rate", "reason"]) byId(name).value = "";
  setText(byId("unlimited"), UNLIMITED[act] ?? "");
  if (!byId("who").readOnly) byId("who").value = localStorage.getItem("understudy-who") ?? "";
  setText(byId("fault"), "");
  setText(byId("command"), "");
  mayDo(true);
  byId("effect").replaceChildren();
  dialog.showModal();
  preview();
});

let typed = 0; // one preview when the typing pauses
for (const name of ["for", "rate", "reason"]) {
  byId(name).addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(preview, TYPING_ENDED);
  });
}

byId("do").addEventListener("click", async () => {
  if (byId("do").getAttribute("aria-disabled") === "true") return;
  if (!field("who")) {
    setText(byId("fault"), "Give your name: the audit log says who did it.");
    byId("who").focus();
    return;
  }
  localStorage.setItem("understudy-who", field("who"));
  byId("do").disabled = true;
  const { ok, view } = await send("act", current());
  byId("do").disabled = false;
  setText(byId("fault"), ok ? "" : view.detail);
  if (!ok) return;
  dialog.close();
  setText(document.getElementById("say"), `Done: ${view.done}`);
});

dialog.addEventListener("close", () => {
  const row = opener?.closest("tr,.buttons");
  const visible = [...(row?.querySelectorAll("button[data-act]") ?? [])].find(one => one.offsetParent);
  (visible ?? opener)?.focus();
});

// Enter in a field does it, as the button does; it must not close the dialog unseen.
dialog.querySelector("form").addEventListener("keydown", event => {
  if (event.key === "Enter" && event.target.matches("input")) {
    event.preventDefault();
    byId("do").click();
  }
});

for (const button of document.querySelectorAll("button[data-act]:not([data-refused])")) button.disabled = false;
