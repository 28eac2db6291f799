// What the official SDK meets for keys that are not as others: names that the
// browser takes for its own, options that are too long, topics that are no URLs.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import PocketBase from "pocketbase";

import { inbox, launchBrowser, startProxy, startTestServer } from "./harness.mjs";

const notes = 20;

// colons are topics that are no URLs
const colons = ["chat_room:42", "42:chat", "@me:1", "~x:1", ":42"];

let server;
let admin;

before(async () => {
  server = await startTestServer();
  const { email, password } = await server.superuser();
  admin = new PocketBase(server.url);
  await admin.collection("_superusers").authWithPassword(email, password);
  for (const pattern of colons) {
    await admin.collection("_topics").create({ pattern, subscribeRule: "", history: 5 });
  }
});

after(async () => {
  await server?.stop();
});

const access = (pb, topic) =>
  pb.send("/api/topics/access", { query: { topic }, requestKey: null }).then((a) => a.subscribe);

const createNotes = async (run) => {
  for (let i = 0; i < notes; i++) {
    await admin.collection("notes").create({ text: `${run} ${i}` }, { requestKey: null });
  }
};

// taken are names that can be listened to at all: the SDK itself refuses those
// of Object.prototype, with an exception.
const taken = ["error", "open", "message", "close", "done"];

describe("names that the browser takes for its own", () => {
  for (const topic of taken) {
    test(`a topic called ${topic} makes no loop, and record events arrive`, async () => {
      const proxy = await startProxy(server.url);
      const pb = new PocketBase(proxy.url);
      const records = inbox();
      const own = inbox();
      await pb.collection("notes").subscribe("*", records.push);
      await pb.realtime.subscribe(topic, own.push);

      await createNotes(topic);
      const events = await records.take(notes);
      assert.equal(new Set(events.map(({ record }) => record.text)).size, notes);
      await sleep(3_000); // the SDK would have connected some ten times
      assert.equal(proxy.requests.connect, 1);
      await records.quiet(0);
      assert.deepEqual(own.all, []);
      assert.equal((await access(pb, topic)).code, "topic_name_reserved");

      await pb.realtime.unsubscribe();
      await proxy.stop();
    });
  }

  test("the SDK cannot listen to members of Object.prototype", async () => {
    const pb = new PocketBase(server.url);
    for (const topic of ["constructor", "toString", "__proto__"]) {
      await assert.rejects(
        pb.realtime.subscribe(topic, () => {}),
        TypeError,
      );
      assert.equal((await access(pb, topic)).code, "topic_name_reserved");
    }
  });
});

describe("options that are too long", () => {
  for (const [name, state] of [
    ["823 bytes of Chinese", { text: "汉".repeat(274) }],
    [
      "1.3 KB of small keys",
      Object.fromEntries(Array.from({ length: 150 }, (_, i) => ["k" + i, i])),
    ],
    ["20 KB", { text: "x".repeat(20_000) }],
  ]) {
    test(`a state of ${name} is refused alone, also after a lost connection`, async () => {
      const proxy = await startProxy(server.url);
      const pb = new PocketBase(proxy.url);
      const denied = inbox();
      const other = inbox();
      const connects = inbox();
      await pb.realtime.subscribe("PB_CONNECT", connects.push);
      await Promise.all([
        pb.realtime.subscribe("hall/1", denied.push, { state }),
        pb.realtime.subscribe("open/1", other.push),
      ]);
      const works = async () => {
        await connects.next();
        assert.equal((await denied.next())["@topics"].code, "topic_options_too_long");
        await server.notify("open/1", 1);
        assert.equal(await other.next(), 1);
      };
      await works();
      proxy.cut();
      await works();

      // later subscriptions are not poisoned
      const later = inbox();
      await pb.realtime.subscribe("open/2", later.push);
      await server.notify("open/2", 2);
      assert.equal(await later.next(), 2);
      assert.equal(proxy.requests.connect, 2);

      await pb.realtime.unsubscribe();
      await proxy.stop();
    });
  }
});

describe("options", () => {
  for (const topic of colons) {
    test(`${topic} has them`, async () => {
      const pb = new PocketBase(server.url);
      await server.notify(topic, "kept");
      const box = inbox();
      await pb.realtime.subscribe(topic, box.push, { envelope: true, replay: 1 });
      assert.equal((await box.next()).type, "ready");
      assert.equal((await box.next()).data, "kept");
      await server.notify(topic, "live");
      assert.equal((await box.next()).data, "live");

      const wrong = inbox();
      await pb.realtime.subscribe(topic, wrong.push, { replay: "some" });
      assert.equal((await wrong.next())["@topics"].code, "topic_options_invalid");
      await pb.realtime.unsubscribe();
    });
  }

  test("those of record subscriptions are refused with a hint", async () => {
    const pb = new PocketBase(server.url);
    for (const option of ["filter", "expand", "fields", "sort"]) {
      const box = inbox();
      await pb.realtime.subscribe("open/1", box.push, { [option]: "x" });
      const { code, message } = (await box.next())["@topics"];
      assert.equal(code, "topic_options_invalid");
      assert.match(message, new RegExp("@request.query." + option));
    }
    await pb.realtime.unsubscribe();
  });
});

test("in Chromium", async () => {
  const proxy = await startProxy(server.url);
  const browser = await launchBrowser();
  try {
    const page = await browser.newPage();
    await page.goto(proxy.url + "/api/health");
    const source = await readFile(
      new URL("./node_modules/pocketbase/dist/pocketbase.es.mjs", import.meta.url),
      { encoding: "utf8" },
    );
    await page.evaluate(
      async ({ source, taken }) => {
        const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
        const { default: PocketBase } = await import(url);
        const pb = new PocketBase(location.origin);
        window.got = { records: [], taken: [], long: [], colon: [] };
        await pb.collection("notes").subscribe("*", (e) => window.got.records.push(e.record.id));
        for (const topic of taken) {
          await pb.realtime.subscribe(topic, (e) => window.got.taken.push(e));
        }
        const state = { text: "汉".repeat(274) };
        await pb.realtime.subscribe("hall/1", (e) => window.got.long.push(e), { state });
        await pb.realtime.subscribe(":42", (e) => window.got.colon.push(e), { envelope: true });
      },
      { source, taken },
    );
    const before = { ...proxy.requests };
    await createNotes("chromium");
    await server.notify(":42", "hello");
    await sleep(3_000);
    const got = await page.evaluate(() => window.got);
    assert.equal(new Set(got.records).size, notes);
    assert.equal(got.long[0]["@topics"].code, "topic_options_too_long");
    assert.deepEqual(
      got.colon.map(({ type }) => type),
      ["ready", "message"],
    );
    assert.deepEqual(got.taken, []);
    assert.equal(before.connect, 1);
    assert.deepEqual(proxy.requests, before);
  } finally {
    await browser.close();
    await proxy.stop();
  }
});
