package topics

import (
	"encoding/json"
	"errors"

	"github.com/pocketbase/pocketbase/core"
)

const (
	// pbHooksKey is where [core.App.Store] has what pb_hooks may use:
	// $app.store().get("topics").notify($app, "room/42", {test: 123}).
	pbHooksKey = "topics"

	// pluginKey is where it has the plugin, for [From].
	pluginKey = "topicsPlugin"
)

// registration hides the plugin from JavaScript, which can get any value of the
// store and then use its exported fields and methods.
type registration struct {
	plugin *Plugin
}

// pbHooks is the plugin as JavaScript sees it. JavaScript runtimes are not safe
// for other goroutines, so it has only what runs on the caller's and keeps
// nothing of the arguments: no hooks, no options that are functions. What it
// returns is plain data in the form that HTTP clients see.
type pbHooks struct {
	plugin *Plugin
}

var errNoApp = errors.New("topics: the first argument must be the app: $app, or a transaction's")

// Notify is [Notify] without options.
func (h *pbHooks) Notify(app core.App, topic string, data any) error {
	if app == nil {
		return errNoApp
	}
	return h.plugin.Notify(app, topic, data)
}

// Presence returns the members of a topic: [{id, collection, record, state, since,
// connections}].
func (h *pbHooks) Presence(app core.App, topic string) (any, error) {
	if app == nil {
		return nil, errNoApp
	}
	list, err := h.plugin.Presence(app, topic)
	if err != nil {
		return nil, err
	}
	return plain(list)
}

// PresenceCount returns how many members a topic has.
func (h *pbHooks) PresenceCount(app core.App, topic string) (int, error) {
	if app == nil {
		return 0, errNoApp
	}
	return h.plugin.PresenceCount(app, topic)
}

// History returns messages that a topic keeps: {topic, messages, recovered, last}.
// The options are {since, before, limit}.
func (h *pbHooks) History(app core.App, topic string, options HistoryOptions) (any, error) {
	if app == nil {
		return nil, errNoApp
	}
	page, entries, err := h.plugin.page(topic, options)
	if err != nil {
		return nil, err
	}
	return plain(newHistoryAnswer(topic, page, entries))
}

// Stats returns what [Plugin.Stats] counts.
func (h *pbHooks) Stats() (any, error) { return plain(h.plugin.Stats()) }

// plain returns what JSON makes of v: maps, slices, texts, numbers.
func plain(v any) (data any, err error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return data, json.Unmarshal(raw, &data)
}
