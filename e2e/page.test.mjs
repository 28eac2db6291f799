// The example app's page in headless Chromium.

import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";

import { client, launchBrowser, startExample, startProxy } from "./harness.mjs";

const LOBBY = "lobby0000000001";

let server;
let admin; // the SDK, signed in as superuser
let browser;
let contexts = [];

before(async () => {
  browser = await launchBrowser();
});

// a server for each test: rooms remember what was said
beforeEach(async () => {
  server = await startExample({ args: ["--grace", "2s"] });
  const { email, password } = await server.superuser();
  admin = await client(server.url);
  await admin.collection("_superusers").authWithPassword(email, password);
});

afterEach(async () => {
  await Promise.all(contexts.map((context) => context.close()));
  contexts = [];
  await server?.stop();
});

after(async () => {
  await browser?.close();
});

// visit opens the page in a context of its own. complaints collects what the
// console and the page's scripts complain about.
async function visit(url = server.url) {
  const context = await browser.newContext();
  contexts.push(context);
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);

  const complaints = [];
  const otherHosts = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(url + "/")) otherHosts.push(request.url());
  });

  await page.goto(url + "/");
  await connected(page);

  return { page, complaints, otherHosts };
}

const connected = (page) => page.locator('#connection[data-state="connected"]').waitFor();

async function signIn(page, name) {
  await page.click("#login-" + name);
  await page.locator(`#room[data-state="${name === "eve" ? "refused" : "open"}"]`).waitFor();
  assert.equal(await page.textContent("#me"), name);
}

async function say(page, text) {
  await page.fill("#text", text);
  await page.press("#text", "Enter");
}

const lastMessage = (page, text) =>
  page.locator("#messages li:last-child .text", { hasText: text }).waitFor();

// people waits until the page lists these names, members first.
async function people(page, members, others) {
  const shown = async (id) =>
    (await page.locator(`#${id} li > span`).allTextContents()).map((text) => text.split(" ")[0]);
  const end = Date.now() + 10_000;
  for (;;) {
    const lists = [await shown("members"), await shown("others")];
    try {
      assert.deepEqual(lists, [members, others]);
      return;
    } catch (error) {
      if (Date.now() > end) throw error;
      await page.waitForTimeout(20);
    }
  }
}

// present waits until the page shows these in the room, its own account first.
async function present(page, ...expected) {
  const shown = () => page.locator("#present li").allTextContents();
  for (const end = Date.now() + 10_000; ; await page.waitForTimeout(20)) {
    const lines = await shown();
    try {
      assert.deepEqual(lines, expected);
      break;
    } catch (error) {
      if (Date.now() > end) throw error;
    }
  }
  assert.equal(await page.textContent("#present-count"), `${expected.length} here now`);
}

// look pretends that the tab is in front, or hidden behind another one.
const look = (page, visible) =>
  page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, !visible);

const roomIs = (page, state) => page.locator(`#room[data-state="${state}"]`).waitFor();
const press = (page, name) => page.getByRole("button", { name, exact: true }).click();

const announce = () => admin.crons.run("announceTime");

const invite = async () => {
  const ann = await client(server.url, "ann@example.com", "topics-demo");
  await ann.send(`/api/rooms/${LOBBY}/invite`, {
    method: "POST",
    body: { email: "eve@example.com" },
  });
};

test("ann and bob chat both ways, and nothing complains", async () => {
  const ann = await visit();
  const bob = await visit();
  await signIn(ann.page, "ann");
  await signIn(bob.page, "bob");
  await people(ann.page, ["ann", "bob"], ["eve"]);
  assert.equal(await ann.page.isVisible("#login"), false);

  await say(ann.page, "hello bob");
  await lastMessage(ann.page, "hello bob");
  await lastMessage(bob.page, "hello bob");
  assert.equal(await ann.page.inputValue("#text"), "");
  assert.equal(await ann.page.getAttribute("#messages li", "class"), "mine");
  assert.equal(await bob.page.getAttribute("#messages li", "class"), "other");
  await bob.page.locator("#messages li .from", { hasText: /^ann$/ }).waitFor();

  await say(bob.page, "hello ann");
  await lastMessage(ann.page, "hello ann");
  await lastMessage(bob.page, "hello ann");

  // what is sent is shown as text
  const html = '<img src=x onerror="alert(1)"><b>bold</b>';
  await say(bob.page, html);
  await lastMessage(ann.page, html);
  assert.equal(await ann.page.locator("#messages img, #messages b").count(), 0);

  for (const visitor of [ann, bob]) {
    assert.deepEqual(visitor.complaints, []);
    assert.deepEqual(visitor.otherHosts, []);
  }
});

