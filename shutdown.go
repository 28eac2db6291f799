package topics

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// close ends all of the plugin's goroutines and waits for them until ctx is
// done. Whatever calls the app's code or a query may take longer: that is left
// alone, finds everything closed when it goes on, and the error names it. It is
// safe to call close more than once.
func (p *Plugin) close(ctx context.Context, app core.App) error {
	if p.closed.Swap(true) {
		return nil
	}

	p.publishing.close()
	p.delivering.close()
	p.calls.close()
	p.grants.halt() // before the decisions fail: what they answer now counts no more
	p.endLife()

	// the others get half of the time, so that they do not keep the histories
	// from being written
	early, cancel := halfOf(ctx)
	defer cancel()

	ever := context.Background() // await gives up
	steps := []*closing{
		p.startClosing("delivering", func() { p.delivering.wait(ever) }),
		p.startClosing("presence", p.presence.close), // who goes from now on is not said to leave
	}
	await(early, steps)
	steps = append(steps,
		p.startClosing("connections", p.hub.close),
		p.startClosing("messages of transactions", p.commits.close),
		p.startClosing("decisions", p.grants.close),
		p.startClosing("publishing", func() { p.publishing.wait(ever) }),
		p.startClosing("clients of the app's own code", p.foreign.close),
		p.startClosing("handlers of presence hooks", p.calls.running.Wait),
	)
	await(early, steps)

	var err error
	history := p.startClosing("writing the histories", func() { err = p.history.close(ctx, app) })
	steps = append(steps, history, p.startClosing("the log's summary", p.logs.close))
	p.rules.close()

	late := await(ctx, steps)
	if history.ended(ctx) {
		late = append(late, err)
	}
	return errors.Join(late...)
}

// closing is a step of close that has begun.
type closing struct {
	what string
	done chan struct{}
}

func (p *Plugin) startClosing(what string, wait func()) *closing {
	c := &closing{what: what, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		_ = p.guard.run("closing: "+what, wait) // it is logged
	}()
	return c
}

// ended waits until ctx is done.
func (c *closing) ended(ctx context.Context) bool {
	select {
	case <-c.done:
		return true
	default:
	}
	select {
	case <-c.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// await returns an error for each step that has not ended when ctx is done.
func await(ctx context.Context, steps []*closing) (late []error) {
	for _, s := range steps {
		if !s.ended(ctx) {
			late = append(late, fmt.Errorf("topics: not ended in time, and left alone: %s", s.what))
		}
	}
	return late
}

func halfOf(ctx context.Context) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(end)/2)
}
