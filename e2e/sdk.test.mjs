// The official SDK, unmodified, against the plugin.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { client, inbox, startExample, startProxy, startTestServer } from "./harness.mjs";

const LOBBY = "lobby0000000001";
const LOBBY_TOPIC = "room/" + LOBBY;

// The SDK waits at most 2 s between two attempts to connect, so a loop shows
// itself within this time.
const LOOP_WATCH_MS = 4_000;

function isDenial(message, topic, code = "topic_denied") {
  assert.deepEqual(Object.keys(message), ["@topics"]);
  const { type, topic: told, code: why, message: text } = message["@topics"];
  assert.deepEqual({ type, told, why }, { type: "denied", told: topic, why: code });
  assert.match(text, /\S/);
}

const publish = (pb, body) => pb.send("/api/topics/publish", { method: "POST", body });
const access = (pb, topic) => pb.send("/api/topics/access", { query: { topic } });

// refusal is the code a publish was refused with.
async function refusal(promise, field = "topic") {
  const error = await promise.then(
    () => assert.fail("the request was not refused"),
    (error) => error,
  );
  return { status: error.status, code: error.response?.data?.[field]?.code };
}

describe("with the test server", () => {
  let server;
  const clients = [];
  const open = async (url = server.url, ...account) => {
    const pb = await client(url, ...account);
    clients.push(pb);
    return pb;
  };

  before(async () => {
    server = await startTestServer();
  });

  after(async () => {
    await Promise.all(clients.map((pb) => pb.realtime.unsubscribe()));
    await server?.stop();
  });

  test("a server-side Notify of {test:123} arrives as {test:123}", async () => {
    const pb = await open();
    const plain = inbox();
    const optioned = inbox();
    const prefixed = inbox();

    await pb.realtime.subscribe("example", plain.push);
    await pb.realtime.subscribe("example", optioned.push, {
      query: { a: "ä & b?c#d%" },
      headers: { "x-test": "1" },
    });
    await pb.realtime.subscribe("example", prefixed.push, { unknown: "option" });
    await server.notify("example", { test: 123 });

    assert.deepEqual(await plain.next(), { test: 123 });
    assert.deepEqual(await optioned.next(), { test: 123 });
    assert.deepEqual(await prefixed.next(), { test: 123 });

    // once each
    await server.notify("example", "end");
    for (const box of [plain, optioned, prefixed]) assert.equal(await box.next(), "end");
  });

  test("each JSON value arrives as the SDK reads it", async () => {
    const pb = await open();
    const box = inbox();
    await pb.realtime.subscribe("open/values", box.push);

    const values = [
      true,
      1.5,
      -0.25,
      "text",
      [1, [2], null],
      { nested: { list: [{}, []] } },
      { "@topic": "is not the reserved key", id: "x", event: "y" },
      "Grüße, 世界 🌍, עברית, \u2028 \u2029 \u0000 <b>&amp;</b>",
      "line\nbreaks\r\nid: 1\n\ndata: {}\n\n",
      "x".repeat(30_000),
    ];
    for (const value of values) await server.notify("open/values", value);
    assert.deepEqual(await box.take(values.length), values);

    // The SDK's callback gets `JSON.parse(data) || {}`, so these arrive as {}.
    const falsy = [0, null, false, ""];
    for (const value of falsy) await server.notify("open/values", value);
    assert.deepEqual(await box.take(falsy.length), [{}, {}, {}, {}]);
  });

  test("a denied topic leaves the others working, before and after a lost connection", async () => {
    const proxy = await startProxy(server.url);
    const pb = await open(proxy.url);
    const boxes = {
      connect: inbox(),
      denied: inbox(),
      optioned: inbox(),
      unknown: inbox(),
      allowed: inbox(),
      collection: inbox(),
    };
    const disconnects = inbox();
    pb.realtime.onDisconnect = disconnects.push;

    // together, in one connect: none of the promises is rejected
    await Promise.all([
      pb.realtime.subscribe("PB_CONNECT", boxes.connect.push),
      pb.realtime.subscribe("staff", boxes.denied.push),
      pb.realtime.subscribe("staff", boxes.optioned.push, { query: { a: 1 } }),
      pb.realtime.subscribe("no/such/topic", boxes.unknown.push),
      pb.realtime.subscribe("example", boxes.allowed.push),
      pb.collection("notes").subscribe("*", boxes.collection.push),
    ]);

    const works = async () => {
      const { clientId } = await boxes.connect.next();
      assert.equal(clientId, pb.realtime.clientId);

      isDenial(await boxes.denied.next(), "staff");
      isDenial(await boxes.optioned.next(), "staff");
      isDenial(await boxes.unknown.next(), "no/such/topic", "topic_unknown");

      await server.notify("staff", "secret");
      await server.notify("example", { test: 123 });
      assert.deepEqual(await boxes.allowed.next(), { test: 123 });

      const note = await pb.collection("notes").create({ text: "hello" });
      const event = await boxes.collection.next();
      assert.deepEqual([event.action, event.record.id], ["create", note.id]);
    };
    await works();

    // another subscription sends all keys once more, and is not poisoned by the denied one
    const later = inbox();
    await pb.realtime.subscribe("open/later", later.push);
    await server.notify("open/later", 1);
    assert.equal(await later.next(), 1);

    for (let round = 1; round <= 2; round++) {
      const before = { ...proxy.requests };
      proxy.cut();
      await disconnects.next();
      await works();
      await server.notify("open/later", { round });
      assert.deepEqual(await later.next(), { round });

      // nothing loops: no second connect or submit, no second notice, nothing secret
      await Promise.all(
        [disconnects, ...Object.values(boxes)].map((box) => box.quiet(LOOP_WATCH_MS)),
      );
      assert.deepEqual(proxy.requests, {
        connect: before.connect + 1,
        subscribe: before.subscribe + 1,
      });
    }

    await pb.realtime.unsubscribe();
    await proxy.stop();
  });

  test("only denied topics: the connection stays, and a later one works", async () => {
    const pb = await open();
    const denied = inbox();
    const connects = inbox();
    await pb.realtime.subscribe("PB_CONNECT", connects.push);
    await pb.realtime.subscribe("staff", denied.push);
    isDenial(await denied.next(), "staff");

    const allowed = inbox();
    await pb.realtime.subscribe("example", allowed.push);
    await server.notify("example", "still here");
    assert.equal(await allowed.next(), "still here");
    assert.equal(connects.all.length, 1);
    assert.equal(denied.all.length, 1, "the denial is told once");
  });

  test("after a sign-in a denied topic can be subscribed to on the same connection", async () => {
    const pb = await open();
    const box = inbox();
    const connects = inbox();
    await pb.realtime.subscribe("PB_CONNECT", connects.push);
    await pb.realtime.subscribe("members/news", box.push);
    isDenial(await box.next(), "members/news");

    await pb.collection("users").authWithPassword("tester@example.com", "topics-test");
    await pb.realtime.unsubscribe("members/news");
    await pb.realtime.subscribe("members/news", box.push);
    await server.notify("members/news", "welcome");
    assert.equal(await box.next(), "welcome");
    assert.equal(connects.all.length, 1);
  });

  test("all subscribers see one order, each publisher's own one included", async () => {
    const listeners = [inbox(), inbox(), inbox()];
    for (const [i, box] of listeners.entries()) {
      const pb = await open();
      await pb.realtime.subscribe("open/order", box.push, i === 2 ? { query: { i } } : undefined);
    }

    const each = 250;
    const publishers = await Promise.all(["a", "b"].map(() => open()));
    await Promise.all(
      publishers.map(async (pb, by) => {
        for (let n = 0; n < each; n++) await publish(pb, { topic: "open/order", data: { by, n } });
      }),
    );

    const [first, ...others] = await Promise.all(
      listeners.map((box) => box.take(2 * each, 20_000)),
    );
    for (const other of others) assert.deepEqual(other, first);
    for (const by of [0, 1]) {
      assert.deepEqual(
        first.filter((message) => message.by === by).map((message) => message.n),
        Array.from({ length: each }, (_, n) => n),
      );
    }
  });

  test("publish refuses what it must, with codes", async () => {
    const pb = await open();

    assert.deepEqual(await refusal(publish(pb, { topic: "staff", data: 1 })), {
      status: 403,
      code: "topic_denied",
    });
    assert.deepEqual(await refusal(publish(pb, { topic: "no/such/topic", data: 1 })), {
      status: 403,
      code: "topic_unknown",
    });
    assert.equal(
      (await refusal(publish(pb, { topic: "bad\ntopic", data: 1 }))).code,
      "topic_malformed",
    );
    assert.equal((await refusal(publish(pb, { topic: "notes", data: 1 }))).code, "topic_reserved");
    assert.equal(
      (await refusal(publish(pb, { topic: "PB_CONNECT", data: 1 }))).code,
      "topic_reserved",
    );

    // the reserved key cannot be forged
    const forged = await refusal(
      publish(pb, { topic: "example", data: { "@topics": { type: "denied" } } }),
      "data",
    );
    assert.equal(forged.status, 400);
    assert.match(forged.code, /^\w+$/);
  });

  test("publish of many, and except", async () => {
    const sender = await open();
    const other = await open();
    const boxes = { sender: inbox(), other: inbox() };
    await sender.realtime.subscribe("open/many", boxes.sender.push);
    await other.realtime.subscribe("open/many", boxes.other.push);

    const one = await publish(sender, {
      topic: "open/many",
      data: "not to me",
      except: sender.realtime.clientId,
    });
    assert.deepEqual(one, { id: "" });

    const many = await publish(sender, {
      messages: [
        { topic: "open/many", data: { n: 1 } },
        { topic: "open/many", data: { n: 2 } },
      ],
    });
    assert.deepEqual(many, { messages: [{ id: "" }, { id: "" }] });

    assert.deepEqual(await boxes.other.take(3), ["not to me", { n: 1 }, { n: 2 }]);
    assert.deepEqual(await boxes.sender.take(2), [{ n: 1 }, { n: 2 }]);
  });

  test("a subscription to @oauth2 gets no notice", async () => {
    const pb = await open();
    const oauth2 = inbox();
    const allowed = inbox();
    await pb.realtime.subscribe("@oauth2", oauth2.push);
    await pb.realtime.subscribe("example", allowed.push);
    await server.notify("example", 1);
    assert.equal(await allowed.next(), 1);
    assert.equal(oauth2.all.length, 0);
  });
});

