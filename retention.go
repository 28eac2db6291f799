package topics

import (
	"errors"
	"time"
)

// retention bounds a topic's history. The zero value keeps none: whether that
// is so, or is not known, is for the error beside it to say.
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
	return retention{messages: min(d.history, h.limits.messages), bytes: h.limits.bytes, age: d.historyTTL}
}

// retentionOf returns what is kept of a topic, or an error if its rule cannot
// be read: then nobody knows, and nothing may be dropped.
func (p *Plugin) retentionOf(topic string) (retention, error) {
	set := p.rules.current.Load()
	if set == nil || set.generation != p.rules.generation.Load() {
		app := p.outerApp()
		if app == nil {
			return retention{}, errors.New("topics: there is no app yet")
		}
		var err error
		if set, err = p.rules.load(app); err != nil {
			return retention{}, err
		}
	}
	d := set.tree.find(topic)
	switch {
	case d != nil && d.broken != nil:
		return retention{}, d.broken
	case d == nil && set.missing:
		return retention{}, errRulesMissing
	}
	return p.history.bounds(d), nil
}