test("a member's message is never shown as the server's, or as another one's", async () => {
  const ann = await visit();
  await signIn(ann.page, "ann");
  await people(ann.page, ["ann", "bob"], ["eve"]);
  const bob = await client(server.url, "bob@example.com", "topics-demo");
  const publish = (data) =>
    bob.send("/api/topics/publish", { method: "POST", body: { topic: "room/" + LOBBY, data } });

  for (const data of [
    { system: "ann is banned" },
    { system: "ann is banned", text: "forged", from: "ann" },
    null,
    7,
    ["system"],
  ]) {
    await publish(data);
  }
  await publish({ text: "the last one", from: "ann" });
  await lastMessage(ann.page, "the last one");
  await ann.page.locator("#messages li:last-child .from", { hasText: /^bob$/ }).waitFor();

  const lines = await ann.page
    .locator("#messages li")
    .evaluateAll((list) =>
      list.map((line) => [line.className, line.querySelector(".from").textContent]),
    );
  assert.deepEqual(lines, Array(6).fill(["other", "bob"]));
  assert.equal(await ann.page.locator("#messages li", { hasText: "banned" }).count(), 0);

  // what the server itself says is
  await admin.collection("rooms").update(LOBBY, { name: "Hall" });
  await ann.page.locator("#messages li.system", { hasText: "is now called Hall" }).waitFor();
  assert.deepEqual(ann.complaints, []);
});

test("eve is shown why it is refused", async () => {
  const eve = await visit();
  const ann = await visit();
  await signIn(eve.page, "eve");
  await signIn(ann.page, "ann");

  assert.equal(await eve.page.textContent("#refusal-code"), "topic_denied");
  assert.equal(await eve.page.textContent("#refusal-topic"), "room/" + LOBBY);
  assert.match(await eve.page.textContent("#refusal-message"), /\S/);
  assert.equal(await eve.page.textContent("#access-subscribe"), "refused");
  assert.equal(await eve.page.textContent("#access-publish"), "refused");
  assert.deepEqual(eve.complaints, []);

  await say(ann.page, "only for members");
  await lastMessage(ann.page, "only for members");
  assert.equal(await eve.page.locator("#messages li").count(), 0);

  // sending is refused as well; the browser itself logs the 403
  await say(eve.page, "let me in");
  await eve.page.locator("#send-error", { hasText: "topic_denied" }).waitFor();
  assert.equal(eve.complaints.length, 1);
  assert.match(eve.complaints[0], /403/);
  assert.equal(await eve.page.inputValue("#text"), "let me in");
  assert.equal(await ann.page.locator("#messages li").count(), 1);

  // trying again without a change is refused again
  await eve.page.click("#retry");
  await roomIs(eve.page, "refused");
});

test("an invitation by e-mail lets eve in at once, who can leave again", async () => {
  const eve = await visit();
  const ann = await visit();
  await signIn(eve.page, "eve");
  await signIn(ann.page, "ann");

  await ann.page.fill("#invite-email", "eve@example.com");
  await ann.page.click('[data-testid="invite"]');
  await roomIs(eve.page, "open");
  await eve.page.locator("#personal", { hasText: "ann invited you to Lobby" }).waitFor();
  await people(ann.page, ["ann", "bob", "eve"], []);
  await lastMessage(ann.page, "eve joined");

  await say(eve.page, "thank you");
  await lastMessage(eve.page, "thank you");
  await lastMessage(ann.page, "thank you");

  await eve.page.click("#leave");
  await roomIs(eve.page, "refused");
  assert.equal(await eve.page.textContent("#refusal-title"), "You left the room");
  await lastMessage(ann.page, "eve left");
  await people(ann.page, ["ann", "bob"], ["eve"]);

  for (const visitor of [ann, eve]) assert.deepEqual(visitor.complaints, []);
});

