package topics

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/stretchr/testify/require"
)

// newDashboardMux returns the routes of an app whose extensions are ext and
// then those that bindDashboard adds.
func newDashboardMux(t *testing.T, ext ...core.UIExtension) http.Handler {
	t.Helper()

	app, err := tests.NewTestApp()
	require.NoError(t, err)
	t.Cleanup(app.Cleanup)

	router, err := apis.NewRouter(app)
	require.NoError(t, err)

	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		e.UIExtensions = append(e.UIExtensions, ext...)
		bindDashboard(e)
		return e.Next()
	})

	var mux http.Handler
	err = app.OnServe().Trigger(&core.ServeEvent{App: app, Router: router}, func(e *core.ServeEvent) error {
		var err error
		mux, err = e.Router.BuildMux()
		return err
	})
	require.NoError(t, err)

	return mux
}

func dashboardGet(mux http.Handler, path string) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	mux.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
	return rec
}

func TestDashboardScript(t *testing.T) {
	script, err := fs.ReadFile(dashboardFiles, "dashboard/main.js")
	require.NoError(t, err)

	// core appends "})();" to the last line, which must not be a comment
	require.True(t, strings.HasSuffix(string(script), "\n"))

	other := core.UIExtension{Name: "other", FS: fstest.MapFS{
		"main.js": {Data: []byte("otherExtension();\n")},
	}}
	mux := newDashboardMux(t, other)

	rec := dashboardGet(mux, "/_/extensions.js")
	require.Equal(t, http.StatusOK, rec.Code)
	require.Contains(t, rec.Body.String(), string(script))
	require.Contains(t, rec.Body.String(), "otherExtension();")

	rec = dashboardGet(mux, "/_/extensions/topics/main.js")
	require.Equal(t, http.StatusOK, rec.Code)
	require.Equal(t, string(script), rec.Body.String())
}

func TestDashboardCacheControl(t *testing.T) {
	other := core.UIExtension{Name: "other", FS: fstest.MapFS{
		"main.js": {Data: []byte("\n")},
	}}
	mux := newDashboardMux(t, other)

	for path, expected := range map[string]string{
		"/_/extensions.js":             "no-cache",
		"/_/extensions/topics/main.js": "no-cache",
		"/_/extensions/topics/missing": "no-cache",
		"/_/extensions/other/main.js":  "max-age=1209600, stale-while-revalidate=86400",
		"/api/health":                  "",
	} {
		t.Run(path, func(t *testing.T) {
			require.Equal(t, expected, dashboardGet(mux, path).Header().Get("Cache-Control"))
		})
	}
}

func TestDashboardReplacedByApp(t *testing.T) {
	own := core.UIExtension{Name: "topics", FS: fstest.MapFS{
		"main.js": {Data: []byte("ownExtension();\n")},
	}}
	mux := newDashboardMux(t, own)

	rec := dashboardGet(mux, "/_/extensions.js")
	require.Equal(t, http.StatusOK, rec.Code)
	require.Equal(t, "await (async function(){ownExtension();\n})();", rec.Body.String())
	require.Equal(t, "no-cache", rec.Header().Get("Cache-Control"))
}

func TestDashboardCacheUnbind(t *testing.T) {
	app, err := tests.NewTestApp()
	require.NoError(t, err)
	t.Cleanup(app.Cleanup)

	router, err := apis.NewRouter(app)
	require.NoError(t, err)

	bindDashboard(&core.ServeEvent{App: app, Router: router})

	isOurs := func(m *hook.Handler[*core.RequestEvent]) bool { return m.Id == dashboardCacheID }
	require.True(t, slices.ContainsFunc(router.Middlewares, isOurs))
	router.Unbind(dashboardCacheID)
	require.False(t, slices.ContainsFunc(router.Middlewares, isOurs))
}

func TestIsDashboardExtensionPath(t *testing.T) {
	for path, expected := range map[string]bool{
		"/_/extensions.js":               true,
		"/_/extensions/topics/":          true,
		"/_/extensions/topics/main.js":   true,
		"/_/extensions/topics/a/b.css":   true,
		"/_/extensions/topics":           false,
		"/_/extensions/topicsother/a.js": false,
		"/_/extensions/other/main.js":    false,
		"/_/extensions.json":             false,
		"/_/index.js":                    false,
		"/_/":                            false,
		"/":                              false,
		"/api/_/extensions/topics/xx.js": false,
	} {
		require.Equal(t, expected, isDashboardExtensionPath(path), path)
	}
}
