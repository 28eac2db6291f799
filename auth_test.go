package topics

import (
	"math"
	"net/http"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"
	"github.com/stretchr/testify/require"
)

// Credentials always end: with the request's token if that is the account's,
// else after as long as a new token would be good.
func TestCredentialsEnd(t *testing.T) {
	app, _ := newReadsApp(t)
	d := newDice(t, app, newRand(t))
	ann, bob := d.records("users")[0], d.records("users")[1]
	key := ann.TokenKey() + ann.Collection().AuthToken.Secret
	collection := ann.Collection().AuthToken.DurationTime()

	static := func(r *core.Record, d time.Duration) string {
		token, err := r.NewStaticAuthToken(d)
		require.NoError(t, err)
		return token
	}
	sign := func(claims map[string]any, key string) string {
		token, err := security.NewJWT(claims, key, time.Hour)
		require.NoError(t, err)
		return token
	}
	now := time.Now()
	claims := func(exp any) map[string]any { return map[string]any{"id": ann.Id, "exp": exp} }

	for name, tc := range map[string]struct {
		header string
		after  time.Duration
	}{
		"a token":                 {static(ann, time.Hour), time.Hour},
		"with a scheme":           {"bearer " + static(ann, time.Hour), time.Hour},
		"a long one":              {static(ann, 1000*time.Hour), 1000 * time.Hour},
		"one that has ended":      {sign(claims(now.Add(-time.Hour).Unix()), key), -time.Hour},
		"none":                    {"", collection},
		"another scheme":          {"Basic YW5uOnB3", collection},
		"no token":                {"a.b.c", collection},
		"somebody else's":         {static(bob, time.Hour), collection},
		"somebody else's, ended":  {sign(map[string]any{"id": bob.Id, "exp": now.Add(-time.Hour).Unix()}, key), collection},
		"a forged one":            {sign(claims(now.Add(100000*time.Hour).Unix()), "forged"), collection},
		"a forged one, ended":     {sign(claims(now.Add(-time.Hour).Unix()), "forged"), -time.Hour},
		"an end that is no time":  {sign(claims("never"), key), collection},
		"an end of zero":          {sign(claims(0), key), collection},
		"an end that is negative": {sign(claims(-1), key), -time.Duration(now.UnixNano())},
		"a forged early end":      {sign(claims(int64(math.MinInt64)/2), "forged"), -time.Duration(now.UnixNano())},
		"an end far away":         {sign(claims(int64(math.MaxInt64/2)), key), time.Unix(math.MaxInt64/int64(time.Second), 0).Sub(now)},
	} {
		r := &http.Request{Header: http.Header{}}
		r.Header.Set("Authorization", tc.header)
		c := credentialsOf(ann, r)
		require.WithinDuration(t, now.Add(tc.after), time.Unix(0, c.expires), 5*time.Second, name)

		account, err := c.account(app)
		require.NoError(t, err, name)
		require.Equal(t, tc.after > 0, account != nil, name)
		who, err := c.asker(app, func(r *core.Record) *core.RequestInfo { return &core.RequestInfo{Auth: r} })
		require.NoError(t, err, name)
		require.Equal(t, tc.after > 0, who.id != "", name)
	}

	require.Zero(t, credentialsOf(nil, &http.Request{Header: http.Header{"Authorization": {static(ann, time.Hour)}}}))
	require.False(t, credentials{}.expired(now), "a guest has nothing that ends")
	require.True(t, credentials{id: "x"}.expired(now), "what was not set has ended")
}
