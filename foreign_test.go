package topics

import (
	"testing"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

// nosy is a client of another type that looks, when it is unsubscribed, at
// whether it would still receive.
type nosy struct {
	*subscriptions.DefaultClient
	ask func() bool
	may []bool
}

func (n *nosy) Unsubscribe(keys ...string) {
	n.may = append(n.may, n.ask())
	n.DefaultClient.Unsubscribe(keys...)
}

// A sweep that has read a foreign client's keys before a revocation sends it
// nothing after that.
func TestASweepDuringARevocation(t *testing.T) {
	b := newBench(t, false)
	defer b.close()
	fc := b.p.foreign
	c := &nosy{DefaultClient: subscriptions.NewDefaultClient()}
	c.ask = func() bool { return fc.mayReceive(c, c.Id(), "a") }
	c.Subscribe("a", "go")
	g := b.p.grants.acquire(nil, actionSubscribe, "a", subscriptions.SubscriptionOptions{}, credentials{})
	require.Nil(t, b.p.grants.decideFor(g))
	fc.setGrants(c, "", []string{"a"}, map[string]*admission{"a": {grant: g}})
	require.True(t, c.ask())
	require.True(t, fc.mayReceive(c, c.Id(), "go"), "Go code has subscribed it")

	b.allowed.Store(false)
	b.p.grants.touch([]*grant{g})
	b.p.grants.decideAgain(g)
	require.Equal(t, []bool{false}, c.may)
	require.False(t, c.ask())
	require.Empty(t, fc.holds)
	require.Contains(t, string((<-c.Channel()).Data), "topic_revoked")
}
