package topics

import (
	"errors"
	"fmt"
	"runtime/debug"
)

var errPanicked = errors.New("topics: recovered from a panic")

// recovered runs f and returns a panic of it as an error.
func recovered(f func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v\n%s", errPanicked, r, debug.Stack())
		}
	}()

	f()
	return nil
}

// guard keeps a panic, of the app's code or of a driver or our own, from ending
// the process: it ends the unit of work of a goroutine, and is logged.
type guard struct {
	report func(doing string, err error)
}

// run runs f. A nil guard recovers nothing.
func (g *guard) run(doing string, f func()) error {
	if g == nil {
		f()
		return nil
	}

	err := recovered(f)
	if err != nil {
		_ = recovered(func() { g.report(doing, err) }) // the log may be what panics
	}
	return err
}

// logPanic is the report of the plugin's guard.
func (p *Plugin) logPanic(doing string, err error) {
	if p.logs.allow(codePanic + " " + doing) {
		p.outerApp().Logger().Error("Recovered from a panic in the topics plugin", "code", codePanic, "while", doing, "error", err.Error())
	}
}
