// Presence through the official SDK, in Node and in Chromium. How the example
// app's page shows it is in page.test.mjs.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import net from "node:net";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { client, inbox, launchBrowser, startProxy, startTestServer } from "./harness.mjs";

const GRACE_MS = 2_000;
const PASSWORD = "topics-test";

let browser;

before(async () => {
  browser = await launchBrowser();
});

after(async () => {
  await browser?.close();
});

// A tab is the SDK with a sign-in. It collects what all of its callbacks get.

async function nodeTab(url, name) {
  const pb = await client(url, name && name + "@example.com", PASSWORD);
  const box = inbox();

  return {
    box,
    subscribe: (topic, options) => pb.realtime.subscribe(topic, box.push, options),
    send: (path, options) => pb.send(path, options),
    clientId: () => pb.realtime.clientId,
    close: () => pb.realtime.unsubscribe(),
  };
}

async function chromiumTab(url, name) {
  const context = await browser.newContext();
  const page = await context.newPage();
  const box = inbox();
  await page.exposeFunction("receive", box.push);
  await page.goto(url + "/api/health"); // any page of the server will do
  const sdk = new URL("./node_modules/pocketbase/dist/pocketbase.es.mjs", import.meta.url);
  await page.evaluate(
    async ([source, email, password]) => {
      const { default: PocketBase } = await import(
        URL.createObjectURL(new Blob([source], { type: "text/javascript" }))
      );
      window.pb = new PocketBase(location.origin);
      window.pb.autoCancellation(false);
      if (email) await window.pb.collection("users").authWithPassword(email, password);
    },
    [await readFile(sdk, "utf8"), name && name + "@example.com", PASSWORD],
  );

  return {
    box,
    subscribe: (topic, options) =>
      page.evaluate(
        async ([topic, options]) => {
          await window.pb.realtime.subscribe(topic, window.receive, options);
        },
        [topic, options],
      ),
    send: async (path, options) => {
      // an error would come without its status
      const { answer, failure } = await page.evaluate(
        ([path, options]) =>
          window.pb.send(path, options).then(
            (answer) => ({ answer }),
            ({ status, message }) => ({ failure: { status, message } }),
          ),
        [path, options],
      );
      if (failure) throw Object.assign(new Error(failure.message), failure);
      return answer;
    },
    clientId: () => page.evaluate(() => window.pb.realtime.clientId),
    close: () => context.close(),
  };
}

const POST = (body) => ({ method: "POST", body });
const publish = (tab, topic, data) => tab.send("/api/topics/publish", POST({ topic, data }));
const list = (tab, topic) => tab.send("/api/topics/presence", { query: { topic } });
const setState = async (tab, topic, state) =>
  tab.send("/api/topics/presence", POST({ topic, clientId: await tab.clientId(), state }));

const names = (members) => members.map(({ record }) => record?.name).sort();

// expect takes the next events, which have these types.
async function expect(tab, ...types) {
  const events = await tab.box.take(types.length, 15_000);
  assert.deepEqual(
    events.map(({ type }) => type),
    types,
    JSON.stringify(events),
  );
  return events;
}

// signUp makes an account for each name, and answers their ids.
async function signUp(server, ...people) {
  const pb = await client(server.url);
  const ids = {};
  for (const name of people) {
    const { id } = await pb.collection("users").create({
      email: name + "@example.com",
      password: PASSWORD,
      passwordConfirm: PASSWORD,
      name,
    });
    ids[name] = id;
  }
  return ids;
}

async function superuser(server) {
  const admin = await client(server.url);
  const { email, password } = await server.superuser();
  await admin.collection("_superusers").authWithPassword(email, password);
  return admin;
}

