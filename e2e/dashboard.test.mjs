// The rules of topic records in PocketBase's dashboard, in headless Chromium.

import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";

import { client, launchBrowser, startExample } from "./harness.mjs";

const collectionId = "_pb_topics_";
const rules = ["subscribeRule", "publishRule", "presenceRule"];

let server;
let admin; // the SDK, signed in as superuser
let browser;
let signedIn; // the browser storage after the sign-in
let complaints = [];
let contexts = [];

before(async () => {
  // PocketBase takes a program in the temporary folder for "go run", thus for
  // development, and lets browsers cache nothing there
  server = await startExample({ args: ["--dev=false"] });
  const { email, password } = await server.superuser();
  admin = await client(server.url);
  await admin.collection("_superusers").authWithPassword(email, password);

  browser = await launchBrowser();
  const page = await newPage();
  await page.goto(server.url + "/_/");
  await page.fill("input[type=email]", email);
  await page.fill("input[type=password]", password);
  await page.press("input[type=password]", "Enter");
  await page.waitForURL(/#\/collections/);
  signedIn = await page.context().storageState();
});

afterEach(async () => {
  await Promise.all(contexts.map((context) => context.close()));
  contexts = [];
  complaints = [];
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

// newPage opens a page in a context of its own. script, if given, is what the
// dashboard gets for the script of all extensions: a function of the real one.
async function newPage(script) {
  const context = await browser.newContext({
    storageState: signedIn,
    viewport: { width: 1400, height: 1250 },
  });
  contexts.push(context);
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);

  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  if (script) {
    await page.route("**/_/extensions.js", async (route) => {
      const response = await route.fetch();
      await route.fulfill({ response, body: script(await response.text()) });
    });
  }

  return page;
}

async function openCollection(page, idOrName = collectionId) {
  await page.goto(`${server.url}/_/#/collections?collection=${idOrName}`);
  await page.locator("td.col-field-name-id").first().waitFor();
}

// openRecord opens the record of a pattern, and returns its form.
async function openRecord(page, pattern) {
  await openCollection(page);
  await page.locator("tr", { has: page.getByText(pattern, { exact: true }) }).click();

  const form = page.locator(".record-upsert-modal");
  await form.locator(`textarea[name="id"]`).waitFor();
  // the form is inert until the record has been fetched
  await form.locator(".modal-content > .grid:not([inert])").waitFor();
  return form;
}

const ruleField = (form, name) => form.locator(`.rule-field[name="${name}"]`);
const jsonBox = (form, name) =>
  form.locator(`.field:not(.rule-field) .code-editor[name="${name}"]`);
const saveButton = (form) => form.getByRole("button", { name: /^(Save changes|Create)$/ });
const lock = (field) => field.getByRole("button", { name: "Set superusers only" }).click();
const unlock = (field) => field.getByRole("button", { name: "Unlock and set custom rule" }).click();
const topicRecord = (pattern) =>
  admin
    .collection(collectionId)
    .getFirstListItem(admin.filter("pattern = {:pattern}", { pattern }));

// write types text into a rule field or JSON box, instead of what is there.
async function write(field, text) {
  const editor = field.locator(".editor-content");
  await editor.click();
  await editor.press("Control+a");
  await editor.press("Backspace");
  await field.page().keyboard.insertText(text);
  await field.page().keyboard.press("Escape"); // closes the completions
}

async function save(form) {
  await saveButton(form).click();
  await form.waitFor({ state: "detached" });
}

// completions returns what is offered after text was typed into the empty field.
async function completions(field, text) {
  await write(field, text.slice(0, -1));
  await field.locator(".editor-content").pressSequentially(text.slice(-1));
  const items = field.page().locator(".code-editor-dropdown .dropdown-item");
  await items.first().waitFor();
  return items.allTextContents();
}

// temporaryRecord creates a record that t removes again.
async function temporaryRecord(t, data) {
  const record = await admin.collection(collectionId).create(data);
  t.after(() => admin.collection(collectionId).delete(record.id));
  return record;
}

test("the extension's files are not cached, the dashboard's own are", async () => {
  const cacheControl = async (path) =>
    (await fetch(server.url + path)).headers.get("cache-control");

  assert.equal(await cacheControl("/_/extensions.js"), "no-cache");
  assert.equal(await cacheControl("/_/extensions/topics/main.js"), "no-cache");
  assert.match(await cacheControl("/_/images/favicon.png"), /max-age=1209600/);
});

test("rules are shown as rule fields, and opening a record changes nothing", async () => {
  const page = await newPage();
  await openCollection(page);
  const row = page.locator("tr", { has: page.getByText("announcements", { exact: true }) });
  assert.equal(await row.locator(".col-field-name-subscribeRule").textContent(), "Everyone");
  assert.equal(await row.locator(".col-field-name-publishRule").textContent(), "Superusers only");

  const form = await openRecord(page, "room/{id}");
  const record = await topicRecord("room/{id}");
  for (const name of rules) {
    await ruleField(form, name).waitFor();
    assert.equal(await jsonBox(form, name).count(), 0);
    if (record[name] === null) {
      assert.match(await ruleField(form, name).getAttribute("class"), /\blocked\b/);
    } else {
      assert.equal(
        await ruleField(form, name).locator(".editor-content").textContent(),
        record[name],
      );
    }
  }
  await form.getByText("Who may subscribe").waitFor(); // the field's help
  assert.equal(await saveButton(form).isDisabled(), true);

  // there and back is no change either
  await lock(ruleField(form, "subscribeRule"));
  await page.waitForFunction((el) => !el.disabled, await saveButton(form).elementHandle());
  await unlock(ruleField(form, "subscribeRule"));
  await page.waitForFunction((el) => el.disabled, await saveButton(form).elementHandle());

  await write(ruleField(form, "subscribeRule"), "id != ''");
  assert.equal(await saveButton(form).isDisabled(), false);
  assert.deepEqual(complaints, []);
});

test("rules are completed with the topic, its parameters, and the record", async () => {
  const page = await newPage();
  const form = await openRecord(page, "room/{id}");
  const subscribe = ruleField(form, "subscribeRule");

  assert.deepEqual(await completions(subscribe, "@top"), ["@topic", "@topic.id"]);
  assert.deepEqual(await completions(subscribe, "@topic."), ["@topic.id"]);
  await page.keyboard.press("Enter");
  assert.equal(await subscribe.locator(".editor-content").textContent(), "@topic.id");

  // the pattern as it is in the form now
  await form.locator('textarea[name="pattern"]').fill("room/{id}/{rest...}");
  assert.deepEqual(await completions(subscribe, "id = '' && @topic."), [
    "@topic.id",
    "@topic.rest",
  ]);

  assert.ok((await completions(subscribe, "mem")).includes("members.id"));
  assert.ok((await completions(subscribe, "@request.auth.n")).includes("@request.auth.name"));
  assert.deepEqual(await completions(subscribe, "@vie"), ["@view"]);
  await form.locator('textarea[name="collection"]').fill("");
  await write(subscribe, "@vie");
  assert.ok(!(await completions(subscribe, "e")).includes("@view"));
  // the fields of the rule records themselves mean nothing in a rule
  assert.ok((await completions(subscribe, "p")).every((key) => key.startsWith("@")));

  await unlockIfLocked(ruleField(form, "publishRule"));
  assert.deepEqual(await completions(ruleField(form, "publishRule"), "@request.bod"), [
    "@request.body.data.",
    "@request.body.event",
    "@request.body.",
  ]);
  assert.deepEqual(complaints, []);
});

async function unlockIfLocked(field) {
  if (/\blocked\b/.test(await field.getAttribute("class"))) await unlock(field);
}

test("an invalid rule is explained at its field", async () => {
  const page = await newPage();
  const before = await topicRecord("room/{id}");
  const form = await openRecord(page, "room/{id}");
  const field = ruleField(form, "subscribeRule");
  await write(field, "nowhere = 1");
  await saveButton(form).click();

  const error = field.locator("xpath=following-sibling::*[1]");
  await error.getByText(/Invalid rule/).waitFor();
  assert.match(await field.getAttribute("class"), /\berror\b/);
  assert.deepEqual(await topicRecord("room/{id}"), before);

  // the next change takes the error away
  await field.locator(".editor-content").pressSequentially(" ");
  await form.getByText(/Invalid rule/).waitFor({ state: "detached" });

  assert.equal(complaints.length, 1); // the browser's own about the 400
  assert.match(complaints[0], /400/);
});

test("lock and unlock write null and the empty text", async (t) => {
  await temporaryRecord(t, { pattern: "dash-lock/{x}", subscribeRule: "@topic.x = '1'" });
  const page = await newPage();

  let form = await openRecord(page, "dash-lock/{x}");
  await lock(ruleField(form, "subscribeRule"));
  await unlock(ruleField(form, "publishRule"));
  await save(form);
  let record = await topicRecord("dash-lock/{x}");
  assert.deepEqual(
    rules.map((name) => record[name]),
    [null, "", null],
  );

  form = await openRecord(page, "dash-lock/{x}");
  await unlock(ruleField(form, "subscribeRule"));
  await lock(ruleField(form, "publishRule"));
  await save(form);
  record = await topicRecord("dash-lock/{x}");
  assert.deepEqual(
    rules.map((name) => record[name]),
    ["", null, null],
  );
  assert.deepEqual(complaints, []);
});

test("a rule is saved exactly as typed", async (t) => {
  await temporaryRecord(t, { pattern: "dash-text/{x}", subscribeRule: "" });
  const page = await newPage();

  for (const text of [
    '"a" = "a"',
    '"\\"" != @topic.x && @request.auth.id != ""',
    " @topic.x ~ 'é\\\\ü☃' ",
    // Go's quoting of this character, which core does to plain text, is not JSON
    "@topic.x = '\u{e0067}'",
    "1 = 1",
  ]) {
    const form = await openRecord(page, "dash-text/{x}");
    await write(ruleField(form, "subscribeRule"), text);
    await save(form);
    assert.equal((await topicRecord("dash-text/{x}")).subscribeRule, text);

    const again = await openRecord(page, "dash-text/{x}");
    const shown = ruleField(again, "subscribeRule").locator(".editor-content");
    assert.equal(await shown.textContent(), text);
    assert.equal(await saveButton(again).isDisabled(), true);
  }
  assert.deepEqual(complaints, []);
});

test("saving and going on keeps the form as it is", async (t) => {
  await temporaryRecord(t, { pattern: "dash-on/{x}" });
  const page = await newPage();
  const form = await openRecord(page, "dash-on/{x}");
  const field = ruleField(form, "subscribeRule");

  await unlock(field);
  for (const text of ['"a" = "a"', '"a" = "b"']) {
    await write(field, text);
    await page.keyboard.press("Control+s");
    await page.waitForFunction((el) => el.disabled, await saveButton(form).elementHandle());
    await page.getByText("Successfully updated").first().waitFor();
    assert.equal(await field.locator(".editor-content").textContent(), text);
    assert.equal((await topicRecord("dash-on/{x}")).subscribeRule, text);
  }
  assert.deepEqual(complaints, []);
});

test("a new record starts locked", async (t) => {
  const page = await newPage();
  await openCollection(page);
  await page.getByRole("button", { name: "New record" }).first().click();

  const form = page.locator(".record-upsert-modal");
  for (const name of rules) await form.locator(`.rule-field.locked[name="${name}"]`).waitFor();
  await form.locator('textarea[name="pattern"]').fill("dash-new/{name}");
  await unlock(ruleField(form, "publishRule"));
  await write(ruleField(form, "publishRule"), '@topic.name = "x"');
  await unlock(ruleField(form, "presenceRule"));
  await save(form);

  const record = await topicRecord("dash-new/{name}");
  t.after(() => admin.collection(collectionId).delete(record.id));
  assert.deepEqual(
    rules.map((name) => record[name]),
    [null, '@topic.name = "x"', ""],
  );
  assert.deepEqual(complaints, []);
});

test("a renamed collection keeps the rule fields", async (t) => {
  const { name } = await admin.collections.getOne(collectionId);
  t.after(() => admin.collections.update(collectionId, { name }));
  await admin.collections.update(collectionId, { name: "channelRules" });

  const page = await newPage();
  const form = await openRecord(page, "room/{id}");
  for (const name of rules) await ruleField(form, name).waitFor();
  assert.deepEqual(complaints, []);
});

test("JSON fields of other collections stay JSON boxes", async (t) => {
  const collection = await admin.collections.create({
    name: "dashOther",
    type: "base",
    fields: rules.map((name) => ({ name, type: "json" })),
  });
  t.after(() => admin.collections.delete(collection.id));
  await admin.collection("dashOther").create({ subscribeRule: { a: 1 }, publishRule: "" });

  const page = await newPage();
  await openCollection(page, "dashOther");
  await page.locator("td.col-field-name-subscribeRule").click();
  const form = page.locator(".record-upsert-modal");
  await jsonBox(form, "subscribeRule").waitFor();
  assert.equal(await form.locator(".rule-field").count(), 0);
  assert.equal(await page.locator("td.col-field-name-presenceRule").textContent(), "null");
});

// In each of these the JSON box must do what it does without the extension.
for (const [what, script] of Object.entries({
  "without the extension": () => "",
  "without the rule field component": (real) => `app.components.ruleField = undefined;\n${real}`,
  "with a rule field that fails": (real) =>
    `app.components.ruleField = () => { throw new Error("changed") };\n${real}`,
  "without the save callback": (real) => `app.fieldTypes.json.onrecordsave = undefined;\n${real}`,
  "without the element builder": (real) => `{ let t;\n${real} }`,
})) {
  test(`the JSON box works ${what}`, async (t) => {
    await temporaryRecord(t, { pattern: "dash-json/{x}", subscribeRule: "@topic.x = '1'" });
    const page = await newPage(script);

    const form = await openRecord(page, "dash-json/{x}");
    for (const name of rules) await jsonBox(form, name).waitFor();
    assert.equal(await form.locator(".rule-field").count(), 0);
    await write(jsonBox(form, "subscribeRule"), JSON.stringify('"a" = "a"'));
    await write(jsonBox(form, "publishRule"), '""');
    await form.locator('textarea[name="description"]').fill("edited");
    await save(form);

    const record = await topicRecord("dash-json/{x}");
    assert.equal(record.description, "edited");
    assert.deepEqual(
      rules.map((name) => record[name]),
      ['"a" = "a"', "", null],
    );
  });
}

test("a rule field that fails for one rule, and missing completions, leave the rest alone", async (t) => {
  await temporaryRecord(t, { pattern: "dash-mixed/{x}" });
  const page = await newPage(
    (real) => `
      app.utils.collectionAutocompleteKeys = undefined;
      const ruleField = app.components.ruleField;
      app.components.ruleField = (props) => {
        if (props.name == "publishRule") throw new Error("changed");
        return ruleField(props);
      };
      ${real}`,
  );

  const form = await openRecord(page, "dash-mixed/{x}");
  await unlock(ruleField(form, "subscribeRule"));
  assert.deepEqual(await completions(ruleField(form, "subscribeRule"), "@topic."), ["@topic.x"]);
  await write(ruleField(form, "subscribeRule"), '"a" = "a"');
  await write(jsonBox(form, "publishRule"), JSON.stringify('"b" = "b"'));
  await form.locator('textarea[name="description"]').click();
  await save(form);

  const record = await topicRecord("dash-mixed/{x}");
  assert.deepEqual(
    rules.map((name) => record[name]),
    ['"a" = "a"', '"b" = "b"', null],
  );
});
