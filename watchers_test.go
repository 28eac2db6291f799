package topics

import (
	"encoding/json"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

const watchingA = `a?options={"query":{"presence":"true"}}`

// newPresenceBench has guests as members.
func newPresenceBench(t *testing.T) *bench {
	b := newBench(t, false)
	b.decideBy(func(next func(*grant) outcome) func(*grant) outcome {
		return func(g *grant) outcome {
			o := next(g)
			o.identity = &identity{guest: true}
			return o
		}
	})
	return b
}

// watch subscribes a client that sees the members.
func (b *bench) watch() (*client, *grant) {
	c := b.client()
	a := &admission{grant: b.acquire(actionSubscribe, watchingA), watch: b.acquire(actionPresence, watchingA)}
	a.options, _ = optionsOf(watchingA, parseKeys([]string{watchingA})[watchingA])
	a.identity = a.grant.identity.Load()
	watch := a.watch
	require.NoError(b.t, c.replaceDuring(map[string]*admission{watchingA: a}, func() error {
		c.Unsubscribe()
		c.Subscribe(watchingA)
		return nil
	}))
	return c, watch
}

func (b *bench) acquire(a action, key string) *grant {
	g := b.p.grants.acquire(nil, a, key, subscriptions.SubscriptionOptions{}, credentials{})
	require.Nil(b.t, b.p.grants.decideFor(g))
	return g
}

// join subscribes a client without a look at the members.
func (b *bench) join() *client {
	c := b.client()
	g := b.acquire(actionSubscribe, "a")
	require.NoError(b.t, c.replaceDuring(map[string]*admission{"a": {grant: g, identity: g.identity.Load()}}, func() error {
		c.Unsubscribe()
		c.Subscribe("a")
		return nil
	}))
	return c
}

// told are presence events and messages, in short.
func told(t *testing.T, received []string) (list []string) {
	for _, raw := range received {
		var e struct {
			Type    string          `json:"type"`
			Count   int             `json:"count"`
			Members []memberID      `json:"members"`
			Data    json.RawMessage `json:"data"`
		}
		require.NoError(t, json.Unmarshal([]byte(raw), &e))
		if e.Type == "message" {
			list = append(list, string(e.Data))
		} else {
			list = append(list, fmt.Sprint(e.Type, " ", len(e.Members), "/", e.Count))
		}
	}
	return list
}

// The first change is told at once, others not more often than every flush
// period: together, and in order with messages.
func TestABurstOfJoinsIsAFewEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newPresenceBench(t)
		defer b.close()
		c, _ := b.watch()
		require.Equal(t, []string{"ready 0/0", "presence 1/1"}, told(t, c.received()))

		time.Sleep(time.Second)
		last := b.join()
		require.Equal(t, []string{"join 1/2"}, told(t, c.received()))
		var brief []*client
		time.Sleep(time.Millisecond / 2) // never at the time of a flush
		for i := range 999 {
			time.Sleep(time.Millisecond)
			other := b.join()
			if i%10 == 0 {
				other.Discard() // has its grace
				brief = append(brief, b.join())
			}
			if i == 300 {
				b.publish("1")
			}
		}
		for _, other := range brief {
			other.Discard()
		}
		time.Sleep(flushPeriod)
		synctest.Wait()
		require.Equal(t, []string{"join 274/276", "1", "join 275/551", "join 275/826", "presence 0/1101"}, told(t, c.received()))

		// the graces end, and it is below the limit again
		time.Sleep(16 * time.Second)
		synctest.Wait()
		ends := told(t, c.received())
		require.LessOrEqual(t, len(ends), 6)
		require.Equal(t, "presence 0/901", ends[len(ends)-1], "a tenth below the limit it would be the list")
		last.Discard()
		time.Sleep(16 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"presence 900/900"}, told(t, c.received()))
	})
}

// A watcher who does not keep up, or may not be told, gets a snapshot later.
func TestAWatcherCatchesUpWithASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newPresenceBench(t)
		defer b.close()
		c, watch := b.watch()
		c.received()

		// a full queue
		for range 100 {
			c.enqueue(newFrame(subscriptions.Message{Name: "x", Data: []byte(`{"type":"x"}`)}))
		}
		for range 3 {
			b.join()
			time.Sleep(flushPeriod)
		}
		synctest.Wait()
		require.Len(t, c.received(), 100)
		c.refill()
		require.Equal(t, []string{"presence 4/4"}, told(t, c.received()))
		c.refill()
		require.Empty(t, c.received())

		// a stale decision, of the members or of the topic
		for i, stale := range []*grant{watch, c.subs[watchingA].grant} {
			stale.queued.Store(true) // its decision is on the way
			stale.marked.Add(1)
			b.join()
			time.Sleep(flushPeriod)
			synctest.Wait()
			require.Empty(t, c.received())
			b.p.grants.serve(stale)
			require.Equal(t, []string{fmt.Sprintf("presence %d/%[1]d", 5+i)}, told(t, c.received()))
		}

		// and no longer
		b.allowed.Store(false)
		b.p.grants.touch([]*grant{watch})
		time.Sleep(time.Second)
		synctest.Wait()
		b.allowed.Store(true)
		b.join()
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, []string{"presence_revoked 0/0"}, told(t, c.received()))
		require.EqualValues(t, 0, c.behind.Load())
	})
}

func FuzzState(f *testing.F) {
	for _, seed := range []string{`{"a":1}`, `"{\"a\":1}"`, `null`, `[1]`, `{"a":1}{`, `{"x":"\ud800"}`, " {\n} ", `"null"`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		line, err := readState([]byte(raw))
		if err != nil || line == nil {
			return
		}
		require.LessOrEqual(t, len(line), maxState)
		var object map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(line, &object))
		require.NotNil(t, object)
		require.NotContains(t, string(line), "\n")
	})
}
