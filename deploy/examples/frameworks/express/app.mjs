// A cart in Express with express-session and connect-redis: `npm ci && node app.mjs`.
// REDIS_CLIENT chooses node-redis (`redis`, the default) or `ioredis`, which only connect-redis up to 8 takes.
import express from "express";
import session from "express-session";

const url = process.env.UNDERSTUDY_REDIS_URL || process.env.REDIS_URL || "redis://127.0.0.1:6379/0";
const seconds = Number(process.env.SESSION_SECONDS || 3600);

async function nodeRedis() {
  const { createClient } = await import("redis");
  const { RedisStore } = await import("connect-redis");
  const client = createClient({ url });
  client.on("error", (error) => console.error("redis:", error.message));
  await client.connect();
  return new RedisStore({ client });
}

async function ioredis() {
  const { Redis } = await import("ioredis");
  const { RedisStore } = await import("connect-redis-8");
  return new RedisStore({ client: new Redis(url) });
}

const store = process.env.REDIS_CLIENT === "ioredis" ? await ioredis() : await nodeRedis();
const secret = process.env.SESSION_SECRET || "an example keeps no secrets";
const app = express();
app.get("/healthz", (_, response) => response.send("ok"));
app.use(session({ store, secret, resave: false, saveUninitialized: false, cookie: { maxAge: seconds * 1000 } }));

const shown = (cart) => ({ count: cart?.count ?? 0, items: cart?.items ?? [] });

app.get("/", (request, response) => response.json(shown(request.session)));

// Without save(), express-session answers 200 first and stores afterwards: a refused write would go unnoticed.
app.post("/add", (request, response, next) => {
  const cart = request.session;
  cart.count = (cart.count ?? 0) + 1;
  cart.items = [...(cart.items ?? []), request.query.item];
  cart.save((error) => (error ? next(error) : response.json(shown(cart))));
});

app.post("/logout", (request, response, next) => {
  request.session.destroy((error) => (error ? next(error) : response.json(shown())));
});

app.listen(Number(process.env.PORT || 8000), process.env.HOST || "127.0.0.1");
