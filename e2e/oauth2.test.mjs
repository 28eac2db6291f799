// authWithOAuth2 waits for a message on the topic @oauth2, which is core's.

import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import { after, before, test } from "node:test";

import { client, inbox, startTestServer } from "./harness.mjs";

let server;
let provider;

before(async () => {
  server = await startTestServer();
  provider = await startProvider();
});

after(async () => {
  await server?.stop();
  provider?.close();
});

test("authWithOAuth2 works beside denied and allowed topics", async () => {
  const admin = await client(server.url);
  const { email, password } = await server.superuser();
  await admin.collection("_superusers").authWithPassword(email, password);
  await admin.collections.update("users", {
    oauth2: {
      enabled: true,
      providers: [
        {
          name: "oidc",
          clientId: "e2e",
          clientSecret: "e2e-secret",
          authURL: provider.url + "/auth",
          tokenURL: provider.url + "/token",
          userInfoURL: provider.url + "/userinfo",
        },
      ],
    },
  });

  const pb = await client(server.url);
  const denied = inbox();
  const allowed = inbox();
  await pb.realtime.subscribe("staff", denied.push);
  await pb.realtime.subscribe("example", allowed.push);
  assert.equal((await denied.next())["@topics"].code, "topic_denied");

  const auth = await pb.collection("users").authWithOAuth2({
    provider: "oidc",
    // what a browser does with the popup: follow the provider's redirect
    urlCallback: async (url) => {
      await (await fetch(url)).text();
    },
  });
  assert.equal(auth.record.email, "oidc@example.com");
  assert.equal(pb.authStore.isValid, true);

  await server.notify("example", { test: 123 });
  assert.deepEqual(await allowed.next(), { test: 123 });
  await pb.realtime.unsubscribe();
});

// startProvider is the least an OpenID Connect provider can be.
async function startProvider() {
  const server = http.createServer((request, response) => {
    const url = new URL(request.url, "http://" + request.headers.host);
    const json = (value) => {
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify(value));
    };

    switch (url.pathname) {
      case "/auth": {
        const back = new URL(url.searchParams.get("redirect_uri"));
        back.searchParams.set("state", url.searchParams.get("state"));
        back.searchParams.set("code", "e2e-code");
        response.writeHead(302, { location: back.href }).end();
        return;
      }
      case "/token":
        json({ access_token: "e2e-token", token_type: "Bearer", expires_in: 3600 });
        return;
      case "/userinfo":
        json({ sub: "1", name: "oidc", email: "oidc@example.com", email_verified: true });
        return;
      default:
        response.writeHead(404).end();
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");

  return { url: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}