test("ann removes bob and adds bob again, and both pages show it at once", async () => {
  const ann = await visit();
  const bob = await visit();
  const tab = await visit(); // bob's other one
  await signIn(ann.page, "ann");
  for (const { page } of [bob, tab]) await signIn(page, "bob");
  await say(ann.page, "before");
  for (const { page } of [bob, tab]) await lastMessage(page, "before");
  await people(ann.page, ["ann", "bob"], ["eve"]);

  // leaving is for oneself, removing for others
  assert.equal(await ann.page.locator('#members button[aria-label="Remove ann"]').count(), 0);

  for (let round = 1; round <= 3; round++) {
    await press(ann.page, "Remove bob");
    for (const { page } of [bob, tab]) {
      await roomIs(page, "refused");
      assert.equal(await page.textContent("#refusal-title"), "You were removed");
      assert.equal(await page.textContent("#refusal-code"), "topic_revoked");
      assert.equal(await page.textContent("#refusal-topic"), "room/" + LOBBY);
      assert.match(await page.textContent("#refusal-message"), /not allowed .* any more/);
      assert.equal(await page.textContent("#access-subscribe"), "refused");
      assert.equal(await page.isVisible("#messages"), false);
      assert.equal(await page.isVisible("#people"), false);
    }
    await people(ann.page, ["ann"], ["bob", "eve"]);
    await lastMessage(ann.page, "ann removed bob");
    await ann.page.locator("#people-result", { hasText: "bob was removed." }).waitFor();
    // the keyboard stays at bob
    const focused = () => document.activeElement.ariaLabel;
    assert.equal(await ann.page.evaluate(focused), "Add bob");

    const secret = "not for bob " + round;
    await say(ann.page, secret);
    await lastMessage(ann.page, secret);
    for (const { page } of [bob, tab]) {
      assert.equal(await page.locator("#messages li", { hasText: secret }).count(), 0);
    }

    // back in the room, bob may read what the room remembers
    await press(ann.page, "Add bob");
    for (const { page } of [bob, tab]) {
      await roomIs(page, "open");
      await page.locator("#personal", { hasText: "ann invited you to Lobby" }).waitFor();
      assert.equal(await page.isVisible("#refusal"), false);
      await people(page, ["ann", "bob"], ["eve"]);
    }
    await people(ann.page, ["ann", "bob"], ["eve"]);
    await lastMessage(ann.page, "bob joined");
    assert.equal(await ann.page.evaluate(focused), "Remove bob");

    await say(ann.page, "hello again");
    for (const { page } of [bob, tab]) await lastMessage(page, "hello again");
    await say(tab.page, "back " + round);
    for (const { page } of [ann, bob]) await lastMessage(page, "back " + round);
  }

  for (const visitor of [ann, bob, tab]) assert.deepEqual(visitor.complaints, []);
});

test("all tabs change together, also when several remove eve at once", async () => {
  const tabs = [await visit(), await visit(), await visit()];
  const eve = await visit();
  for (const { page } of tabs.slice(0, 2)) await signIn(page, "ann");
  await signIn(tabs[2].page, "bob");
  await signIn(eve.page, "eve");

  await press(tabs[1].page, "Add eve");
  await roomIs(eve.page, "open");
  for (const { page } of [...tabs, eve]) await people(page, ["ann", "bob", "eve"], []);

  // the later ones find no such member any more, or the button gone already
  const remove = () => document.querySelector('[aria-label="Remove eve"]')?.click();
  await Promise.all(tabs.map(({ page }) => page.evaluate(remove)));
  await roomIs(eve.page, "refused");
  assert.equal(await eve.page.textContent("#refusal-title"), "You were removed");
  for (const { page } of tabs) await people(page, ["ann", "bob"], ["eve"]);
  assert.deepEqual(eve.complaints, []);
});

