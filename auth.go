package topics

import (
	"database/sql"
	"errors"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"
	"github.com/spf13/cast"
)

// credentials are what a subscription or a request was made with. They stop
// counting when PocketBase would no longer accept the token. The zero value is a
// guest's.
type credentials struct {
	collection string // id
	id         string

	// of the record and the collection when the token was accepted; together
	// they are the key that signs the collection's tokens
	tokenKey string
	secret   string

	expires int64 // Unix nanoseconds; every account has one
}

// credentialsOf expects the auth record that core, or the app, has found for
// the request. They end with the request's token. Without a token of that
// account (the app may know its users by a cookie), they end as if it had signed
// in now.
func credentialsOf(auth *core.Record, r *http.Request) credentials {
	if auth == nil {
		return credentials{}
	}
	c := credentialsFor(auth)
	if expires, ok := tokenExpiry(auth, r); ok {
		c.expires = expires
	}
	return c
}

// credentialsFor are those that the account would sign in with now.
func credentialsFor(auth *core.Record) credentials {
	collection := auth.Collection()
	ends := time.Now().Add(collection.AuthToken.DurationTime())
	return credentials{
		collection: collection.Id,
		id:         auth.Id,
		tokenKey:   auth.TokenKey(),
		secret:     collection.AuthToken.Secret,
		expires:    ends.Truncate(time.Second).UnixNano(), // as of a token
	}
}

// tokenExpiry reads when the request's token ends. It reports false if that is
// not a token of the account. A token that has ended since core accepted it, as
// when the body of the request took its time, cannot be verified any longer, but
// its end counts all the same: at worst a forged one ends early.
func tokenExpiry(auth *core.Record, r *http.Request) (int64, bool) {
	token := r.Header.Get("Authorization")
	if len(token) > 7 && strings.EqualFold(token[:7], "Bearer ") {
		token = token[7:]
	}
	if token == "" {
		return 0, false
	}

	claims, err := security.ParseJWT(token, auth.TokenKey()+auth.Collection().AuthToken.Secret)
	verified := err == nil
	if !verified {
		claims, _ = security.ParseUnverifiedJWT(token) // it says so too if the token has ended
	}
	if cast.ToString(claims[core.TokenClaimId]) != auth.Id {
		return 0, false
	}
	seconds := cast.ToInt64(claims["exp"])
	if seconds == 0 || !verified && seconds > time.Now().Unix() {
		return 0, false
	}
	const last = math.MaxInt64 / int64(time.Second) // that nanoseconds can say
	return min(max(seconds, 0), last) * int64(time.Second), true
}

// account returns the auth record as it is now, or nil where the credentials
// stand for a guest: they have ended, the account is gone, or its token key or
// its collection's secret is another.
func (c credentials) account(app core.App) (*core.Record, error) {
	collection, err := c.authCollection(app)
	if err != nil || collection == nil {
		return nil, err
	}
	record, err := app.FindRecordById(collection, c.id)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil // a guest
	case err != nil:
		return nil, err
	case record.TokenKey() != c.tokenKey:
		return nil, nil // a guest
	}
	return record, nil
}

// authCollection returns nil where the credentials stand for a guest, as far as
// that can be told without the auth record.
func (c credentials) authCollection(app core.App) (*core.Collection, error) {
	if c.id == "" || c.expired(time.Now()) {
		return nil, nil // a guest
	}
	collection, err := app.FindCachedCollectionByNameOrId(c.collection)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil // a guest
	case err != nil:
		return nil, err
	case collection.AuthToken.Secret != c.secret:
		return nil, nil // a guest
	}
	return collection, nil
}

// asker returns whom the credentials stand for: a guest if they do not count
// any more. infoOf makes what rules see of a request of that account, or of nil.
// Whether the account is still there, with the same token key, is for a plan or
// for the asker's info to find out.
func (c credentials) asker(app core.App, infoOf func(*core.Record) *core.RequestInfo) (asker, error) {
	collection, err := c.authCollection(app)
	if err != nil {
		return asker{}, err
	}
	if collection == nil {
		return askerOf(infoOf(nil)), nil
	}

	who := asker{collection: collection, id: c.id, tokenKey: c.tokenKey, info: func() (*core.RequestInfo, error) {
		record, err := c.account(app)
		return infoOf(record), err
	}}
	if !who.isSuperuser() {
		return who, nil
	}

	// no rule and so no plan would ask
	info, err := who.info()
	return askerOf(info), err
}

// decideAs decides for the account of a request as it is now. Core has read it
// when the headers came, and the body may have come long after them.
func (p *Plugin) decideAs(app core.App, auth credentials, a action, topic string, infoOf func(*core.Record) *core.RequestInfo) *denial {
	who, err := auth.asker(app, infoOf)
	if err != nil {
		return denyRuleError(err)
	}
	return p.decide(app, a, topic, who)
}

// refreshAuth makes e.Auth the account as it is now, after a body that may have
// taken its time: nil if PocketBase would no longer accept the token.
func refreshAuth(e *core.RequestEvent) (credentials, error) {
	auth := credentialsOf(e.Auth, e.Request)
	record, err := auth.account(e.App)
	if err != nil {
		return auth, e.InternalServerError("Failed to read the account.", err)
	}
	if e.Auth = record; record == nil {
		return credentials{}, nil
	}
	return auth, nil
}

func (c credentials) sameAccount(other credentials) bool {
	return c.collection == other.collection && c.id == other.id
}

// expired is false for a guest, whose credentials do not end.
func (c credentials) expired(now time.Time) bool {
	return c.id != "" && now.UnixNano() >= c.expires
}