for (const [where, newTab] of Object.entries({ Node: nodeTab, Chromium: chromiumTab })) {
  describe("presence in " + where, () => {
    let server, ids;
    let tabs = [];
    let rooms = 0;
    let topic;

    const open = async (name, url = server.url) => {
      const tab = await newTab(url, name);
      tabs.push(tab);
      return tab;
    };

    // watch opens a tab that sees the members, and answers whom it sees.
    const watch = async (name, options) => {
      const tab = await open(name);
      await tab.subscribe(topic, { presence: true, ...options });
      const [ready, presence] = await expect(tab, "ready", "presence");
      assert.equal(ready.member, ids[name]);
      assert.equal(presence.count, presence.members.length);
      return { tab, members: presence.members };
    };

    before(async () => {
      server = await startTestServer({ args: ["--grace", GRACE_MS + "ms"] });
      ids = await signUp(server, "ann", "bob", "eve");
    });

    beforeEach(() => {
      topic = "hall/" + ++rooms;
    });

    afterEach(async () => {
      await Promise.all(tabs.map((tab) => tab.close()));
      tabs = [];
    });

    after(async () => {
      await server?.stop();
    });

    test("two tabs are one member, who leaves when both have been closed for the grace", async () => {
      const { tab: bob, members } = await watch("bob");
      assert.deepEqual(names(members), ["bob"]);

      const first = await open("ann");
      await first.subscribe(topic);
      const [join] = await expect(bob, "join");
      const [{ since, ...ann }] = join.members;
      assert.deepEqual(
        { ...join, members: [ann] },
        {
          type: "join",
          topic,
          count: 2,
          members: [{ id: ids.ann, collection: "users", record: { name: "ann" }, connections: 1 }],
        },
      );
      assert.ok(Math.abs(Date.now() - Date.parse(since)) < 60_000, since);

      const second = await open("ann");
      await second.subscribe(topic);
      const answer = await list(bob, topic);
      assert.equal(answer.count, 2);
      assert.deepEqual(
        answer.members.map(({ id, connections }) => [id, connections]),
        [
          [ids.bob, 1],
          [ids.ann, 2],
        ],
      );

      await first.close();
      await bob.box.quiet(GRACE_MS + 500);

      const closed = Date.now();
      await second.close();
      const [leave] = await expect(bob, "leave");
      assert.ok(Date.now() - closed > GRACE_MS - 100, `after ${Date.now() - closed} ms`);
      assert.deepEqual(leave, {
        type: "leave",
        topic,
        count: 1,
        members: [{ id: ids.ann, collection: "users" }],
      });
    });

    test("a connection that is cut for less than the grace shows nothing", async () => {
      const proxy = await startProxy(server.url);
      const { tab: bob } = await watch("bob");
      const ann = await open("ann", proxy.url);
      await ann.subscribe(topic, { presence: true, state: { away: false } });
      await expect(ann, "ready", "presence");
      const [{ members: before }] = await expect(bob, "join");

      for (let round = 0; round < 2; round++) {
        proxy.cut();
        const [, presence] = await expect(ann, "ready", "presence");
        assert.deepEqual(names(presence.members), ["ann", "bob"]);
        await bob.box.quiet(GRACE_MS + 500);
      }
      const { members } = await list(bob, topic);
      assert.deepEqual(
        members.filter(({ id }) => id === ids.ann),
        before,
      );
      await ann.close();
      await proxy.stop();
    });

    test("who may not see the members gets the messages, and nothing of the members", async () => {
      const { tab: bob } = await watch("bob");
      const asking = await open();
      const plain = await open();
      await asking.subscribe(topic, { presence: true });
      await plain.subscribe(topic);
      const [, denied] = await expect(asking, "ready", "presence_denied");
      assert.deepEqual([denied.topic, denied.code], [topic, "topic_denied"]);
      assert.match(denied.message, /\S/);

      // the two guests are members all the same
      const guests = [];
      while (guests.length < 2) guests.push(...(await expect(bob, "join"))[0].members);
      for (const { collection, record } of guests)
        assert.deepEqual([collection, record], ["", undefined]);

      const ann = await open("ann");
      await ann.subscribe(topic, { state: { typing: true } });
      await expect(bob, "join");
      await setState(ann, topic, null);
      await expect(bob, "update");
      await publish(ann, topic, { text: "hello" });
      await ann.close();
      await expect(bob, "message", "leave");
      await publish(bob, topic, { text: "end" });

      assert.deepEqual(await plain.box.take(2), [{ text: "hello" }, { text: "end" }]);
      const messages = await expect(asking, "message", "message");
      assert.deepEqual(
        messages.map(({ data }) => data.text),
        ["hello", "end"],
      );
      for (const event of [...asking.box.all, ...plain.box.all]) {
        assert.ok(!("count" in event) && !("members" in event), JSON.stringify(event));
      }
      await assert.rejects(list(plain, topic), { status: 403 });
    });

    test("a state comes by the option or by a request, and the newest counts", async () => {
      const { tab: bob } = await watch("bob");
      const ann = await open("ann");
      await ann.subscribe(topic, { presence: true, state: { away: false, typing: false } });
      const stateOf = async (type) => {
        const [{ members }] = await expect(bob, type);
        assert.deepEqual(names(members), ["ann"]);
        return members[0].state;
      };
      assert.deepEqual(await stateOf("join"), { away: false, typing: false });

      await setState(ann, topic, { away: false, typing: true });
      assert.deepEqual(await stateOf("update"), { away: false, typing: true });

      const other = await open("ann");
      await other.subscribe(topic, { state: { away: true } });
      assert.deepEqual(await stateOf("update"), { away: true });
      await setState(other, topic, null);
      assert.deepEqual(await stateOf("update"), { away: false, typing: true });
      await setState(ann, topic, null);
      assert.equal(await stateOf("update"), undefined);

      // only for a connection of one's own, in a topic that it is on
      const clientId = await ann.clientId();
      for (const [tab, body, status] of [
        [bob, { topic, clientId, state: {} }, 403],
        [ann, { topic: topic + "0", clientId, state: {} }, 400],
        [ann, { topic, clientId: "nobody", state: {} }, 404],
        [ann, { topic, clientId, state: [] }, 400],
      ]) {
        await assert.rejects(tab.send("/api/topics/presence", POST(body)), { status });
      }
      await bob.box.quiet(500);
    });

    test("whose account is deleted leaves at once, also in the grace", async () => {
      const admin = await superuser(server);
      const name = "gone" + rooms;
      const { [name]: id } = await signUp(server, name);
      const { tab: bob } = await watch("bob");
      const tab = await open(name);
      await tab.subscribe(topic);
      await expect(bob, "join");
      await tab.close();

      const deleted = Date.now();
      await admin.collection("users").delete(id);
      const [leave] = await expect(bob, "leave");
      assert.ok(Date.now() - deleted < GRACE_MS - 500, `after ${Date.now() - deleted} ms`);
      assert.deepEqual(leave.members, [{ id, collection: "users" }]);
    });

    test("who may not see the members any more is told, and keeps the messages", async () => {
      const admin = await superuser(server);
      const { tab: bob } = await watch("bob");
      const { tab: eve } = await watch("eve");
      await expect(bob, "join");

      await admin.collection("users").update(ids.eve, { name: "" });
      const [revoked] = await expect(eve, "presence_revoked");
      assert.deepEqual([revoked.topic, revoked.code], [topic, "presence_revoked"]);
      const [update] = await expect(bob, "update");
      assert.deepEqual(
        update.members.map(({ id, record }) => [id, record]),
        [[ids.eve, { name: "" }]],
      );

      const ann = await open("ann");
      await ann.subscribe(topic);
      await expect(bob, "join");
      await publish(ann, topic, { text: "hello" });
      await expect(eve, "message");
      await eve.box.quiet(500);

      // with the right again, it takes a new subscription
      await admin.collection("users").update(ids.eve, { name: "eve" });
      await expect(bob, "message", "update");
      await eve.box.quiet(500);
      await watch("eve");
    });
  });
}