test("removed and added while offline, bob sees it when the connection is back", async () => {
  const proxy = await startProxy(server.url);
  const ann = await visit();
  const bob = await visit(proxy.url);
  await signIn(ann.page, "ann");
  await signIn(bob.page, "bob");

  const offline = async (verb, members, others) => {
    await bob.page.context().setOffline(true);
    proxy.cut();
    await press(ann.page, verb + " bob");
    await people(ann.page, members, others);
    await bob.page.context().setOffline(false);
  };

  await offline("Remove", ["ann"], ["bob", "eve"]);
  await bob.page.locator("#refusal-title", { hasText: "You cannot read this room" }).waitFor();

  await offline("Add", ["ann", "bob"], ["eve"]);
  await roomIs(bob.page, "open");
  await connected(bob.page);
  await say(ann.page, "welcome back");
  await lastMessage(bob.page, "welcome back");

  await Promise.all(contexts.map((context) => context.close()));
  await proxy.stop();
});

test("a sign-in that does not count any more ends with a word about it", async () => {
  const { page, complaints } = await visit();
  await signIn(page, "bob");

  const { id } = await admin.collection("users").getFirstListItem("name = 'bob'");
  await admin.collection("users").update(id, { "tokenKey:autogenerate": "" });
  await page.locator("#login-error", { hasText: "topic_revoked" }).waitFor();
  assert.match(await page.textContent("#login-error"), /Sign in/);
  assert.equal(await page.isVisible("#room"), false);

  await signIn(page, "bob");
  await say(page, "signed in again");
  await lastMessage(page, "signed in again");
  assert.deepEqual(complaints, []);
});

test("everyone sees announcements, signed in or not", async () => {
  const visitors = [];
  for (const name of ["ann", "bob", "eve", null]) {
    const visitor = await visit();
    if (name) await signIn(visitor.page, name);
    visitors.push(visitor);
  }

  await announce();
  for (const { page, complaints } of visitors) {
    await page
      .locator("#announcements li", { hasText: "The server's clock says" })
      .first()
      .waitFor();
    assert.deepEqual(complaints, []);
  }
});

test("a reload keeps the sign-in, signing out and in again works", async () => {
  const { page, complaints } = await visit();
  await signIn(page, "ann");
  await page.reload();
  await connected(page);
  await roomIs(page, "open");
  assert.equal(await page.textContent("#me"), "ann");
  await say(page, "after the reload");
  await lastMessage(page, "after the reload");

  await page.click("#logout");
  await page.locator("#login").waitFor();
  await connected(page);
  assert.equal(await page.isVisible("#room"), false);
  assert.equal(await page.locator("#messages li").count(), 0);

  // another account in the same tab
  await signIn(page, "eve");
  await page.click("#logout");
  await page.locator("#login").waitFor();
  await connected(page);
  await signIn(page, "bob");
  await say(page, "bob is here");
  await lastMessage(page, "bob is here");
  assert.equal(await page.isVisible("#refusal"), false);

  assert.deepEqual(complaints, []);
});

test("two tabs of one browser can be two people", async () => {
  const { page: first } = await visit();
  const second = await first.context().newPage();
  await second.goto(server.url + "/");
  await connected(second);
  await signIn(first, "ann");
  await signIn(second, "bob");
  assert.equal(await first.textContent("#me"), "ann");
  await say(second, "from the other tab");
  await lastMessage(first, "from the other tab");
});

test("after a lost connection the page goes on", async () => {
  const proxy = await startProxy(server.url);
  const { page } = await visit(proxy.url);
  const eve = await visit(proxy.url);
  await signIn(page, "ann");
  await signIn(eve.page, "eve");

  proxy.cut();
  await page.locator("#messages li.system", { hasText: "Reconnected" }).waitFor();
  await connected(page);
  await connected(eve.page);
  await say(page, "back again");
  await lastMessage(page, "back again");

  assert.equal(await eve.page.textContent("#refusal-code"), "topic_denied");
  await invite();
  await roomIs(eve.page, "open");
  await eve.page.click("#leave");
  await roomIs(eve.page, "refused");

  await Promise.all(contexts.map((context) => context.close()));
  await proxy.stop();
});

