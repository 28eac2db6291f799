import PocketBase, { BaseAuthStore } from "./vendor/pocketbase/pocketbase.es.mjs";

const ROOM = "lobby0000000001";
const ROOM_TOPIC = "room/" + ROOM;
const PASSWORD = "topics-demo";
const MAX_LINES = 200;

// The demo accounts' e-mails by their names.
const DEMO = Object.fromEntries(
  [...document.querySelectorAll("[data-email]")].map(({ dataset: { email } }) => [
    email.split("@")[0],
    email,
  ]),
);

// Each tab has its own sign-in, so that ann and bob fit in one browser.
const authStore = new BaseAuthStore();
const saved = JSON.parse(sessionStorage.getItem("auth") ?? "{}");
authStore.save(saved.token ?? "", saved.record ?? null);
authStore.onChange((token, record) => {
  sessionStorage.setItem("auth", JSON.stringify({ token, record }));
});

const pb = new PocketBase("/", authStore);

// Without this the SDK drops a request when a like one follows it.
pb.autoCancellation(false);

const el = (id) => document.getElementById(id);

// ---------------------------------------------------------------- connection

let wasConnected = false;

function showConnection(state, text) {
  el("connection").dataset.state = state;
  el("connection").textContent = text;
}

function onConnect() {
  showConnection("connected", "connected");
  refused = null; // what is refused on this connection is told anew

  if (wasConnected && pb.authStore.isValid) refreshRoom();
  wasConnected = true;
}

pb.realtime.onDisconnect = (active) => {
  if (active.length > 0) {
    showConnection("reconnecting", "reconnecting…");
  } else {
    wasConnected = false; // we left ourselves
    showConnection("closed", "not connected");
  }
};

// The SDK stops to reconnect when the connection is lost again while it sends
// its subscriptions (docs/recovery.md). Any new subscription wakes it up, and it
// sends them all, with the same resume option.
let lostAt = 0;
setInterval(() => {
  if (pb.realtime.isConnected || !wasConnected) {
    lostAt = 0;
    return;
  }
  lostAt ||= Date.now();
  if (Date.now() - lostAt > 5000) {
    lostAt = 0;
    pb.realtime
      .subscribe("PB_CONNECT", () => {})
      .catch((error) => console.warn("not connected", error));
  }
}, 1000);

// ------------------------------------------------------------------- session

async function start() {
  if (pb.authStore.isValid) {
    // the account may be gone, e.g. after the data directory was deleted
    await pb
      .collection("users")
      .authRefresh()
      .catch((error) => {
        if (error.status >= 400 && error.status < 500) pb.authStore.clear();
      });
  }

  showSession();
  await listen();
}

function showSession() {
  const me = pb.authStore.isValid ? pb.authStore.record : null;

  el("login").hidden = !!me;
  el("who").hidden = !me;
  el("room").hidden = !me;
  el("me").textContent = me?.name ?? "";
}

// listen opens the connection with what everybody may hear, and with the room
// for whoever is signed in. The first connection is ours to retry, later ones
// are the SDK's.
async function listen() {
  try {
    await Promise.all([
      pb.realtime.subscribe("PB_CONNECT", onConnect),
      pb.realtime.subscribe("announcements", onAnnouncement),
    ]);
    if (pb.authStore.isValid) await enter();
  } catch (error) {
    console.warn("not connected", error);
    showConnection("closed", "no connection, trying again…");
    await pb.realtime.unsubscribe();
    setTimeout(listen, 2000);
  }
}

// enter subscribes to what the signed-in user may hear. The connection is the
// one the guest had: the POST of these subscriptions also tells the server who
// is there now.
async function enter() {
  const me = pb.authStore.record.id;

  await Promise.all([pb.realtime.subscribe("user/" + me, onPersonal), joinRoom()]);
}

async function signIn(email) {
  el("login-error").textContent = "";
  setBusy(true);

  try {
    await pb.collection("users").authWithPassword(email, PASSWORD);
    showSession();
    el("text").focus();
    await enter();
  } catch (error) {
    el("login-error").textContent = explain(error);
  } finally {
    setBusy(false);
  }
}

async function signOut() {
  // A connection cannot go back to being a guest's, so leave this one.
  await pb.realtime.unsubscribe();
  pb.authStore.clear();

  refused = null;
  leavePresence();
  for (const id of ["messages", "members", "others"]) el(id).replaceChildren();
  for (const id of ["send-error", "people-result", "login-error"]) el(id).textContent = "";
  el("personal").hidden = true;
  el("no-messages").hidden = false;
  el("send-form").reset();
  el("invite-form").reset();
  showRoom("closed");
  showSession();

  await listen();
  el("login-ann").focus();
}

async function endSession({ message, code }) {
  await signOut();
  el("login-error").textContent = `${message} (${code})`;
}

