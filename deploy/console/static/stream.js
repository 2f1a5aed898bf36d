// The one stream of a browser for a pool: a shared worker that all tabs use. It keeps the newest frame, and hands each
// tab the kinds of objects that its page shows. Without shared workers a tab uses this class itself.

const SILENT_AFTER = 12_000; // ms without a sign of life, after which what is shown is stale; there is one each 5 s
const KINDS = ["overview", "members", "sites", "slots", "failovers", "envoys"];

export class Stream {
  constructor(url, tell) {
    this.url = url;
    this.tell = tell; // called with {type: "frame" | "changes" | "mode", ...}
    this.frame = null;
    this.id = "";
    this.heard = 0;
    this.mode = { type: "mode", live: false, since: Date.now(), silent: 0 };
    this.open();
    setInterval(() => this.check(), 1000);
  }

  open() {
    this.source?.close();
    this.source = new EventSource(this.url);
    this.source.onopen = () => this.alive();
    this.source.onerror = () => {
      this.lost();
      if (this.source.readyState === EventSource.CLOSED) setTimeout(() => this.open(), 2000);
    };
    this.source.addEventListener("ping", event => this.alive(JSON.parse(event.data).silent_seconds));
    this.source.addEventListener("frame", event => this.take(event, frame => {
      this.frame = frame;
      this.tell({ type: "frame", frame });
    }));
    this.source.addEventListener("changes", event => this.take(event, changes => {
      if (!this.frame) return;
      this.frame.revision = changes.revision;
      for (const kind of KINDS) if (kind in changes) merge(this.frame, kind, changes[kind]);
      this.tell({ type: "changes", changes });
    }));
  }

  take(event, apply) {
    this.alive();
    if (event.lastEventId === this.id) return; // it is known already
    this.id = event.lastEventId;
    apply(JSON.parse(event.data));
  }

  alive(silent = 0) {
    this.heard = Date.now();
    if (!this.mode.live || this.mode.silent !== silent) this.set({ live: true, since: Date.now(), silent });
  }

  lost() {
    if (this.mode.live) this.set({ live: false, since: this.heard, silent: 0 });
  }

  check() {
    if (this.mode.live && Date.now() - this.heard > SILENT_AFTER) {
      this.lost();
      this.open();
    }
  }

  set(mode) {
    this.mode = { type: "mode", ...mode };
    this.tell(this.mode);
  }

  close() {
    this.source.close();
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
  const ports = new Map(); // port -> what it wants: topics and rows
  let stream = null;
  const tell = message => {
    for (const [port, { topics, rows }] of ports) port.postMessage(part(message, topics, rows));
  };
  self.onconnect = connection => {
    const port = connection.ports[0];
    port.onmessage = ({ data }) => {
      if (data.bye) {
        ports.delete(port);
        return;
      }
      ports.set(port, data);
      stream ??= new Stream(data.url, tell);
      port.postMessage(stream.mode);
      if (stream.frame) port.postMessage(part({ type: "frame", frame: stream.frame }, data.topics, data.rows));
    };
    port.start();
  };
}