test("a room remembers, and a cut connection loses nothing", async () => {
  const ann = await visit();
  const bob = await visit();
  await signIn(ann.page, "ann");
  const annsClient = await client(server.url, "ann@example.com", "topics-demo");
  const tell = (text) =>
    annsClient.send("/api/topics/publish", {
      method: "POST",
      body: { topic: "room/" + LOBBY, data: { text } },
    });
  for (let n = 1; n <= 60; n++) await tell(`line ${n}`);
  await lastMessage(ann.page, "line 60");

  // the last 50 on opening the room
  await signIn(bob.page, "bob");
  await lastMessage(bob.page, "line 60");
  const lines = () => bob.page.locator("#messages li .text").allTextContents();
  assert.deepEqual(
    await lines(),
    Array.from({ length: 50 }, (_, i) => `line ${i + 11}`),
  );

  // the button cuts; what is said meanwhile is there, once
  await bob.page.click("#cut");
  await bob.page.locator('#connection[data-state="reconnecting"]').waitFor();
  for (let n = 61; n <= 65; n++) await tell(`line ${n}`);
  await bob.page.locator("#messages li.system", { hasText: "nothing is missing" }).waitFor();
  await connected(bob.page);
  await tell("line 66");
  await lastMessage(bob.page, "line 66");
  const said = (await lines()).filter((text) => text.startsWith("line"));
  assert.deepEqual(
    said,
    Array.from({ length: 56 }, (_, i) => `line ${i + 11}`),
  );

  // more than the room remembers: it says so
  await bob.page.click("#cut");
  for (let i = 0; i < 3; i++) {
    const messages = Array.from({ length: 100 }, (_, n) => ({
      topic: "room/" + LOBBY,
      data: { text: `flood ${i * 100 + n}` },
    }));
    await annsClient.send("/api/topics/publish", { method: "POST", body: { messages } });
  }
  await bob.page.locator("#messages li.system", { hasText: "(expired)" }).waitFor();
  await lastMessage(bob.page, "flood 299");
  assert.deepEqual(ann.complaints, []);
});

test("the page shows who is in the room, two tabs as one", async () => {
  const ann = await visit();
  await signIn(ann.page, "ann");
  await present(ann.page, "ann (you)");

  const tabs = [await visit(), await visit()];
  for (const { page } of tabs) await signIn(page, "bob");
  for (const { page } of tabs) await present(page, "bob (you)", "ann");
  await present(ann.page, "ann (you)", "bob");

  // what the page shows from here on, however short
  await ann.page.evaluate(() => {
    window.shown = [];
    new MutationObserver(() => {
      const names = [...document.querySelectorAll("#present li")].map((line) => line.textContent);
      if (names.length > 0 && window.shown.at(-1) !== names.join()) window.shown.push(names.join());
    }).observe(document.getElementById("present"), { childList: true });
  });

  await tabs[0].page.context().close();
  await tabs[1].page.reload();
  await present(tabs[1].page, "bob (you)", "ann");
  await tabs[1].page.click("#cut");
  await tabs[1].page.locator("#messages li.system", { hasText: "Reconnected" }).waitFor();
  await ann.page.waitForTimeout(2_500); // longer than the grace
  await present(ann.page, "ann (you)", "bob");
  const seen = await ann.page.evaluate(() => window.shown);
  assert.deepEqual(
    seen.filter((names) => names !== "ann (you),bob"),
    [],
  );

  await tabs[1].page.click("#logout");
  await present(ann.page, "ann (you)");
  await signIn(tabs[1].page, "bob");
  await present(ann.page, "ann (you)", "bob");

  // who is removed is gone at once, and sees nobody any more
  await press(ann.page, "Remove bob");
  await present(ann.page, "ann (you)");
  await roomIs(tabs[1].page, "refused");
  assert.equal(await tabs[1].page.isVisible("#presence"), false);
  assert.equal(await tabs[1].page.locator("#present li").count(), 0);

  assert.deepEqual(ann.complaints, []);
});