describe("with the example app", () => {
  let server;
  let guest, ann, bob, eve;

  before(async () => {
    server = await startExample();
    guest = await client(server.url);
    [ann, bob, eve] = await Promise.all(
      ["ann", "bob", "eve"].map((name) => client(server.url, name + "@example.com", "topics-demo")),
    );
  });

  after(async () => {
    await Promise.all([guest, ann, bob, eve].map((pb) => pb?.realtime.unsubscribe()));
    await server?.stop();
  });

  test("members of a room hear each other, and the others do not", async () => {
    const boxes = { guest: inbox(), ann: inbox(), bob: inbox(), eve: inbox() };
    await guest.realtime.subscribe(LOBBY_TOPIC, boxes.guest.push);
    await ann.realtime.subscribe(LOBBY_TOPIC, boxes.ann.push);
    await bob.realtime.subscribe(LOBBY_TOPIC, boxes.bob.push);
    await eve.realtime.subscribe(LOBBY_TOPIC, boxes.eve.push);
    isDenial(await boxes.guest.next(), LOBBY_TOPIC);
    isDenial(await boxes.eve.next(), LOBBY_TOPIC);

    const sent = { text: "hello", from: "ann" };
    assert.match((await publish(ann, { topic: LOBBY_TOPIC, data: sent })).id, /^\w+:\d+$/);
    assert.deepEqual(await boxes.ann.next(), sent);
    assert.deepEqual(await boxes.bob.next(), sent);

    const denied = { status: 403, code: "topic_denied" };
    assert.deepEqual(await refusal(publish(eve, { topic: LOBBY_TOPIC, data: sent })), denied);
    assert.deepEqual(await refusal(publish(guest, { topic: LOBBY_TOPIC, data: sent })), denied);
    assert.deepEqual(await refusal(publish(ann, { topic: "announcements", data: sent })), denied);
    assert.deepEqual(
      await refusal(publish(ann, { topic: "room/000000000000000", data: sent })),
      denied,
    );

    await publish(bob, { topic: LOBBY_TOPIC, data: "end" });
    assert.equal(await boxes.ann.next(), "end");
    assert.equal(boxes.eve.all.length, 1);
    assert.equal(boxes.guest.all.length, 1);

    await Promise.all([guest, ann, bob, eve].map((pb) => pb.realtime.unsubscribe(LOBBY_TOPIC)));
  });

  test("the access endpoint tells what is allowed and why not", async () => {
    const bobs = await access(bob, LOBBY_TOPIC);
    assert.equal(bobs.topic, LOBBY_TOPIC);
    assert.equal(bobs.subscribe.allowed, true);
    assert.equal(bobs.publish.allowed, true);
    assert.equal(bobs.presence.allowed, true);

    for (const pb of [eve, guest]) {
      const { subscribe, publish, presence } = await access(pb, LOBBY_TOPIC);
      assert.deepEqual([subscribe.allowed, subscribe.code], [false, "topic_denied"]);
      assert.deepEqual([publish.allowed, publish.code], [false, "topic_denied"]);
      assert.deepEqual([presence.allowed, presence.code], [false, "topic_denied"]);
      assert.match(subscribe.message, /\S/);
    }

    const open = await access(guest, "announcements");
    assert.deepEqual([open.subscribe.allowed, open.publish.allowed], [true, false]);

    const unknown = await access(ann, "no/such/topic");
    assert.equal(unknown.subscribe.code, "topic_unknown");

    const mine = "user/" + ann.authStore.record.id;
    assert.equal((await access(ann, mine)).subscribe.allowed, true);
    assert.equal((await access(bob, mine)).subscribe.allowed, false);
    assert.equal((await access(ann, mine)).publish.allowed, false);
  });

  test("record events of rooms and hook notifications, beside a denied topic", async () => {
    const admin = await client(server.url);
    const { email, password } = await server.superuser();
    await admin.collection("_superusers").authWithPassword(email, password);

    const boxes = { denied: inbox(), records: inbox(), one: inbox(), room: inbox(), eve: inbox() };
    await bob.realtime.subscribe("user/" + ann.authStore.record.id, boxes.denied.push);
    await bob.collection("rooms").subscribe("*", boxes.records.push);
    await bob.collection("rooms").subscribe(LOBBY, boxes.one.push);
    await bob.realtime.subscribe(LOBBY_TOPIC, boxes.room.push);
    await eve.collection("rooms").subscribe("*", boxes.eve.push);
    isDenial(await boxes.denied.next(), "user/" + ann.authStore.record.id);

    await admin.collection("rooms").update(LOBBY, { name: "Hall" });
    for (const box of [boxes.records, boxes.one]) {
      const event = await box.next();
      assert.deepEqual([event.action, event.record.name], ["update", "Hall"]);
    }
    assert.deepEqual(await boxes.room.next(), { system: "the room is now called Hall" });
    assert.equal(boxes.eve.all.length, 0, "eve may not see the record");

    await bob.realtime.unsubscribe();
    await eve.realtime.unsubscribe();
  });

  test("an invitation is told after its transaction, and lets eve in", async () => {
    const boxes = { personal: inbox(), room: inbox(), ann: inbox() };
    await eve.realtime.subscribe("user/" + eve.authStore.record.id, boxes.personal.push);
    await eve.realtime.subscribe(LOBBY_TOPIC, boxes.room.push);
    await ann.realtime.subscribe(LOBBY_TOPIC, boxes.ann.push);
    isDenial(await boxes.room.next(), LOBBY_TOPIC);

    const invite = (pb, email) =>
      pb.send(`/api/rooms/${LOBBY}/invite`, { method: "POST", body: { email } });
    await assert.rejects(invite(eve, "eve@example.com"), { status: 404 });
    await assert.rejects(invite(guest, "eve@example.com"), { status: 401 });
    await assert.rejects(invite(ann, "nobody@example.com"), { status: 404 });

    await invite(ann, "eve@example.com");
    assert.deepEqual(await boxes.personal.next(), {
      text: "ann invited you to Hall",
      room: LOBBY,
    });
    assert.deepEqual(await boxes.ann.next(), { system: "eve joined" });

    await eve.realtime.unsubscribe(LOBBY_TOPIC);
    await eve.realtime.subscribe(LOBBY_TOPIC, boxes.room.push);
    await publish(eve, { topic: LOBBY_TOPIC, data: "hi" });
    assert.equal(await boxes.room.next(), "hi");
    assert.equal(await boxes.ann.next(), "hi");

    // people who share a room see names, not e-mails
    const room = await eve.collection("rooms").getOne(LOBBY, { expand: "members" });
    assert.deepEqual(room.expand.members.map((member) => member.name).sort(), [
      "ann",
      "bob",
      "eve",
    ]);
    for (const member of room.expand.members) {
      assert.equal(member.email, member.id === eve.authStore.record.id ? member.email : undefined);
    }

    await eve.send(`/api/rooms/${LOBBY}/leave`, { method: "POST" });
    assert.deepEqual(await boxes.ann.next(), { system: "eve left" });
    assert.deepEqual(await refusal(publish(eve, { topic: LOBBY_TOPIC, data: "hi" })), {
      status: 403,
      code: "topic_denied",
    });
  });

  test("the cron job's announcement reaches guests", async () => {
    const admin = await client(server.url);
    const { email, password } = await server.superuser();
    await admin.collection("_superusers").authWithPassword(email, password);

    const box = inbox();
    await guest.realtime.subscribe("announcements", box.push);
    await admin.crons.run("announceTime");

    const { text, time } = await box.next();
    assert.match(text, /^The server's clock says \d\d:\d\d UTC\.$/);
    assert.ok(Math.abs(Date.now() - Date.parse(time)) < 60_000);
  });
});
