// What is sent: the same bytes on every way, and records as a guest sees them.
// And the collection that the rules are in.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import PocketBase from "pocketbase";

import { inbox, startTestServer } from "./harness.mjs";

describe("what is sent", () => {
  let server;

  // the clients of a test end with it
  const open = async (t, ...account) => {
    const pb = new PocketBase(server.url);
    t.after(() => pb.realtime.unsubscribe());
    if (account.length) await pb.collection("users").authWithPassword(...account);
    return pb;
  };
  const openSuperuser = async (t) => {
    const pb = await open(t);
    const { email, password } = await server.superuser();
    await pb.collection("_superusers").authWithPassword(email, password);
    return pb;
  };

  before(async () => {
    server = await startTestServer();
  });

  after(() => server?.stop());

  test("the same text arrives as the same bytes on every way", async (t) => {
    const text = "<b> & \u2028 \u2029 \u0085 £ “quoted” \\u003c";
    const data = { text, [text]: [text] };
    const form = JSON.stringify(data)
      .replaceAll("\u2028", "\\u2028")
      .replaceAll("\u2029", "\\u2029")
      .replaceAll("\u0085", "\\u0085");

    const pb = await open(t);
    const plain = inbox();
    const enveloped = inbox();
    await pb.realtime.subscribe("log/text", plain.push);
    await pb.realtime.subscribe("log/text", enveloped.push, { envelope: true });
    // the SDK parses: the bytes are seen by its EventSource only
    const bytes = [];
    for (const key of Object.keys(pb.realtime.subscriptions)) {
      pb.realtime.eventSource.addEventListener(key, (e) => bytes.push(e.data));
    }

    await server.notify("log/text", data);
    await pb.send("/api/topics/publish", { method: "POST", body: { topic: "log/text", data } });
    await plain.take(2);
    await enveloped.take(3); // and ready
    assert.equal(bytes.filter((line) => line === form).length, 2);
    assert.equal(bytes.filter((line) => line.endsWith(`,"data":${form}}`)).length, 2);
    for (const message of plain.all) assert.deepEqual(message, data);

    const late = await open(t);
    const replayed = inbox();
    await late.realtime.subscribe("log/text", replayed.push, { replay: 10 });
    assert.deepEqual(await replayed.take(2), [data, data]);

    const history = await fetch(server.url + "/api/topics/history?topic=log/text");
    assert.equal((await history.text()).split(`"data":${form}}`).length, 3);
  });

  test("a record from a request's hook arrives as a guest may see it", async (t) => {
    const guest = await open(t);
    const box = inbox();
    await guest.realtime.subscribe("open/records", box.push);

    for (const pb of [await open(t, "tester@example.com", "topics-test"), await openSuperuser(t)]) {
      const user = pb.authStore.isSuperuser
        ? await pb.collection("users").getFirstListItem('email = "tester@example.com"')
        : pb.authStore.record;
      const updated = await pb.collection("users").update(user.id, { name: "Tester" });
      assert.equal(updated.email, "tester@example.com", "the sender sees it");

      const message = await box.next();
      assert.equal(message.record.id, user.id);
      assert.equal(message.record.name, "Tester");
      assert.ok(!JSON.stringify(message).includes("tester@example.com"), JSON.stringify(message));
      assert.deepEqual(message.list, [message.record]);
    }
  });

  test("the rules are not dropped by an import, and a lost collection comes back", async (t) => {
    const pb = await openSuperuser(t);
    const rule = await pb.collection("_topics").create({ pattern: "mine", subscribeRule: "" });
    const refused = async (promise) => {
      const error = await promise.then(
        () => assert.fail("it was done"),
        (error) => error,
      );
      assert.equal(error.status, 400);
      assert.match(error.response.message, /has records/);
      assert.equal(error.response.data.collection.code, "validation_rules_not_empty");
    };
    await refused(pb.collections.import([{ name: "only", type: "base", fields: [] }], true));
    await refused(pb.collections.delete("_topics"));
    assert.equal((await pb.collection("_topics").getOne(rule.id)).pattern, "mine");

    await pb.collection("_topics").delete(rule.id);
    await pb.collections.delete("_topics");
    await server.restart("SIGTERM");
    const again = await openSuperuser(t);
    await again.collection("_topics").create({ pattern: "mine", subscribeRule: "" });
    const { subscribe } = await again.send("/api/topics/access", { query: { topic: "mine" } });
    assert.equal(subscribe.allowed, true);
  });
});
