package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// loser is an honest account that loses its access to a room again and again.
type loser struct {
	person
	admin   *caller
	id      string        // the room's
	period  time.Duration // between two losses
	patient time.Duration // how long it waits to be told

	losses []loss // once it has ended
}

// loss is one loss of access.
type loss struct {
	at    time.Time
	wrote time.Duration // the write's time
	told  time.Duration // from its commit until the event
}

var errNotTold = errors.New("was not told")

// live goes on until the context is done.
func (l *loser) live(ctx context.Context) {
	for ctx.Err() == nil {
		if err := l.connection(ctx); err != nil && ctx.Err() == nil {
			l.truth.fault("%s %v", l.user, err)
			pause(ctx, 200*time.Millisecond)
		}
	}
	if err := l.setMember(true, nil); err != nil {
		l.truth.fault("%s cannot become a member again: %v", l.user, err)
	}
}

func (l *loser) setMember(on bool, answer *membership) error {
	if answer == nil {
		answer = new(membership)
	}
	return l.admin.post("/abuse/member", map[string]any{"room": l.id, "user": l.user, "on": on}, answer)
}

func (l *loser) connection(ctx context.Context) error {
	s, err := l.connect()
	if err != nil {
		return fmt.Errorf("cannot connect: %w", err)
	}
	defer s.close()
	stop := context.AfterFunc(ctx, s.close)
	defer stop()

	// the reader never waits: it ends with the connection
	type arrival struct {
		event event
		at    time.Time
	}
	arrivals := make(chan arrival, 10_000)
	go func() {
		defer close(arrivals)
		for {
			_, data, err := s.next()
			if err != nil {
				return
			}
			var e event
			if err := json.Unmarshal([]byte(data), &e); err == nil {
				arrivals <- arrival{e, time.Now()}
			}
		}
	}()

	// await waits for an event of the type, while lost says when access ended
	await := func(kind string, lost time.Time) (arrival, error) {
		late := time.After(l.patient)
		for {
			select {
			case a, ok := <-arrivals:
				if !ok {
					return a, fmt.Errorf("lost its connection while it waited for %s", kind)
				}
				if a.event.Type == kind {
					return a, nil
				}
				of, _ := l.truth.arrive(l.room, "", a.event.Data.N)
				if a.event.Type == "message" && !lost.IsZero() && of.begun.After(lost) {
					l.truth.fault("%s received a message of %s that was sent %v after it lost access", l.user, l.room, of.begun.Sub(lost))
				}
			case <-late:
				return arrival{}, fmt.Errorf("%w: %s, for %v", errNotTold, kind, l.patient)
			case <-ctx.Done():
				return arrival{}, ctx.Err()
			}
		}
	}

	for {
		if err := l.setMember(true, nil); err != nil {
			return fmt.Errorf("cannot become a member: %w", err)
		}
		// what an SDK sends that unsubscribes and subscribes
		if err := l.subscribe(s.clientID); err != nil {
			return fmt.Errorf("cannot unsubscribe: %w", err)
		}
		if err := l.subscribe(s.clientID, key(l.room, map[string]any{"envelope": true})); err != nil {
			return fmt.Errorf("cannot subscribe: %w", err)
		}
		if _, err := await("ready", time.Time{}); err != nil {
			return err
		}
		pause(ctx, l.period)
		if ctx.Err() != nil {
			return nil
		}

		begun := time.Now()
		var answer membership
		if err := l.setMember(false, &answer); err != nil {
			return fmt.Errorf("cannot be removed: %w", err)
		}
		committed := time.Unix(0, answer.Committed)
		told, err := await("revoked", committed)
		if err != nil {
			return err
		}
		l.losses = append(l.losses, loss{at: begun, wrote: committed.Sub(begun), told: max(0, told.at.Sub(committed))})
	}
}
