// Runs the JavaScript of README.md and docs/*.md, as it is printed there.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { after, before, beforeEach, test } from "node:test";
import { fileURLToPath } from "node:url";

import PocketBase from "pocketbase";

import { client, inbox, startProxy, startTestServer } from "./harness.mjs";

const repository = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const pages = [
  "README.md",
  ...readdirSync(path.join(repository, "docs"))
    .filter((name) => name.endsWith(".md"))
    .map((name) => "docs/" + name),
];

// The blocks by the names of the markers above them.
const blocks = new Map();
for (const page of pages) {
  const text = readFileSync(path.join(repository, page), "utf8");
  for (const [, marker, code] of text.matchAll(/(?:<!-- run: (\w+) -->\n)?```js\n(.*?)\n```/gs)) {
    assert.ok(marker, `${page}: a block of JavaScript without <!-- run: name -->:\n${code}`);
    assert.ok(!blocks.has(marker), `${page}: two blocks are called ${marker}`);
    blocks.set(marker, code);
  }
}

const AsyncFunction = (async () => {}).constructor;
const DOCUMENTED_URL = "http://127.0.0.1:8090";
const ANN = ["ann@example.com", "topics-demo"];

let server;
let admin;
let clients = [];

// run runs a block. Its free names are those of the page; printed collects what
// it writes to the console.
async function run(name, names = {}) {
  const printed = inbox();
  const code = blocks
    .get(name)
    .replace('import PocketBase from "pocketbase";\n', "")
    .replaceAll(DOCUMENTED_URL, server.url);
  const all = {
    PocketBase,
    console: { log: (...what) => printed.push(what), warn: (...what) => printed.push(what) },
    ...names,
  };

  const own = code.includes("const pb =") ? "\nreturn pb;" : "";
  const pb = await new AsyncFunction(...Object.keys(all), code + own)(...Object.values(all));
  if (pb) clients.push(pb);

  return { pb, printed };
}

async function open(...account) {
  const pb = await client(server.url, ...account);
  clients.push(pb);
  return pb;
}

// rule replaces the topic rule of room/{room}.
async function rule(fields) {
  for (const old of await admin
    .collection("_topics")
    .getFullList({ filter: 'pattern = "room/{room}"' })) {
    await admin.collection("_topics").delete(old.id);
  }
  if (fields) await admin.collection("_topics").create({ pattern: "room/{room}", ...fields });
}

const SIGNED_IN = '@request.auth.id != ""';

