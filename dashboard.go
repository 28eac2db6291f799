package topics

import (
	"embed"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
)

const (
	// dashboardExtension is the name of the dashboard extension, and so a
	// segment of the paths that its files are served under.
	dashboardExtension = "topics"

	// dashboardCacheID is the id of the middleware of [bindDashboard], so that
	// an app can take it off its router with Unbind.
	dashboardCacheID = "topicsDashboardCache"
)

//go:embed dashboard
var dashboardFiles embed.FS

// bindDashboard adds the extension that shows the rules of topic records in
// the dashboard as PocketBase's rule field instead of as JSON.
//
// It must be called from an OnServe hook before e.Next(), because core
// registers the routes of the extensions at the end of that hook's chain.
//
// It does nothing to the extensions if the app already has one of the same
// name, so an app can replace ours; a second route for the name would panic.
// In a build without dashboard (tag no_ui) core ignores the extensions.
//
// The answers with extension code are sent with "Cache-Control: no-cache".
// This includes the main.js of all other extensions, because core serves them
// all as one file.
func bindDashboard(e *core.ServeEvent) {
	taken := slices.ContainsFunc(e.UIExtensions, func(ext core.UIExtension) bool {
		return ext.Name == dashboardExtension
	})
	if !taken {
		e.UIExtensions = append(e.UIExtensions, core.UIExtension{
			Name: dashboardExtension,
			FS:   apis.MustSubFS(dashboardFiles, "dashboard"),
		})
	}

	e.Router.Bind(&hook.Handler[*core.RequestEvent]{
		Id: dashboardCacheID,
		Func: func(re *core.RequestEvent) error {
			if isDashboardExtensionPath(re.Request.URL.Path) {
				// Core sets a max-age of 14 days unless there is a value already,
				// and the file names have no version: after an update of the app,
				// browsers would run the old code against the new server.
				re.Response.Header().Set("Cache-Control", "no-cache")
			}

			return re.Next()
		},
	})
}

// isDashboardExtensionPath tells whether path is the combined script of all
// extensions or a file of ours. It runs on every request of the app.
func isDashboardExtensionPath(path string) bool {
	rest, ok := strings.CutPrefix(path, "/_/extensions")

	return ok && (rest == ".js" || strings.HasPrefix(rest, "/"+dashboardExtension+"/"))
}
