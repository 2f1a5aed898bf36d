// The one stream of a browser: a shared worker that all tabs use, for all pools that they show. It keeps the newest
// frame of each pool, and hands each tab the kinds of objects that its page shows. Browsers open at most six connections
// to a server, so there is one for all pools. Without shared workers each tab uses this class itself while it is visible.

const EVENTS = "/console/_events";
const SILENT_AFTER = 12_000; // ms without a sign of life, after which what is shown is stale; there is one each 5 s
const OPENED_AGAIN = 2000; // ms after a refusal
const ASKED_AGAIN = 5000; // ms after which a pool that was not served is asked for again
const LINGER = 5000; // ms for which a pool is followed after its last tab: the next page may show it too
const LONGEST_URL = 4000;
const KINDS = ["overview", "members", "sites", "slots", "failovers", "envoys"];

export class Stream {
  constructor(tell) {
    this.tell = tell; // called with the name of a pool and {type: "frame" | "changes" | "mode", ...}
    this.pools = new Map(); // name -> {frame, id, mode, silent, gone}
    this.source = null;
    this.live = false;
    this.heard = Date.now();
    setInterval(() => this.check(), 1000);
  }

  // Follow these pools and no others. Other pools than before need another connection.
  follow(names) {
    const wanted = new Set(names);
    if (wanted.size === this.pools.size && [...wanted].every(name => this.pools.has(name))) return;
    for (const name of this.pools.keys()) if (!wanted.has(name)) this.pools.delete(name);
    for (const name of wanted) {
      if (!this.pools.has(name)) this.pools.set(name, { frame: null, id: "", mode: null, silent: 0, gone: "" });
    }
    if (wanted.size) this.open();
    else this.close();
  }

  open() {
    this.source?.close();
    const source = new EventSource(this.url());
    this.source = source;
    source.onerror = () => {
      this.lost();
      if (source.readyState === EventSource.CLOSED) this.openAgain(source, OPENED_AGAIN);
    };
    const on = (kind, apply) => source.addEventListener(kind, event => {
      if (source === this.source) apply(JSON.parse(event.data), event.lastEventId);
    });
    on("ping", ({ silent_seconds: silent }) => {
      for (const [name, seconds] of Object.entries(silent)) {
        if (this.pools.has(name)) Object.assign(this.pools.get(name), { silent: seconds, gone: "" });
      }
      this.alive();
    });
    on("gone", ({ pool, detail }) => {
      if (!this.pools.has(pool)) return;
      this.pools.get(pool).gone = detail;
      this.openAgain(source, ASKED_AGAIN);
    });
    on("frame", (frame, id) => this.take(id, frame, pool => {
      pool.frame = frame;
      this.tell(frame.pool, { type: "frame", frame });
    }));
    on("changes", (changes, id) => this.take(id, changes, pool => {
      if (!pool.frame) return;
      pool.frame.revision = changes.revision;
      for (const kind of KINDS) if (kind in changes) merge(pool.frame, kind, changes[kind]);
      this.tell(changes.pool, { type: "changes", changes });
    }));
  }

  openAgain(source, after) {
    setTimeout(() => source === this.source && this.open(), after);
  }

  // The pools, and the events of them that are here already.
  url() {
    const pools = [...this.pools].map(([name]) => `pool=${encodeURIComponent(name)}`);
    const have = [...this.pools.values()].filter(pool => pool.id).map(pool => `have=${pool.id}`);
    const whole = `${EVENTS}?${[...pools, ...have].join("&")}`;
    return whole.length <= LONGEST_URL ? whole : `${EVENTS}?${pools.join("&")}`;
  }

  take(id, data, apply) {
    const pool = this.pools.get(data.pool);
    if (!pool) return;
    pool.gone = "";
    if (id !== pool.id) { // else it is known already
      pool.id = id;
      apply(pool);
    }
    this.alive();
  }

  alive() {
    this.heard = Date.now();
    this.live = true;
    this.tellModes();
  }

  lost() {
    this.live = false;
    this.tellModes();
  }

  check() {
    if (this.live && Date.now() - this.heard > SILENT_AFTER) {
      this.lost();
      this.open();
    }
  }

  // Tell of the pools whose mode has changed.
  tellModes() {
    for (const [name, pool] of this.pools) {
      const live = this.live && !pool.gone && pool.frame !== null;
      const { mode } = pool;
      if (mode && mode.live === live && mode.silent === pool.silent && mode.gone === pool.gone) continue;
      pool.mode = { type: "mode", live, since: this.heard, silent: pool.silent, gone: pool.gone };
      this.tell(name, pool.mode);
    }
  }

  // All that is known of a pool, for a tab that has nothing of it.
  tellAll(name, tell) {
    const pool = this.pools.get(name);
    if (pool?.mode) tell(pool.mode);
    if (pool?.frame) tell({ type: "frame", frame: pool.frame });
  }

  close() {
    this.source?.close();
    this.source = null;
    this.live = false;
  }
}

function merge(frame, kind, changed) {
  if (kind === "overview") {
    frame.overview = changed;
    return;
  }
  const objects = (frame[kind] ??= {});
  for (const [key, row] of Object.entries(changed)) {
    if (row === null) delete objects[key];
    else objects[key] = row;
  }
}

export function part(message, topics, rows) {
  if (message.type === "mode") return message;
  const of = message[message.type];
  const kept = { pool: of.pool, revision: of.revision };
  for (const kind of topics) if (kind in of) kept[kind] = rows?.[kind] ? pick(of[kind], rows[kind]) : of[kind];
  return { type: message.type, [message.type]: kept };
}

function pick(objects, keys) {
  return Object.fromEntries(keys.filter(key => key in objects).map(key => [key, objects[key]]));
}

if (typeof SharedWorkerGlobalScope !== "undefined" && self instanceof SharedWorkerGlobalScope) {
  const ports = new Map(); // port -> what it wants: pool, topics and rows
  const post = (port, { topics, rows }, message) => port.postMessage(part(message, topics, rows));
  const stream = new Stream((pool, message) => {
    for (const [port, wants] of ports) if (wants.pool === pool) post(port, wants, message);
  });
  const followShown = () => stream.follow([...ports.values()].map(wants => wants.pool));
  self.onconnect = connection => {
    const port = connection.ports[0];
    port.onmessage = ({ data }) => {
      if (data.bye) {
        ports.delete(port);
        setTimeout(followShown, LINGER);
        return;
      }
      ports.set(port, data);
      if (!stream.pools.has(data.pool)) followShown();
      stream.tellAll(data.pool, message => post(port, data, message));
    };
    port.start();
  };
}
