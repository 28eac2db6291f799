package topics

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

// withoutPlans is the definition of the topic as if no rule had a plan.
func withoutPlans(t testing.TB, p *Plugin, app core.App, topic string) *definition {
	t.Helper()
	d, err := p.rules.find(app, topic)
	require.NoError(t, err)
	own := *d
	own.plans = nil
	return &own
}

// A plan answers what core's resolver answers with the values at hand, and
// reads the same.
func TestPlansDecideLikeCore(t *testing.T) {
	app, p := newReadsApp(t)
	random := newRand(t)

	rules := slices.Clone(soundnessRules)
	for _, text := range []string{
		"@topic.id = @request.auth.id",
		"@topic.id != @request.auth.id && @topic != 'x'",
		"@request.auth.id = ''",
		"@request.auth.id != '' && @request.auth.collectionName = 'users'",
		"@request.auth.email ~ 'dice1'",
		"@request.auth.role:lower = 'a'",
		"@topic.id ~ @request.auth.id || @collection.bans.topic ~ @topic.id",
		"@request.query.x = '' && @request.auth.role ?= 'b'",
		"@request.auth.created < @now",
		"@collection.users.id ?= @topic.id && @collection.users.id ?= @request.auth.id",
		"1 = 1 && true = true && @request.auth.team.plan != null",
	} {
		rules = append(rules, shapedRule{text, false})
	}
	saveRules(t, app, rules)

	d := newDice(t, app, random)
	planned, yes := map[string]bool{}, 0
	for range *rounds {
		d.write()
		for i, r := range rules {
			for _, id := range append(d.ids["rooms"], d.ids["users"][0]) {
				topic := fmt.Sprintf("r%d/%s", i, id)
				for _, user := range append(d.records("users"), nil) {
					auth := credentials{}
					if user != nil {
						auth = credentialsFor(user)
					}
					with, err := p.rules.find(app, topic)
					require.NoError(t, err)
					without := withoutPlans(t, p, app, topic)

					who, err := auth.asker(app, realtimeInfoOf(subscriptions.SubscriptionOptions{}))
					require.NoError(t, err)
					got, err := with.allows(app, actionSubscribe, topic, who)
					require.NoError(t, err)
					want, err := without.allows(app, actionSubscribe, topic, askerOf(realtimeInfo(subscriptions.SubscriptionOptions{}, user)))
					require.NoError(t, err)
					require.Equal(t, want, got, "%s on %s for %v", r.text, topic, user)

					reads, plain := with.reads(app, actionSubscribe, topic, auth), without.reads(app, actionSubscribe, topic, auth)
					require.True(t, reads.equal(plain), "%s on %s: %v and %v", r.text, topic, reads, plain)

					b, err := with.bind(app, actionSubscribe, topic)
					require.NoError(t, err)
					planned[r.text] = with.plan(app, b, who.collection) != nil
					if got {
						yes++
					}
				}
			}
		}
	}
	require.NotZero(t, yes)
	for text, has := range planned {
		depends := strings.Contains(text, "~") || strings.Contains(text, "@now") || strings.Contains(text, "email") || strings.Contains(text, "@request.query")
		require.Equal(t, !depends, has, text)
	}
}

// A change of a collection ends the plans that were made before it.
func TestPlansEndWithTheirRules(t *testing.T) {
	app, p := newReadsApp(t)
	text := "@collection.bans.topic ?= @topic"
	record := core.NewRecord(mustFind(t, app, "_topics"))
	record.Set("pattern", "r/{id}")
	record.Set("subscribeRule", text)
	require.NoError(t, app.Save(record))

	guest := askerOf(realtimeInfo(subscriptions.SubscriptionOptions{}, nil))
	before, err := p.rules.find(app, "r/1")
	require.NoError(t, err)
	b, err := before.bind(app, actionSubscribe, "r/1")
	require.NoError(t, err)
	old := before.plan(app, b, nil)
	require.NotNil(t, old)

	bans := mustFind(t, app, "bans")
	bans.Fields.GetByName("topic").SetName("subject")
	require.NoError(t, app.Save(bans))

	denial := p.decide(app, actionSubscribe, "r/1", guest)
	require.NotNil(t, denial)
	require.Equal(t, codeRuleError, denial.code)
	_, err = old.allows(t.Context(), questionOf("", "", "r/1", b.values))
	require.Error(t, err, "the old statement is closed")
	require.Nil(t, before.plan(app, b, nil), "and makes no new ones")
}