const scenarios = {
  async start() {
    await rule({ subscribeRule: SIGNED_IN });
    const { printed } = await run("start");
    const message = { test: 123, time: "2026-01-01T00:00:00Z" };
    await server.notify("room/42", message);
    assert.deepEqual(await printed.next(), [message]);
  },

  async denied() {
    await rule({ subscribeRule: SIGNED_IN });
    const guest = await run("denied", { pb: await open() });
    assert.deepEqual(await guest.printed.next(), [
      "denied",
      "room/42",
      "topic_denied",
      "You are not allowed to subscribe to this topic.",
    ]);

    const member = await run("denied", { pb: await open(...ANN) });
    await server.notify("room/42", { test: 123 });
    assert.deepEqual(await member.printed.next(), [{ test: 123 }]);
    await guest.printed.quiet(100);

    await rule();
    const [type, topic, code] = await member.printed.next();
    assert.deepEqual([type, topic, code], ["revoked", "room/42", "topic_revoked"]);
  },

  async again() {
    await rule({ subscribeRule: SIGNED_IN });
    const pb = await open();
    const guest = await run("denied", { pb });
    assert.equal((await guest.printed.next())[2], "topic_denied");

    const member = await run("again", { pb });
    await server.notify("room/42", { test: 123 });
    assert.deepEqual(await member.printed.next(), [{ test: 123 }]);
    await guest.printed.quiet(100);
  },

  async publish() {
    await rule({ subscribeRule: "", publishRule: SIGNED_IN });
    const [ann, guest] = [await open(...ANN), await open()];
    const [mine, theirs] = [inbox(), inbox()];
    await ann.realtime.subscribe("room/42", mine.push);
    await guest.realtime.subscribe("room/42", theirs.push);

    await answers("publish", ann, [{ id: "" }, { messages: [{ id: "" }, { id: "" }] }]);
    assert.deepEqual(await theirs.take(3), [{ text: "hello" }, { text: "one" }, { text: "two" }]);
    assert.deepEqual(await mine.take(2), [{ text: "one" }, { text: "two" }]);
  },

  async refused() {
    const { printed } = await run("refused", { pb: await open(...ANN) });
    assert.deepEqual(await printed.next(), [403, "topic_denied"]);
  },

  async access() {
    await rule({ subscribeRule: SIGNED_IN });
    const { printed } = await run("access", { pb: await open(...ANN) });
    assert.deepEqual(await printed.take(3), commented("access"));
  },

  async invitation() {
    const { id: collection } = await admin.collections.create({
      name: "parties",
      type: "base",
      fields: [{ name: "secret", type: "text" }],
    });
    const { id } = await admin.collection("parties").create({ secret: "plum" });
    await admin.collection("_topics").create({
      pattern: "party/{id}",
      collection,
      subscribeRule: 'secret != "" && @request.query.secret = secret',
    });
    const { printed } = await run("invitation", { pb: await open(), id });
    await server.notify("party/" + id, { test: 123 });
    assert.deepEqual(await printed.next(), [{ test: 123 }]);
  },

  async envelope() {
    await rule({ subscribeRule: "", publishRule: SIGNED_IN, history: 1 });
    const ann = await open(...ANN);
    const { printed } = await run("envelope", { pb: await open() });
    assert.deepEqual(await printed.next(), ["ready", undefined]);
    await ann.send("/api/topics/publish", { method: "POST", body: { topic: "room/42", data: 1 } });
    assert.deepEqual(await printed.next(), [ann.authStore.record.id, 1]);
  },

  async typed() {
    await rule({ subscribeRule: "", publishRule: SIGNED_IN });
    const theirs = inbox();
    await (await open()).realtime.subscribe("room/42", theirs.push, { envelope: true });
    assert.equal((await theirs.next()).type, "ready");
    const { printed } = await run("typed", { pb: await open(...ANN) });
    assert.deepEqual(await printed.next(), [""]);
    const { event, data } = await theirs.next();
    assert.deepEqual([event, data], ["typed", { by: "ann" }]);
  },

  async retry() {
    await rule({ subscribeRule: "", publishRule: SIGNED_IN });
    const theirs = inbox();
    await (await open()).realtime.subscribe("room/42", theirs.push);
    const ann = await open(...ANN);
    const deaf = Object.create(ann); // the first answer is lost
    let sent = 0;
    deaf.send = async (...args) => {
      const answer = await ann.send(...args);
      if (sent++ === 0) throw Object.assign(new Error("no answer"), { status: 0 });
      return answer;
    };
    const { printed } = await run("retry", { pb: deaf });
    assert.deepEqual(await printed.next(), ["sent", ""]);
    assert.equal(sent, 2);
    assert.deepEqual(await theirs.next(), { text: "hello" });
    await theirs.quiet(100);
  },

  async replay() {
    await rule({ subscribeRule: "", history: 3 });
    for (const n of [1, 2, 3]) await server.notify("room/42", { n });
    const { printed } = await run("replay", { pb: await open() });
    assert.deepEqual(await printed.take(3), [[{ n: 1 }], [{ n: 2 }], [{ n: 3 }]]);
  },

  async resume() {
    await rule({ subscribeRule: "", history: 1 });
    await server.notify("room/42", { n: 1 });
    const proxy = await startProxy(server.url);
    const pb = await client(proxy.url);
    clients.push(pb);
    const { printed } = await run("resume", { pb });
    assert.deepEqual(await printed.next(), [{ n: 1 }]);
    proxy.cut();
    await server.notify("room/42", { n: 2 });
    assert.deepEqual(await printed.next(), [{ n: 2 }]);
    await printed.quiet(100);
    await pb.realtime.unsubscribe();
    await proxy.stop();
  },

  async positions() {
    await rule({ subscribeRule: "", history: 100 });
    const proxy = await startProxy(server.url);
    const pb = await client(proxy.url);
    clients.push(pb);
    const { printed } = await run("positions", { pb });
    let n = 0;
    for (let cut = 0; cut < 5; cut++) {
      await server.notify("room/42", ++n);
      assert.deepEqual(await printed.next(), [n]);
      proxy.cut();
      for (let i = 0; i < 3; i++) await server.notify("room/42", ++n);
      for (let i = 2; i >= 0; i--) assert.deepEqual(await printed.next(), [n - i]);
    }
    await printed.quiet(100);
    await pb.realtime.unsubscribe();
    await proxy.stop();
  },

  async pages() {
    await rule({ subscribeRule: "", history: 4 });
    for (const n of [1, 2, 3, 4]) await server.notify("room/42", n);
    const { printed } = await run("pages", { pb: await open() });
    assert.deepEqual(printed.all, [[[3, 4]], [[1, 2]]]);
  },

  async presence() {
    await rule({ subscribeRule: "", presence: true, presenceRule: "" });
    const ann = await open(...ANN);
    const { printed } = await run("presence", { pb: ann });
    const [count, , members] = await printed.next();
    assert.deepEqual([count, members.length], [1, 1]);
    assert.deepEqual(members[0].state, { away: false });

    const guest = await open();
    await guest.realtime.subscribe("room/42", () => {});
    const [joined, [member]] = await printed.next();
    assert.deepEqual([joined, member.collection], ["join", ""]);
    await guest.realtime.unsubscribe("room/42");
    const [left, [gone]] = await printed.next();
    assert.deepEqual([left, gone.id], ["leave", member.id]);
  },

  async members() {
    await rule({ subscribeRule: "", presence: true, presenceRule: "" });
    const ann = await open(...ANN);
    const self = "users/" + ann.authStore.record.id;
    const { printed } = await run("members", { pb: ann });
    assert.deepEqual(await printed.next(), [1, "members", [self]]);

    const guest = await open();
    await guest.realtime.subscribe("room/42", () => {});
    const [count, , [first, second]] = await printed.next();
    assert.deepEqual([count, first], [2, self]);
    assert.match(second, /^\/\w+$/);
    await server.notify("room/42", { test: 123 });
    assert.deepEqual(await printed.next(), [{ test: 123 }]);
    await guest.realtime.unsubscribe("room/42");
    assert.deepEqual(await printed.next(), [1, "members", [self]]);
  },

  async state() {
    await rule({ subscribeRule: "", presence: true, presenceRule: "" });
    const theirs = inbox();
    await (await open()).realtime.subscribe("room/42", theirs.push, { presence: true });
    assert.deepEqual(
      (await theirs.take(2)).map(({ type }) => type),
      ["ready", "presence"],
    );
    const { printed } = await run("state", { pb: await open(...ANN) });
    const [[ready], [presence]] = await printed.take(2);
    assert.deepEqual([ready.type, presence.type], ["ready", "presence"]);
    // what comes within a moment is told at once
    const last = () => theirs.all.at(-1).members.find(({ id }) => id === ready.member)?.state;
    while (!last()?.typing) await theirs.next();
    assert.deepEqual(last(), { typing: true });
  },

  async stateAgain() {
    await rule({ subscribeRule: "", presence: true, presenceRule: "" });
    const proxy = await startProxy(server.url);
    const pb = await client(proxy.url, ...ANN);
    clients.push(pb);
    const mine = inbox();
    await pb.realtime.subscribe("room/42", mine.push, { presence: true });
    await mine.take(2);
    const document = { hidden: true };
    const { printed } = await run("stateAgain", { pb, document });
    await mine.quiet(200);
    proxy.cut();
    const state = () => mine.all.at(-1).members?.[0].state;
    while (!state()) await mine.next();
    assert.deepEqual(state(), { away: true });
    assert.deepEqual(printed.all, []);
    await pb.realtime.unsubscribe();
    await proxy.stop();
  },

  async listMembers() {
    await rule({ subscribeRule: "", presence: true, presenceRule: SIGNED_IN });
    const ann = await open(...ANN);
    await ann.realtime.subscribe("room/42", () => {});
    const { printed } = await run("listMembers", { pb: ann });
    const [count, members] = await printed.next();
    assert.equal(count, 1);
    assert.deepEqual(
      members.map(({ id, collection, connections }) => [id, collection, connections]),
      [[ann.authStore.record.id, "users", 1]],
    );
    await assert.rejects(run("listMembers", { pb: await open() }), { status: 403 });
  },

  async watch() {
    const calls = [];
    const realtime = {
      isConnected: false,
      unsubscribe: async (...args) => calls.push(args),
      subscribe: async (...args) => calls.push(args),
    };
    const [receive, options] = [() => {}, { resume: "r" }];
    let tick;
    await run("watch", { pb: { realtime }, receive, options, setInterval: (f) => (tick = f) });
    for (let i = 0; i < 9; i++) await tick();
    assert.deepEqual(calls, []);
    await tick();
    assert.deepEqual(calls, [["room/42"], ["room/42", receive, options]]);
    realtime.isConnected = true;
    for (let i = 0; i < 20; i++) await tick();
    assert.equal(calls.length, 2);
  },
};

