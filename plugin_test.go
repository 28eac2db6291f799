package topics_test

import (
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

func message(name, data string) subscriptions.Message {
	return subscriptions.Message{Name: name, Data: []byte(data)}
}

func TestRegisterTwice(t *testing.T) {
	app := newApp(t, topics.Config{})
	require.ErrorIs(t, topics.Register(app, topics.Config{}), topics.ErrAlreadyRegistered)

	err := app.RunInTransaction(func(txApp core.App) error { return topics.Register(txApp, topics.Config{}) })
	require.ErrorIs(t, err, topics.ErrAlreadyRegistered)
	require.PanicsWithError(t, topics.ErrAlreadyRegistered.Error(), func() { topics.MustRegister(app, topics.Config{}) })

	// the first registration still works
	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "example", "subscribeRule": ""})
	c := s.connect()
	c.mustSubscribe("", "example")
	require.NoError(t, topics.Notify(app, "example", 1))
	require.Equal(t, "1", c.next().data)
}

func TestRegisterInTransaction(t *testing.T) {
	app, err := tests.NewTestApp()
	require.NoError(t, err)
	t.Cleanup(app.Cleanup)

	require.NoError(t, app.RunInTransaction(func(txApp core.App) error {
		return topics.Register(txApp, topics.Config{})
	}))

	s := serve(t, app)
	define(t, app, map[string]any{"pattern": "example", "subscribeRule": ""})
	c := s.connect()
	c.mustSubscribe("", "example", "other")
	require.Equal(t, "topic_unknown", c.next().notice(t).Code)
	require.NoError(t, topics.Notify(app, "example", 1))
	require.Equal(t, "1", c.next().data)
}

func TestRegisterBeforeBootstrap(t *testing.T) {
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: t.TempDir()})
	require.NoError(t, topics.Register(app, topics.Config{}))
	require.NoError(t, app.Bootstrap())
	t.Cleanup(func() {
		require.NoError(t, app.OnTerminate().Trigger(&core.TerminateEvent{App: app}))
		require.NoError(t, app.ResetBootstrapState())
	})
	require.NoError(t, app.RunAllMigrations())

	define(t, app, map[string]any{"pattern": "room/{id}"})
	_, err := newRule(app, nil)
	require.NoError(t, err)
	require.NotNil(t, topics.From(app))
	require.NoError(t, topics.Notify(app, "room/1", nil))
}

// Of several faults it is always the first one that Register names.
func TestRegisterNamesTheFirstFault(t *testing.T) {
	bad := rule("x =")
	app, err := tests.NewTestApp()
	require.NoError(t, err)
	defer app.Cleanup()
	for range 50 {
		err := topics.Register(app, topics.Config{Topics: []topics.Topic{{Pattern: "a", SubscribeRule: bad, PublishRule: bad, PresenceRule: bad}}})
		require.ErrorContains(t, err, "Config.Topics[0].SubscribeRule")
		err = topics.Register(app, topics.Config{Topics: []topics.Topic{{Pattern: "a", PublishRule: bad, PresenceRule: rule("@view")}}})
		require.ErrorContains(t, err, "Config.Topics[0].PublishRule")
	}
}

func TestRegisterRefusesInvalidConfig(t *testing.T) {
	app, err := tests.NewTestApp()
	require.NoError(t, err)
	t.Cleanup(app.Cleanup)

	for field, config := range map[string]topics.Config{
		"Config.QueueMessages":            {QueueMessages: -1},
		"Config.QueueBytes":               {QueueBytes: 1},
		"Config.WriteTimeout":             {WriteTimeout: -time.Second},
		"Config.Heartbeat":                {Heartbeat: -2},
		"Config.MaxPayload":               {MaxPayload: 1 << 30},
		"Config.MaxPublishMessages":       {MaxPublishMessages: -1},
		"Config.Topics[0].Pattern":        {Topics: []topics.Topic{{Pattern: "a//b"}}},
		"Config.Topics[1].Pattern":        {Topics: []topics.Topic{{Pattern: "a/{b}"}, {Pattern: "a/{c}"}}},
		"Config.Topics[0].Collection":     {Topics: []topics.Topic{{Pattern: "a/{b}", Collection: "demo1"}}},
		"Config.Topics[0].SubscribeRule":  {Topics: []topics.Topic{{Pattern: "a/{b}", SubscribeRule: rule("x =")}}},
		"Config.Topics[0].SubscribeRule:": {Topics: []topics.Topic{{Pattern: "a/{b}", SubscribeRule: rule("@view")}}},
		"Config.Topics[0].PublishRule":    {Topics: []topics.Topic{{Pattern: "a/{id}", Collection: "demo1", PublishRule: rule("@view")}}},
		"Config.Topics[0].PresenceRule":   {Topics: []topics.Topic{{Pattern: "a/{b}", PresenceRule: rule("(")}}},
	} {
		t.Run(field, func(t *testing.T) {
			require.ErrorContains(t, topics.Register(app, config), field)
			require.Nil(t, topics.From(app), "a refused registration leaves nothing behind")
			require.ErrorIs(t, topics.Notify(app, "x", 1), topics.ErrNotRegistered)
		})
	}
	require.Error(t, topics.Register(nil, topics.Config{}))
}
