// Starts the programs under test, each with an empty data directory of its own
// and on a free port of 127.0.0.1, and what the tests need around them.

import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import PocketBase from "pocketbase";

const repository = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const scratch = mkdtempSync(path.join(os.tmpdir(), "topics-e2e-"));
const running = new Set();
const builds = new Map();

process.on("exit", () => {
  for (const child of running) child.kill("SIGKILL");
  rmSync(scratch, { recursive: true, force: true });
});

/** startExample runs ./example_app; args are added to `serve`. */
export function startExample({ args = [] } = {}) {
  return start("./example_app", args);
}

/** startTestServer runs ./e2e/testserver, and adds what its own routes do. */
export async function startTestServer({ args = [] } = {}) {
  const server = await start("./e2e/testserver", args);
  const post = async (route, body) => {
    const response = await fetch(`${server.url}/test/${route}`, {
      method: "POST",
      body: JSON.stringify(body),
    });
    if (!response.ok) throw new Error(`${route}: ${response.status} ${await response.text()}`);
  };

  return {
    ...server,
    notify: (topic, data) => post("notify", { topic, data }),
    /** transaction deletes the record collection/id; meanwhile, {topic, data}, is said while it is open */
    transaction: (options) => post("transaction", options),
    /** sql runs a statement in the server's process */
    sql: (statement) => post("sql", { statement }),
    /** foreignSQL runs a statement in a process of its own */
    foreignSQL: (statement) => server.run("sql", server.dir, statement),
  };
}

// build compiles a package once per process.
function build(pkg) {
  if (!builds.has(pkg)) {
    const binary = path.join(scratch, path.basename(pkg));
    const args = ["build", "-o", binary, pkg];
    builds.set(
      pkg,
      promisify(execFile)("go", args, { cwd: repository }).then(() => binary),
    );
  }
  return builds.get(pkg);
}

async function start(pkg, args) {
  const binary = await build(pkg);
  const dir = mkdtempSync(path.join(scratch, "data-"));
  const address = `127.0.0.1:${await freePort()}`;
  const url = `http://${address}`;

  const account = { email: "root@example.com", password: "only-for-e2e" };
  const run = (...command) => promisify(execFile)(binary, command);
  // Before the first start, else PocketBase opens its installer in a browser.
  await run("superuser", "upsert", account.email, account.password, "--dir", dir);

  let output = "";
  let child, exited;
  const launch = () => {
    child = spawn(binary, ["serve", "--http", address, "--dir", dir, ...args], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    const own = child;
    running.add(own);
    own.stdout.on("data", (chunk) => (output += chunk));
    own.stderr.on("data", (chunk) => (output += chunk));
    exited = once(own, "exit").finally(() => running.delete(own));
  };
  launch();

  const logs = () => output;
  const end = async (signal) => {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill(signal);
      const timer = setTimeout(() => child.kill("SIGKILL"), 10_000);
      await exited;
      clearTimeout(timer);
    }
  };
  const stop = async () => {
    await end("SIGTERM");
    rmSync(dir, { recursive: true, force: true });
    if (output.includes("DATA RACE") || output.includes("panic:")) {
      throw new Error(`${pkg} failed:\n${output}`);
    }
  };

  const healthy = async () => {
    for (const until = Date.now() + 60_000; ; await sleep(50)) {
      if (child.exitCode !== null || Date.now() > until) {
        await stop();
        throw new Error(`${pkg} did not start:\n${output}`);
      }
      const answers = await fetch(url + "/api/health").then(
        (response) => response.ok,
        () => false,
      );
      if (answers) return;
    }
  };
  await healthy();

  // restart ends the process with a signal, and starts it again on its data
  const restart = async (signal) => {
    await end(signal);
    launch();
    await healthy();
  };

  return { url, dir, run, stop, restart, logs, superuser: async () => ({ ...account }) };
}

async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/**
 * startProxy forwards TCP to the server at url. cut() breaks every connection,
 * as a lost network does; requests counts the HTTP requests to the realtime API.
 */
export async function startProxy(url) {
  const target = new URL(url);
  const sockets = new Set();
  const requests = { connect: 0, subscribe: 0 };

  const server = net.createServer((client) => {
    const upstream = net.connect(Number(target.port), target.hostname);
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => {
        sockets.delete(socket);
        client.destroy();
        upstream.destroy();
      });
    }
    client.on("data", (chunk) => {
      const head = chunk.toString("latin1");
      requests.connect += (head.match(/^GET \/api\/realtime HTTP/gm) ?? []).length;
      requests.subscribe += (head.match(/^POST \/api\/realtime HTTP/gm) ?? []).length;
    });
    client.pipe(upstream).pipe(client);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");

  const cut = () => {
    for (const socket of sockets) socket.destroy();
  };

  return {
    url: `http://127.0.0.1:${server.address().port}`,
    requests,
    cut,
    async stop() {
      cut();
      server.close();
      await once(server, "close");
    },
  };
}

/** client returns a PocketBase client of the stock SDK, signed in if asked. */
export async function client(url, email, password) {
  const pb = new PocketBase(url);
  pb.autoCancellation(false);
  if (email) await pb.collection("users").authWithPassword(email, password);
  return pb;
}

/**
 * inbox collects what a callback is given: pass `box.push` to subscribe, and
 * wait for the messages with next() or take(n).
 */
export function inbox() {
  const messages = [];
  let wake = () => {};
  let read = 0;

  const take = async (count, timeout = 10_000) => {
    const end = Date.now() + timeout;
    while (messages.length < read + count) {
      if (Date.now() >= end) {
        throw new Error(
          `${messages.length - read} of ${count} messages came: ${JSON.stringify(messages)}`,
        );
      }
      const timer = new AbortController();
      await Promise.race([
        new Promise((resolve) => (wake = resolve)),
        sleep(end - Date.now(), null, { signal: timer.signal }).catch(() => {}),
      ]);
      timer.abort();
    }
    read += count;
    return messages.slice(read - count, read);
  };

  return {
    /** everything that came so far, read or not */
    all: messages,
    push: (message) => {
      messages.push(message);
      wake();
    },
    take,
    next: async (timeout) => (await take(1, timeout))[0],
    /** quiet fails as soon as something comes that was not taken, else returns after ms */
    quiet: async (ms) => {
      const extra = await take(1, ms).catch(() => null);
      if (extra) throw new Error(`unexpected message: ${JSON.stringify(extra[0])}`);
    },
  };
}

/** launchBrowser starts headless Chromium: $CHROMIUM, else Debian's. */
export async function launchBrowser() {
  const { chromium } = await import("playwright-core");

  return chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    headless: true,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}
