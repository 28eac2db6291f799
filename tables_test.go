package topics_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// tablesOne are the tables of version 1, which did not say so.
var tablesOne = []string{
	`CREATE TABLE _topicsMessages (topic TEXT NOT NULL, position INTEGER NOT NULL, epoch TEXT NOT NULL, time INTEGER NOT NULL, event TEXT NOT NULL,
		leftOut TEXT NOT NULL, sender TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (topic, position)) WITHOUT ROWID`,
	`CREATE TABLE _topicsLogs (topic TEXT PRIMARY KEY, epoch TEXT NOT NULL, last INTEGER NOT NULL) WITHOUT ROWID`,
	`CREATE TABLE _topicsPositions (id TEXT PRIMARY KEY, epoch TEXT NOT NULL, position INTEGER NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID`,
	`CREATE TABLE _topicsState (id TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID`,
}

func auxSQL(t testing.TB, app core.App, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		_, err := app.AuxNonconcurrentDB().NewQuery(statement).Execute()
		require.NoError(t, err, statement)
	}
}

func oldTables(t *testing.T, more ...string) *tests.TestApp {
	t.Helper()
	app := newApp(t, topics.Config{ResumeOverlap: -1})
	keepLogs(app)
	define(t, app, map[string]any{"pattern": "a/{x}", "subscribeRule": "", "history": 10})
	auxSQL(t, app, tablesOne...)
	auxSQL(t, app, more...)
	return app
}

func oldMessage(topic string, position int, data string) string {
	return "INSERT INTO _topicsMessages VALUES ('" + topic + "', " + strconv.Itoa(position) + ", 'e1', " +
		strconv.FormatInt(time.Now().UnixNano(), 10) + ", '', '', '', '" + data + "')"
}

// The tables of version 1 are upgraded in place, after a clean stop and after
// another.
func TestTablesOfVersionOne(t *testing.T) {
	for name, want := range map[string]string{"clean": "ready 3 4 5 recovered", "unclean": "ready 3 4 gap(epoch) 5"} {
		t.Run(name, func(t *testing.T) {
			position := topics.PositionID("a/1", "r")
			expires := strconv.FormatInt(time.Now().Add(time.Hour).UnixNano(), 10)
			app := oldTables(
				t,
				oldMessage("a/1", 2, "2"), oldMessage("a/1", 3, "3"), oldMessage("a/1", 4, "4"), oldMessage("a/2", 1, "1"),
				"INSERT INTO _topicsLogs VALUES ('a/1', 'e1', "+map[string]string{"clean": "4", "unclean": "2"}[name]+"), ('a/3', 'e0', 7)",
				"INSERT INTO _topicsState VALUES ('stop', '"+name+"')",
				"INSERT INTO _topicsPositions VALUES ('"+position+"', 'e1', 2, "+expires+")",
			)
			s := serve(t, app)
			require.Equal(t, []string{"2", "3", "4"}, historyOf(t, app, "a/1"))
			require.Equal(t, []string{"1"}, historyOf(t, app, "a/2"))
			require.Empty(t, historyOf(t, app, "a/3"))
			notifyAll(t, app, "a/1", 5, 5)
			c := s.connect()
			c.mustSubscribe("", key("a/1", map[string]any{"resume": "r"}))
			require.Equal(t, want, story(t, c.drain()))

			// and stay so
			topics.SettleHistory(app)
			app, _ = restart(t, app, topics.Config{}, true)
			require.Len(t, historyOf(t, app, "a/1"), 4)
		})
	}
}

// Tables that this program cannot write are found at the start, not at each
// commit.
func TestTablesThatDoNotFit(t *testing.T) {
	for name, statement := range map[string]string{
		"of a newer version":         "INSERT INTO _topicsState VALUES ('version', '99')",
		"of no version":              "INSERT INTO _topicsState VALUES ('version', 'x')",
		"a column without a default": "ALTER TABLE _topicsMessages DROP COLUMN sender",
		"a table of somebody else":   "CREATE TABLE _topicsMembers (x INTEGER)",
	} {
		t.Run(name, func(t *testing.T) {
			app := oldTables(t, oldMessage("a/1", 1, "1"), statement)
			require.Zero(t, logged(t, app, "Failed to open the histories of topics"))
			serve(t, app)
			require.Equal(t, 1, logged(t, app, "Failed to open the histories of topics"))

			// in memory it goes on, and the tables are as they were
			notifyAll(t, app, "a/1", 2, 2)
			require.Equal(t, []string{"2"}, historyOf(t, app, "a/1"))
			var count int
			require.NoError(t, app.AuxDB().NewQuery("SELECT count(*) FROM _topicsMessages").Row(&count))
			require.Equal(t, 1, count)
			require.Zero(t, logged(t, app, "Failed to write the history of topics"))
		})
	}
}
