package topics

import (
	"time"
)

// retention bounds a topic's history. The zero value keeps none.
type retention struct {
	messages int
	bytes    int
	age      time.Duration // 0 for no limit
}

func (r retention) keeps() bool { return r.messages > 0 }

// bounds returns what a definition keeps, within the config's limits.
func (h *history) bounds(d *definition) retention {
	if d == nil || d.history <= 0 {
		return retention{}
	}
	return retention{messages: min(d.history, h.messages), bytes: h.bytes, age: d.historyTTL}
}

// retentionOf returns what is kept of a topic: nothing if its rule cannot be
// found.
func (p *Plugin) retentionOf(topic string) retention {
	set := p.rules.current.Load()
	if set == nil || set.generation != p.rules.generation.Load() {
		app := p.outerApp()
		if app == nil {
			return retention{}
		}
		var err error
		if set, err = p.rules.load(app); err != nil {
			return retention{}
		}
	}
	return p.history.bounds(set.tree.find(topic))
}