describe("presence", () => {
  for (const signal of ["SIGTERM", "SIGKILL"]) {
    test(`a restart by ${signal} that takes less than the grace shows nothing`, async () => {
      const grace = 6_000;
      const server = await startTestServer({ args: ["--grace", grace + "ms"] });
      await signUp(server, "ann", "bob", "eve");
      const tabs = {
        ann: await nodeTab(server.url, "ann"),
        bob: await chromiumTab(server.url, "bob"),
        eve: await nodeTab(server.url, "eve"),
      };
      await tabs.ann.subscribe("hall/restart", { state: { typing: true } });
      await tabs.bob.subscribe("hall/restart", { presence: true });
      await expect(tabs.bob, "ready", "presence");
      await tabs.eve.subscribe("hall/restart", { presence: true });
      await expect(tabs.bob, "join");
      const [, { members: before }] = await expect(tabs.eve, "ready", "presence");
      assert.deepEqual(names(before), ["ann", "bob", "eve"]);
      await sleep(1_000); // a kill loses what was not written yet

      await server.restart(signal);
      const started = Date.now();
      for (const name of ["bob", "eve"]) await expect(tabs[name], "ready", "presence");
      await sleep(grace + 1_000 - (Date.now() - started));

      // what is seen later is the same list again, if anything
      const known = (members) => members.map(({ connections, ...rest }) => rest);
      for (const name of ["bob", "eve"]) {
        const events = tabs[name].box.all;
        const later = events.slice(events.findLastIndex(({ type }) => type === "ready") + 1);
        for (const { type, members } of later) {
          assert.equal(type, "presence", JSON.stringify(later));
          assert.deepEqual(known(members), known(before));
        }
      }
      const { members } = await list(tabs.bob, "hall/restart");
      assert.deepEqual(members, before);

      await Promise.all(Object.values(tabs).map((tab) => tab.close()));
      await server.stop();
    });
  }

  test("a reader that has stalled leaves", async () => {
    const server = await startTestServer({
      args: ["--grace", "500ms", "--write-timeout", "1s"],
    });
    const ids = await signUp(server, "ann", "bob");
    const topic = "hall/stalled";
    const ann = await client(server.url, "ann@example.com", PASSWORD);
    const bob = await nodeTab(server.url, "bob");
    await bob.subscribe(topic, { presence: true });
    await expect(bob, "ready", "presence");

    // ann's connection is a socket, which reads its client id and then nothing
    const { hostname, port } = new URL(server.url);
    const socket = net.connect(Number(port), hostname);
    socket.on("error", () => {});
    socket.write(`GET /api/realtime HTTP/1.1\r\nHost: ${hostname}:${port}\r\n\r\n`);
    let head = "";
    while (!/"clientId":"(\w+)"/.test(head)) head += (await once(socket, "data"))[0];
    const [, clientId] = head.match(/"clientId":"(\w+)"/);
    socket.pause();
    await ann.send("/api/realtime", POST({ clientId, subscriptions: [topic] }));
    await expect(bob, "join");

    // The history spares it from being closed as a slow consumer. It is the
    // write that comes to its deadline, once the network's buffers are full.
    const data = "x".repeat(60_000);
    const isLeave = ({ type }) => type === "leave";
    for (const end = Date.now() + 60_000; !bob.box.all.some(isLeave);) {
      assert.ok(Date.now() < end, "it did not leave");
      await server.notify(topic, data);
    }
    const { members, count } = bob.box.all.find(isLeave);
    assert.deepEqual([count, members], [1, [{ id: ids.ann, collection: "users" }]]);

    // it was the write's deadline. Logs are written a moment later
    const admin = await superuser(server);
    const filter = "message ~ '(write timeout)'";
    for (const end = Date.now() + 10_000; ; await sleep(200)) {
      if ((await admin.logs.getList(1, 1, { filter })).totalItems === 1) break;
      assert.ok(Date.now() < end, "no write timeout in the log");
    }

    socket.destroy();
    await bob.close();
    await server.stop();
  });
});