function setBusy(busy) {
  for (const button of document.querySelectorAll("[data-email]")) button.disabled = busy;
}

// ---------------------------------------------------------------------- room

let refused = null; // the server's notice, while there is one
let leaving = false; // by the button: the notice that follows is no surprise
let refreshes = 0;
let seen = new Set(); // the ids of the messages that are shown

// joinRoom also comes back to a room: a key stays subscribed in the SDK when it
// is refused or revoked, and would not be sent again.
async function joinRoom() {
  await pb.realtime.unsubscribe(ROOM_TOPIC); // with whatever options
  refused = null;
  leavePresence();
  await pb.realtime.subscribe(ROOM_TOPIC, onRoomEvent, {
    presence: true,
    ...(document.hidden ? {} : { state: stateOfTab() }),
    replay: 50,
    // Under this id the server knows how far this page has come. It is another
    // one each time the page enters, and the same when the SDK reconnects.
    resume: crypto.randomUUID?.() ?? String(Math.random()),
  });

  await refreshRoom();
}

// onRoomEvent gets messages and the server's own notices in envelopes, because
// of the options.
function onRoomEvent(event) {
  switch (event.type) {
    case "message":
      // after a reconnect the last ones may come again, with the same id
      if (!seen.has(event.id)) showMessage(event);
      seen.add(event.id);
      break;
    case "ready": // also after each reconnect, when the server does not know our state
      self = event.member;
      tellState();
      if (event.resumed) break;
      seen = new Set();
      el("messages").replaceChildren();
      break;
    case "recovered":
      addLine(el("messages"), "system", "Reconnected, and nothing is missing.");
      break;
    case "gap":
      addLine(el("messages"), "system", `${event.message} (${event.reason})`);
      break;
    case "denied":
    case "revoked":
      refused = { ...event, title: titleOf(event) };
      leaving = false;
      el("personal").hidden = true;
      leavePresence();
      refreshRoom();
      break;
    default:
      onPresence(event);
  }
}

// showMessage shows a message by its sender, which the server sets. What is in
// data is only what somebody has sent: a member may also publish {system: …} or
// another one's name. In this room only the server's own messages have no sender,
// because publishRule lets no guest publish.
function showMessage({ data, sender, time }) {
  if (!sender) {
    addLine(el("messages"), "system", data?.system, null, isoTime(time));
    refreshSoon();
    return;
  }

  const mine = sender.id === pb.authStore.record?.id;
  const line = addLine(
    el("messages"),
    mine ? "mine" : "other",
    data?.text,
    nameOf(sender.id),
    isoTime(time),
  );
  line.dataset.sender = sender.id;
}

// The names of the members by their ids, and of those who were members since the
// page was opened.
const names = new Map();
const nameOf = (id) => names.get(id) ?? "somebody";

// learnNames also corrects the lines that came before the names.
function learnNames(members) {
  for (const { id, name } of members) names.set(id, name);
  for (const line of el("messages").querySelectorAll("[data-sender]")) {
    const from = line.querySelector(".from");
    if (from.textContent !== nameOf(line.dataset.sender))
      from.textContent = nameOf(line.dataset.sender);
  }
}

// isoTime turns PocketBase's format of times into JavaScript's.
const isoTime = (time) => time.replace(" ", "T");

// refreshSoon is refreshRoom once for many calls, as a replay makes.
let refreshTimer = 0;
function refreshSoon() {
  clearTimeout(refreshTimer);
  refreshTimer = setTimeout(refreshRoom, 20);
}

function titleOf({ type }) {
  if (type === "denied") return "You cannot read this room";
  return leaving ? "You left the room" : "You were removed";
}

// refreshRoom shows the room as the server lets this user see it.
async function refreshRoom() {
  const refresh = ++refreshes;
  const outdated = () => refresh !== refreshes || !pb.authStore.isValid;

  try {
    const access = await pb.send("/api/topics/access", {
      query: { topic: ROOM_TOPIC },
    });
    if (outdated()) return;
    showAccess(access);

    if (!access.subscribe.allowed) return;

    const room = await pb.collection("rooms").getOne(ROOM, { expand: "members" });
    if (outdated()) return;
    el("room-name").textContent = room.name;
    learnNames(room.expand?.members ?? []);
    showPeople(room.expand?.members ?? []);
  } catch (error) {
    if (!outdated()) el("send-error").textContent = explain(error);
  }
}

function showAccess({ topic, subscribe, publish }) {
  showRoom(refused || !subscribe.allowed ? "refused" : "open");

  el("refusal-title").textContent = refused?.title ?? titleOf({ type: "denied" });
  el("refusal-topic").textContent = refused?.topic ?? topic;
  el("refusal-code").textContent = refused?.code ?? subscribe.code ?? "";
  el("refusal-message").textContent = refused?.message ?? subscribe.message ?? "";
  el("access-subscribe").textContent = subscribe.allowed ? "allowed" : "refused";
  el("access-publish").textContent = publish.allowed ? "allowed" : "refused";
}

