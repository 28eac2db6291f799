package topics

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"github.com/stretchr/testify/require"
)

// PocketBase does not tell the end of a transaction that has panicked. Whatever
// panics, and wherever: nothing is left of it, and later writes of the row
// touch the grants of its values only.
func TestAPanicInAWriteLeavesNothing(t *testing.T) {
	for name, write := range map[string]func(app core.App, m *core.Record, boom func()) error{
		"transaction": func(app core.App, m *core.Record, _ func()) error {
			return app.RunInTransaction(func(tx core.App) error {
				if err := tx.Save(m); err != nil {
					return err
				}
				panic("transaction")
			})
		},
		"transaction with a message": func(app core.App, _ *core.Record, _ func()) error {
			return app.RunInTransaction(func(tx core.App) error {
				for range 3 {
					if err := Notify(tx, "room/1", "lost"); err != nil {
						return err
					}
				}
				panic("transaction")
			})
		},
		"nested": func(app core.App, m *core.Record, _ func()) error {
			return app.RunInTransaction(func(tx core.App) error {
				return tx.RunInTransaction(func(tx core.App) error {
					if err := tx.Save(m); err != nil {
						return err
					}
					panic("nested")
				})
			})
		},
		"recovered inside, committed": func(app core.App, m *core.Record, boom func()) error {
			return app.RunInTransaction(func(tx core.App) error {
				boom()
				_ = recovered(func() { _ = tx.Save(m) })
				return nil
			})
		},
		"hook in a transaction": func(app core.App, m *core.Record, boom func()) error {
			return app.RunInTransaction(func(tx core.App) error {
				boom()
				return tx.Save(m)
			})
		},
		"hook": func(app core.App, m *core.Record, boom func()) error {
			boom()
			return app.Save(m)
		},
		"hook of a deletion": func(app core.App, m *core.Record, boom func()) error {
			boom()
			return app.Delete(m)
		},
	} {
		t.Run(name, func(t *testing.T) {
			app, p := newReadsApp(t)
			saveRules(t, app, []shapedRule{{text: "@collection.memberships.user ?= @request.auth.id"}})
			d := newDice(t, app, newRand(t))
			users := d.records("users")
			m := core.NewRecord(mustFind(t, app, "memberships"))
			m.Set("user", users[0].Id)
			require.NoError(t, app.Save(m))

			var grants []*grant
			for _, user := range users[:2] {
				g := p.grants.acquire(app, actionSubscribe, "r0/x", subscriptions.SubscriptionOptions{}, credentialsFor(user))
				p.decideGrant(g)
				grants = append(grants, g)
			}
			touched := func(write func()) (list []bool) {
				before := []uint64{grants[0].marked.Load(), grants[1].marked.Load()}
				write()
				for i, g := range grants {
					list = append(list, g.marked.Load() != before[i])
				}
				return list
			}
			save := func() { m.Set("role", m.GetString("role")+"x"); require.NoError(t, app.Save(m)) }
			require.Equal(t, []bool{true, false}, touched(save))

			// inside of ours, after the write
			exploding := false
			for _, h := range []*hook.Hook[*core.ModelEvent]{app.OnModelUpdateExecute().Hook, app.OnModelDeleteExecute().Hook} {
				h.Bind(&hook.Handler[*core.ModelEvent]{Priority: last, Func: func(e *core.ModelEvent) error {
					err := e.Next()
					if exploding {
						exploding = false
						panic("hook")
					}
					return err
				}})
			}
			require.NotPanics(t, func() {
				require.Error(t, recoveredOr(func() error { return write(app, m, func() { exploding = true }) }, name))
			})

			if name == "hook of a deletion" { // which was rolled back
				m, _ = app.FindRecordById("memberships", m.Id)
			}
			require.Eventually(t, func() bool {
				runtime.GC()
				p.writes.mu.Lock()
				p.commits.mu.Lock()
				defer p.writes.mu.Unlock()
				defer p.commits.mu.Unlock()
				return len(p.writes.inFlight)+len(p.writes.waiting)+len(p.commits.lines) == 0
			}, 10*time.Second, 5*time.Millisecond)
			require.Eventually(t, func() bool { // once the last report is over
				return slices.Equal([]bool{true, false}, touched(save))
			}, 10*time.Second, time.Millisecond, "later writes are exact")
		})
	}
}

// recoveredOr returns the error or panic of f. A transaction that is committed
// has neither.
func recoveredOr(f func() error, name string) (err error) {
	if panicked := recovered(func() { err = f() }); panicked != nil {
		return panicked
	}
	if err == nil && name == "recovered inside, committed" {
		return errPanicked
	}
	return err
}

// A write that panics after it was made, and is committed all the same, counts.
func TestAWriteCountsThoughItPanics(t *testing.T) {
	for _, inTransaction := range []bool{false, true} {
		app, p := newReadsApp(t)
		saveRules(t, app, []shapedRule{{text: "@collection.memberships.user ?= @request.auth.id"}})
		user := newDice(t, app, newRand(t)).records("users")[0]
		_, err := app.DB().NewQuery("DELETE FROM memberships").Execute()
		require.NoError(t, err)
		m := core.NewRecord(mustFind(t, app, "memberships"))
		m.Set("user", user.Id)
		require.NoError(t, app.Save(m))
		g := p.grants.acquire(app, actionSubscribe, "r0/x", subscriptions.SubscriptionOptions{}, credentialsFor(user))
		require.Nil(t, p.decideGrant(g).denial)
		before := g.marked.Load()

		app.OnModelUpdateExecute().Bind(&hook.Handler[*core.ModelEvent]{Priority: last, Func: func(e *core.ModelEvent) error {
			if err := e.Next(); err != nil {
				return err
			}
			panic("hook")
		}})
		m.Set("user", "")
		if inTransaction {
			require.NoError(t, app.RunInTransaction(func(tx core.App) error {
				_ = recovered(func() { _ = tx.Save(m) })
				return nil
			}))
		} else {
			require.Panics(t, func() { _ = app.Save(m) })
		}
		require.NotEqual(t, before, g.marked.Load())
		require.NotNil(t, p.decideGrant(g).denial)
	}
}