// answers expects the answers of the pb.send calls of a block, which are also
// the comments at their ends.
async function answers(name, pb, expected) {
  const seen = [];
  const recording = Object.create(pb);
  recording.send = async (...args) => {
    const answer = await pb.send(...args);
    seen.push(answer);
    return answer;
  };
  await run(name, { pb: recording });
  assert.deepEqual(seen, expected);
  assert.deepEqual(
    commented(name).map(([answer]) => answer),
    expected,
  );
}

// commented are the objects in the comments of a block, each as the only
// argument of a call.
function commented(name) {
  return [...blocks.get(name).matchAll(/; \/\/ (\{.*\})$/gm)].map(([, text]) => [
    new Function(`return (${text})`)(),
  ]);
}

before(async () => {
  server = await startTestServer({ args: ["--grace", "-1ns"] }); // blocks begin with nobody there
  admin = await client(server.url);
  const { email, password } = await server.superuser();
  await admin.collection("_superusers").authWithPassword(email, password);
  const [address, secret] = ANN;
  await admin
    .collection("users")
    .create({ email: address, password: secret, passwordConfirm: secret });
});

beforeEach(async () => {
  await Promise.all(clients.map((pb) => pb.realtime.unsubscribe()));
  clients = [];
});

after(async () => {
  await Promise.all(clients.map((pb) => pb.realtime.unsubscribe()));
  await server?.stop();
});

test("each block of JavaScript has a scenario here, and each scenario a block", () => {
  assert.deepEqual([...blocks.keys()].sort(), Object.keys(scenarios).sort());
});

for (const [name, scenario] of Object.entries(scenarios)) {
  test(`the block "${name}"`, scenario);
}
