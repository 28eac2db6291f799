package topics

import (
	"database/sql"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/spf13/cast"
)

// credentials are what a subscription was made with. They stop to count when
// PocketBase would not accept the token any more. The zero value is a guest's.
type credentials struct {
	collection string // id
	id         string

	// of the record and the collection when the token was accepted; together
	// they are the key that signs the collection's tokens
	tokenKey string
	secret   string

	expires int64 // Unix nanoseconds, 0 for never
}

// credentialsOf expects the auth record that core has found for the request.
func credentialsOf(auth *core.Record, r *http.Request) credentials {
	if auth == nil {
		return credentials{}
	}
	c := credentialsFor(auth)
	c.expires = tokenExpiry(auth, r)
	return c
}

// credentialsFor are those that the account would sign in with now.
func credentialsFor(auth *core.Record) credentials {
	return credentials{
		collection: auth.Collection().Id,
		id:         auth.Id,
		tokenKey:   auth.TokenKey(),
		secret:     auth.Collection().AuthToken.Secret,
	}
}

// tokenExpiry reads the expiry of the request's token, which core has verified
// when it found auth with it. An app can find it by other means: then there is
// no expiry.
func tokenExpiry(auth *core.Record, r *http.Request) int64 {
	token := r.Header.Get("Authorization")
	if len(token) > 7 && strings.EqualFold(token[:7], "Bearer ") {
		token = token[7:]
	}

	claims, err := security.ParseUnverifiedJWT(token)
	if err != nil || cast.ToString(claims[core.TokenClaimId]) != auth.Id {
		return 0
	}
	seconds := cast.ToInt64(claims["exp"])
	if seconds == 0 {
		return 0
	}
	return time.Unix(seconds, 0).UnixNano()
}

// asker returns whom the credentials stand for: a guest if they do not count
// any more. Whether the account is still there, with the same token key, is
// for a plan or for the asker's info to find out.
func (c credentials) asker(app core.App, options subscriptions.SubscriptionOptions) (asker, error) {
	guest := askerOf(realtimeInfo(options, nil))
	if c.id == "" || c.expired(time.Now()) {
		return guest, nil
	}

	collection, err := app.FindCachedCollectionByNameOrId(c.collection)
	if errors.Is(err, sql.ErrNoRows) {
		return guest, nil
	}
	if err != nil {
		return asker{}, err
	}
	if collection.AuthToken.Secret != c.secret {
		return guest, nil
	}

	who := asker{collection: collection, id: c.id, tokenKey: c.tokenKey, info: func() (*core.RequestInfo, error) {
		r, err := app.FindRecordById(collection, c.id)
		if errors.Is(err, sql.ErrNoRows) || err == nil && r.TokenKey() != c.tokenKey {
			return realtimeInfo(options, nil), nil
		}
		return realtimeInfo(options, r), err
	}}
	if !who.isSuperuser() {
		return who, nil
	}

	// no rule and so no plan would ask
	info, err := who.info()
	return askerOf(info), err
}

func (c credentials) sameAccount(other credentials) bool {
	return c.collection == other.collection && c.id == other.id
}

func (c credentials) expired(now time.Time) bool {
	return c.expires != 0 && now.UnixNano() >= c.expires
}
