package topics

import (
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/pocketbase/pocketbase/tools/types"
	"github.com/stretchr/testify/require"
)

// No rule stands in for another one: what is not one of the three actions is
// denied, also to superusers and where every rule lets everybody in.
func TestAnUnknownActionIsDenied(t *testing.T) {
	app, p := newReadsApp(t)
	all := types.Pointer("")
	code, err := newRules([]Topic{{Pattern: "public", SubscribeRule: all, PublishRule: all, PresenceRule: all, Presence: true}})
	require.NoError(t, err)
	p.rules.code = code.code

	superusers := mustFind(t, app, core.CollectionNameSuperusers)
	root := core.NewRecord(superusers)
	root.Id = "root"
	for _, auth := range []*core.Record{nil, root} {
		who := askerOf(realtimeInfo(subscriptions.SubscriptionOptions{}, auth))
		for _, a := range []action{actionSubscribe, actionPublish, actionPresence} {
			require.Nil(t, p.decide(app, a, "public", who), a)
		}
		for _, a := range []action{"", "other", actionSubscribe + " "} {
			d := p.decide(app, a, "public", who)
			require.NotNil(t, d, a)
			require.Equal(t, codeRuleError, d.code, a)
		}
	}

	g := p.grants.acquire(app, "other", "public", subscriptions.SubscriptionOptions{}, credentials{})
	defer p.grants.release(g)
	d := p.grants.decideFor(g)
	require.NotNil(t, d)
	require.Equal(t, codeRuleError, d.code)
}