function showRoom(state) {
  el("room").dataset.state = state;
  el("refusal").hidden = state !== "refused";
  el("leave").hidden = state !== "open";
  el("people").hidden = state !== "open";
  el("messages").hidden = state === "refused";
  el("no-messages").hidden = state === "refused" || el("messages").children.length > 0;

  if (state === "refused") el("room-name").textContent = "The room";
}

// showPeople lists the members, and the demo accounts that are not. Others can
// be invited by e-mail, which members are not shown.
function showPeople(members) {
  const focused = document.activeElement.dataset.name;
  const me = pb.authStore.record.id;
  const names = members.map(({ name }) => name);
  const others = Object.keys(DEMO).filter((name) => !names.includes(name));
  members.sort((a, b) => a.name.localeCompare(b.name));

  el("members").replaceChildren(
    ...members.map(({ id, name }) =>
      id === me ? person(name + " (you)") : person(name, "Remove", () => removeMember(id, name)),
    ),
  );
  el("others").replaceChildren(
    ...others.map((name) => person(name, "Add", () => addMember(DEMO[name], name))),
  );
  el("others-box").hidden = others.length === 0;

  // whoever works with the keyboard stays at the person
  if (focused) document.querySelector(`#people [data-name="${CSS.escape(focused)}"]`)?.focus();
}

// person is a line of a list, with a button if there is something to do.
function person(name, verb, action) {
  const line = document.createElement("li");
  const label = document.createElement("span");
  label.textContent = name;
  line.append(label);

  if (verb) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.dataset.name = name;
    button.textContent = verb;
    button.ariaLabel = `${verb} ${name}`;
    button.addEventListener("click", () => act(button, action));
    line.append(button);
  }

  return line;
}

// act runs what a person's button is for, once, and shows what came of it.
async function act(button, action) {
  if (button.ariaDisabled) return;
  button.ariaDisabled = "true"; // disabled, it would lose the focus

  try {
    el("people-result").textContent = await action();
  } catch (error) {
    el("people-result").textContent = explain(error);
  }
  await refreshRoom();
}

async function removeMember(user, name) {
  await pb.send(`/api/rooms/${ROOM}/remove`, {
    method: "POST",
    body: { user },
  });
  return name + " was removed.";
}

async function addMember(email, name = email) {
  await pb.send(`/api/rooms/${ROOM}/invite`, {
    method: "POST",
    body: { email },
  });
  return name + " is a member now.";
}

async function send(text) {
  stopTyping();
  await pb.send("/api/topics/publish", {
    method: "POST",
    body: { topic: ROOM_TOPIC, data: { text } },
  });
}

// -------------------------------------------------------------------- presence

// Who is in the room right now, which is not who may be: those are the members
// of the room, listed beside it.

const TYPING_MS = 2000;

const present = new Map(); // what the server tells of each
let self; // our own id in there, while we are in the room
let typing = 0; // the timer that ends it

function onPresence({ type, count, members = [], message, code }) {
  const key = ({ collection, id }) => collection + "/" + id;

  switch (type) {
    case "presence": // everybody, or only their number when there are very many
      present.clear();
      for (const member of members) present.set(key(member), member);
      break;
    case "join":
    case "update":
      for (const member of members) present.set(key(member), member);
      break;
    case "leave":
      for (const member of members) present.delete(key(member));
      break;
    case "presence_denied":
    case "presence_revoked":
      present.clear();
      showPresent(`${message} (${code})`);
      return;
    default:
      return;
  }
  showPresent(`${count} here now`);
}

function showPresent(summary) {
  const all = [...present.values()]
    .map(({ id, record, state }) => ({
      name: record?.name || "Somebody",
      me: id === self,
      state,
    }))
    .sort((a, b) => b.me - a.me || a.name.localeCompare(b.name));
  const typists = all.filter(({ me, state }) => !me && state?.typing).map(({ name }) => name);

  el("presence").hidden = false;
  if (el("present-count").textContent !== summary) el("present-count").textContent = summary;
  el("present").replaceChildren(
    ...all.map(({ name, me, state }) => {
      const line = document.createElement("li");
      line.dataset.state = state ? "active" : "away";
      line.textContent = name + (me ? " (you)" : "") + (state ? "" : " – away");
      return line;
    }),
  );
  el("typing").textContent = typingLine(typists);
}

function typingLine([first, second, ...more]) {
  if (!first) return "";
  if (!second) return first + " is typing…";
  return more.length > 0 ? "Several people are typing…" : `${first} and ${second} are typing…`;
}

