package topics

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// sendAs publishes with a key, and reports whether something was sent.
func sendAs(t *testing.T, rs *repeats, by owner, key string) (sent bool) {
	t.Helper()

	id, err := onceMore(t.Context(), rs, by, newRepeatKey("", string(by), "topic", key), func() (string, error) {
		sent = true
		return "id of " + key, nil
	})
	require.NoError(t, err)
	require.Equal(t, "id of "+key, id)
	return sent
}

func TestARepetitionIsSentOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rs := newRepeats(10)
		require.True(t, sendAs(t, rs, "ann", "1"))
		require.False(t, sendAs(t, rs, "ann", "1"))
		require.True(t, sendAs(t, rs, "bob", "1"), "another sender")

		time.Sleep(repeatFor - 1)
		require.False(t, sendAs(t, rs, "ann", "1"))
		time.Sleep(time.Nanosecond)
		require.True(t, sendAs(t, rs, "ann", "1"))
	})
}

// Whatever one sender does, the keys of others stay.
func TestASenderForgetsOnlyItsOwnKeys(t *testing.T) {
	for name, scenario := range map[string]struct {
		limit   int
		by      owner
		keys    int
		dropped uint64
	}{
		"over its own limit":                   {100, "eve", 1000, 900},
		"without a limit, over that of all":    {-1, "eve", maxRepeats + 50, 51},
		"whose address is unknown, over all's": {100, "", maxRepeats + 50, 51},
	} {
		t.Run(name, func(t *testing.T) {
			rs := newRepeats(scenario.limit)
			require.True(t, sendAs(t, rs, "ann", "first"))
			for i := range scenario.keys {
				require.True(t, sendAs(t, rs, scenario.by, strconv.Itoa(i)))
			}
			require.False(t, sendAs(t, rs, "ann", "first"))
			require.False(t, sendAs(t, rs, scenario.by, strconv.Itoa(scenario.keys-1)), "its newest")
			_, dropped := rs.count()
			require.Equal(t, scenario.dropped, dropped)
			require.True(t, sendAs(t, rs, scenario.by, "0"), "its oldest")
		})
	}
}

// Many senders at their limits together take from the one with the most keys.
func TestManySendersShareTheBound(t *testing.T) {
	rs := newRepeats(maxRepeats / 4)
	require.True(t, sendAs(t, rs, "ann", "first"))
	for sender := range 8 {
		for i := range maxRepeats / 4 {
			require.True(t, sendAs(t, rs, owner("eve"+strconv.Itoa(sender)), strconv.Itoa(i)))
		}
	}
	keys, _ := rs.count()
	require.Equal(t, maxRepeats, keys)
	require.Len(t, rs.byKey, maxRepeats)
	require.False(t, sendAs(t, rs, "ann", "first"))
}

func TestNothingIsLeftOfExpiredKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rs := newRepeats(10)
		for i := range 100 {
			require.True(t, sendAs(t, rs, owner("eve"+strconv.Itoa(i%7)), strconv.Itoa(i)))
		}
		time.Sleep(repeatFor)
		require.True(t, sendAs(t, rs, "ann", "1"))
		require.Len(t, rs.byKey, 1)
		require.Len(t, rs.senders, 1)
		require.Len(t, rs.most, 1)
		require.Equal(t, 1, rs.order.Len())
	})
}

// A request that waits for another one's send ends with its context, and the
// send that is under way is not forgotten, whatever else is sent meanwhile.
func TestAWaitForASendEndsWithTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rs := newRepeats(3)
		key := newRepeatKey("", "ann", "topic", "k")
		sending, sends := make(chan struct{}), 0
		first := make(chan string)
		go func() {
			id, _ := onceMore(t.Context(), rs, "ann", key, func() (string, error) {
				sends++
				<-sending
				return "1", nil
			})
			first <- id
		}()
		synctest.Wait()
		never := func() (string, error) { return "", errors.New("sent again") }

		for i := range 100 {
			require.True(t, sendAs(t, rs, "ann", strconv.Itoa(i)))
		}
		time.Sleep(2 * repeatFor)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := onceMore(ctx, rs, "ann", key, never)
		require.ErrorIs(t, err, errRepeatInterrupted)

		close(sending)
		require.Equal(t, "1", <-first)
		id, err := onceMore(t.Context(), rs, "ann", key, never)
		require.NoError(t, err)
		require.Equal(t, "1", id)
		require.Equal(t, 1, sends)
	})
}

// A send that fails, or panics, does not count: whoever waits sends, once.
func TestAFailedSendIsNoRepetition(t *testing.T) {
	rs := newRepeats(3)
	key := newRepeatKey("", "", "topic", "k")
	require.Panics(t, func() {
		_, _ = onceMore(t.Context(), rs, "", key, func() (string, error) { panic("broker") })
	})
	_, err := onceMore(t.Context(), rs, "", key, func() (string, error) { return "", errors.New("no") })
	require.EqualError(t, err, "no")
	require.Empty(t, rs.byKey)

	for range 2 {
		id, err := onceMore(t.Context(), rs, "", key, func() (string, error) { return "1", nil })
		require.NoError(t, err)
		require.Equal(t, "1", id)
	}
}

// onceMore is once with the same content for all.
func onceMore(ctx context.Context, rs *repeats, by owner, key repeatKey, send func() (string, error)) (string, error) {
	return rs.once(ctx, by, key, content{}, func() (string, content, error) {
		id, err := send()
		return id, content{}, err
	})
}
