package topics_test

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// A client with two addresses (IPv4 and IPv6) is told so, and a connection of
// one's own is never called somebody else's.
func TestRequestsOfAnotherAddress(t *testing.T) {
	app, s := newPresenceApp(t, topics.Config{})
	_, ann := newUser(t, app, "ann")
	_, bob := newUser(t, app, "bob")
	guest := s.connect()
	c := s.connect()

	refused := func(token string, c *stream, code string, status int) {
		t.Helper()
		r := s.setState(token, c, "room/1", `{"n":1}`)
		require.Equal(t, status, r.status, r.body)
		field := "clientId"
		if code == "not_a_member" {
			field = "topic"
		}
		require.Equal(t, code, r.code(field), r.body)
		require.NotContains(t, r.body, "somebody else")
	}

	// before the first subscribe
	refused(ann, c, "client_signed_out", http.StatusForbidden)
	refused("", c, "not_a_member", http.StatusBadRequest)

	// as long as it is a guest's
	guest.mustSubscribe("", "room/1")
	refused(ann, guest, "client_signed_out", http.StatusForbidden)

	c.mustSubscribe(ann, "room/1")
	require.Equal(t, http.StatusNoContent, s.setState(ann, c, "room/1", `{"n":1}`).status)
	refused(bob, c, "client_invalid", http.StatusForbidden)
	refused("", c, "client_invalid", http.StatusForbidden)

	client, err := app.SubscriptionsBroker().ClientById(c.id)
	require.NoError(t, err)
	client.Set(apis.RealtimeClientIPKey, "2001:db8::1")
	refused(ann, c, "client_other_address", http.StatusForbidden)
	refused(bob, c, "client_invalid", http.StatusForbidden) // of the address only its owner is told

	r := c.subscribe(ann, "room/1")
	require.Equal(t, http.StatusBadRequest, r.status)
	var body struct{ Message string }
	require.NoError(t, json.Unmarshal([]byte(r.body), &body))
	require.Equal(t, "Invalid realtime client.", body.Message, "PocketBase's own")

	// other refusals are PocketBase's
	gone := stream{s: s}
	gone.id = "gone"
	r = gone.subscribe(ann, "room/1")
	require.Equal(t, http.StatusNotFound, r.status)
	require.Empty(t, r.code("clientId"))
}