// leavePresence forgets who was there.
function leavePresence() {
  self = undefined;
  clearTimeout(typing);
  typing = 0;
  present.clear();
  el("present").replaceChildren();
  el("typing").textContent = "";
  el("presence").hidden = true;
}

// A tab that is looked at has a state, a hidden one has none. So the state that
// is shown is that of the tab in use, and somebody without any state is away,
// whatever number of tabs there is.
const stateOfTab = () => (document.hidden ? null : { typing: typing > 0 });

// tellState sends the state as it is when its turn comes: one request after the
// other, since the last one counts. What fails is sent again with the next
// "ready".
let telling = Promise.resolve();
function tellState() {
  telling = telling
    .then(async () => {
      if (!self || !pb.realtime.isConnected) return;
      await pb.send("/api/topics/presence", {
        method: "POST",
        body: {
          topic: ROOM_TOPIC,
          clientId: pb.realtime.clientId,
          state: stateOfTab(),
        },
      });
    })
    .catch((error) => console.debug("the state was not sent", error));
}

function onTyping() {
  const before = typing;
  clearTimeout(before);
  typing = setTimeout(stopTyping, TYPING_MS);
  if (!before) tellState();
}

function stopTyping() {
  if (!typing) return;
  clearTimeout(typing);
  typing = 0;
  tellState();
}

function onVisibility() {
  stopTyping();
  // a page that is hidden because it is reloaded is not away
  setTimeout(tellState, document.hidden ? 1000 : 0);
}

// ------------------------------------------------- announcements and personal

function onAnnouncement(message) {
  if (message["@topics"]) return;

  el("no-announcements").hidden = true;
  addLine(el("announcements"), "announcement", message.text, null, message.time);
}

function onPersonal(message) {
  const notice = message["@topics"];
  if (notice) {
    // one's own topic is lost with the sign-in, e.g. when the password changes
    if (notice.type === "revoked") endSession(notice);
    return;
  }

  el("personal").textContent = message.text;
  el("personal").hidden = false;

  if (message.room === ROOM) joinRoom();
}

// --------------------------------------------------------------------- helpers

// addLine appends a message and returns its line. Everything that came over the wire is set as
// text, never as HTML.
function addLine(list, kind, text, from, time) {
  const line = document.createElement("li");
  line.className = kind;
  line.dataset.testid = kind;

  if (from) {
    const name = document.createElement("span");
    name.className = "from";
    name.textContent = String(from);
    line.append(name, " ");
  }

  const body = document.createElement("span");
  body.className = "text";
  body.textContent = typeof text === "string" ? text : JSON.stringify(text ?? null);
  line.append(body, " ");

  const sent = time ? new Date(time) : new Date();
  if (!Number.isNaN(sent.valueOf())) {
    const stamp = document.createElement("time");
    stamp.dateTime = sent.toISOString();
    stamp.textContent = sent.toLocaleTimeString([], {
      hour: "2-digit",
      minute: "2-digit",
    });
    line.append(stamp);
  }

  list.append(line);
  while (list.children.length > MAX_LINES) list.firstChild.remove();
  if (list === el("messages")) el("no-messages").hidden = true;
  list.scrollTop = list.scrollHeight;
  return line;
}

// explain turns an error of the SDK into a sentence with the server's code.
function explain(error) {
  const fault = Object.values(error?.response?.data ?? {})[0];
  if (fault?.code) return `${fault.message} (${fault.code})`;

  return error?.response?.message || "The server could not be reached.";
}

// onSubmit runs action with the value of the form's input, and shows its failure.
function onSubmit(formId, inputId, outputId, action) {
  el(formId).addEventListener("submit", async (event) => {
    event.preventDefault();

    const value = el(inputId).value.trim();
    if (!value) return;

    el(outputId).textContent = "";
    try {
      el(outputId).textContent = (await action(value)) ?? "";
      if (el(inputId).value.trim() === value) el(inputId).value = "";
    } catch (error) {
      el(outputId).textContent = explain(error);
    }
  });
}

// ------------------------------------------------------------------- handlers

for (const button of document.querySelectorAll("[data-email]")) {
  button.addEventListener("click", () => signIn(button.dataset.email));
}

el("logout").addEventListener("click", signOut);
el("retry").addEventListener("click", joinRoom);

el("cut").addEventListener("click", () =>
  pb.send("/api/cut", {
    method: "POST",
    body: { clientId: pb.realtime.clientId },
  }),
);

el("leave").addEventListener("click", async () => {
  leaving = true;
  try {
    await pb.send(`/api/rooms/${ROOM}/leave`, { method: "POST" });
  } catch (error) {
    leaving = false;
    el("send-error").textContent = explain(error);
  }
});

el("text").addEventListener("input", onTyping);
document.addEventListener("visibilitychange", onVisibility);

onSubmit("send-form", "text", "send-error", send);
onSubmit("invite-form", "invite-email", "people-result", (email) => addMember(email));

start();