test("the page shows who is typing", async () => {
  const ann = await visit();
  const bob = await visit();
  const tab = await visit(); // bob's other one
  await signIn(ann.page, "ann");
  for (const { page } of [bob, tab]) await signIn(page, "bob");
  const typing = (page, text) => page.locator("#typing", { hasText: text }).waitFor();
  const nobody = (page) => page.locator("#typing:empty").waitFor({ state: "attached" });

  // until a pause
  await bob.page.locator("#text").pressSequentially("hello");
  await typing(ann.page, "bob is typing…");
  assert.equal(await tab.page.textContent("#typing"), "");
  await nobody(ann.page);

  // or until it is sent
  await bob.page.locator("#text").pressSequentially(" ann");
  await typing(ann.page, "bob is typing…");
  await bob.page.press("#text", "Enter");
  await lastMessage(ann.page, "hello ann");
  await nobody(ann.page);

  // both at once, and each sees the other only
  await ann.page.locator("#text").pressSequentially("a");
  await bob.page.locator("#text").pressSequentially("b");
  await typing(ann.page, "bob is typing…");
  await typing(bob.page, "ann is typing…");
  for (const { page } of [ann, bob]) await nobody(page);

  for (const { complaints } of [ann, bob, tab]) assert.deepEqual(complaints, []);
});

test("who looks at none of the tabs is away", async () => {
  const ann = await visit();
  const tabs = [await visit(), await visit()];
  await signIn(ann.page, "ann");
  for (const { page } of tabs) await signIn(page, "bob");
  await present(ann.page, "ann (you)", "bob");

  await look(tabs[0].page, false);
  await ann.page.waitForTimeout(1_500);
  await present(ann.page, "ann (you)", "bob");
  await look(tabs[1].page, false);
  await present(ann.page, "ann (you)", "bob – away");
  await present(tabs[1].page, "bob (you) – away", "ann");

  // a reconnect does not change that
  await tabs[1].page.click("#cut");
  await tabs[1].page.locator("#messages li.system", { hasText: "Reconnected" }).waitFor();
  await ann.page.waitForTimeout(2_500);
  await present(ann.page, "ann (you)", "bob – away");

  await look(tabs[0].page, true);
  await present(ann.page, "ann (you)", "bob");
  for (const { complaints } of [ann, tabs[0]]) assert.deepEqual(complaints, []);
});

test("a page that may not see the members says so, and chats", async () => {
  const { page, complaints } = await visit();
  await signIn(page, "ann");
  await present(page, "ann (you)");

  const topics = admin.collection("_topics");
  const { id } = await topics.getFirstListItem("pattern = 'room/{id}'");
  await topics.update(id, { presenceRule: null });
  await page.locator("#present-count", { hasText: "(presence_revoked)" }).waitFor();
  assert.equal(await page.locator("#present li").count(), 0);
  await say(page, "still here");
  await lastMessage(page, "still here");

  await page.reload();
  await page.locator("#present-count", { hasText: "(topic_denied)" }).waitFor();
  await topics.update(id, { presence: false, presenceRule: "" });
  await page.reload();
  await page.locator("#present-count", { hasText: "(presence_disabled)" }).waitFor();
  await say(page, "and here");
  await lastMessage(page, "and here");
  assert.deepEqual(complaints, []);
});

test("fits a phone", async () => {
  const { page } = await visit();
  await page.setViewportSize({ width: 360, height: 640 });
  await signIn(page, "ann");
  await people(page, ["ann", "bob"], ["eve"]);
  await admin
    .collection("users")
    .update((await admin.collection("users").getFirstListItem("name = 'ann'")).id, {
      name: "a-long-name-".repeat(20),
    });
  await page.locator("#present li", { hasText: "a-long-name-" }).waitFor();
  await say(page, "a-long-word-".repeat(40));
  await lastMessage(page, "a-long-word-");
  const overflow = await page.evaluate(
    () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
  );
  assert.equal(overflow, 0);
});
