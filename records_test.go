package topics_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// slowReader reads so many bytes a second.
type slowReader struct {
	net.Conn
	rate int
}

func (r slowReader) Read(p []byte) (int, error) {
	const pause = 10 * time.Millisecond
	time.Sleep(pause)
	return r.Conn.Read(p[:min(len(p), r.rate*int(pause)/int(time.Second))])
}

// connectSlow opens a connection whose reader is slow from now on.
func (s *server) connectSlow(rate int) (*stalledStream, <-chan event) {
	s.t.Helper()

	c := s.connectStalled()
	require.NoError(s.t, c.conn.(*net.TCPConn).SetReadBuffer(256<<10))
	list := make(chan event, 100_000)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(list)
		// of one chunk of the response each line: chunks are as long as they like
		lines := bufio.NewReaderSize(slowReader{c.conn, rate}, 64<<10)
		readEvents(newChunks(lines), func(e event) { list <- e })
	}()
	s.t.Cleanup(func() {
		_ = c.conn.Close()
		<-ended
	})
	return c, list
}

// newChunks reads a chunked body whose first chunks were read.
func newChunks(r *bufio.Reader) io.Reader {
	pr, pw := io.Pipe()
	go func() {
		for {
			head, err := r.ReadString('\n')
			if err != nil {
				_ = pw.CloseWithError(err)
				return
			}
			head = strings.TrimSpace(head)
			if head == "" {
				continue
			}
			var size int64
			if _, err := fmt.Sscanf(head, "%x", &size); err != nil || size == 0 {
				_ = pw.CloseWithError(io.EOF)
				return
			}
			if _, err := io.CopyN(pw, r, size); err != nil {
				_ = pw.CloseWithError(err)
				return
			}
		}
	}()
	return pr
}

// Record events have no recovery: a slow reader has all that PocketBase alone
// would have delivered.
func TestRecordSubscribersLoseNothing(t *testing.T) {
	const records = 3000

	app := newApp(t, topics.Config{})
	s := serve(t, app)
	c := newCollection(t, app, "notes", &core.TextField{Name: "text"})
	c.ListRule = rule("")
	require.NoError(t, app.Save(c))

	slow, events := s.connectSlow(3 << 20)
	(&stream{s: s, id: slow.id}).mustSubscribe("", "notes/*")
	require.NoError(t, app.RunInTransaction(func(tx core.App) error {
		for i := range records {
			record := core.NewRecord(c)
			record.Set("text", fmt.Sprint(i, strings.Repeat("x", 1000)))
			if err := tx.SaveNoValidate(record); err != nil {
				return err
			}
		}
		return nil
	}))

	seen := map[string]bool{}
	expired := time.After(3 * patience)
	for len(seen) < records {
		select {
		case e, open := <-events:
			require.True(t, open, "closed after %d", len(seen))
			if e.name != "notes/*" {
				continue
			}
			var data struct {
				Record map[string]any
			}
			require.NoError(t, json.Unmarshal([]byte(e.data), &data))
			require.False(t, seen[data.Record["id"].(string)])
			seen[data.Record["id"].(string)] = true
		case <-expired:
			t.Fatalf("%d of %d came", len(seen), records)
		}
	}
	require.Zero(t, topics.From(app).Stats().SlowConsumers)
}

// The bound of record events is one too.
func TestRecordEventsAreBounded(t *testing.T) {
	for name, size := range map[string]int{"bytes": 8 << 10, "messages": 0} {
		t.Run(name, func(t *testing.T) {
			app := newApp(t, topics.Config{RecordQueueBytes: 512 << 10, WriteTimeout: time.Hour})
			s := serve(t, app)
			stalled := s.connectStalled()
			found, err := app.SubscriptionsBroker().ClientById(stalled.id)
			require.NoError(t, err)
			for i := 0; !found.IsDiscarded(); i++ {
				require.Less(t, i, 1_000_000)
				found.Send(message("record", `"`+strings.Repeat("x", size)+`"`))
				stats := topics.From(app).Stats()
				require.LessOrEqual(t, stats.QueuedRecordBytes, 512<<10)
				require.LessOrEqual(t, stats.QueuedRecords, 2048)
			}
			require.EqualValues(t, 1, topics.From(app).Stats().SlowConsumers)
		})
	}
}
