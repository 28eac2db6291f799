package main

import (
	"embed"
	"io/fs"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
)

//go:embed public
var publicFiles embed.FS

// bindPage serves the files of the public folder, with index.html at "/".
func bindPage(app core.App) {
	public, err := fs.Sub(publicFiles, "public")
	if err != nil {
		panic(err) // only if the embedded folder is renamed
	}

	app.OnServe().BindFunc(func(se *core.ServeEvent) error {
		se.Router.GET("/{path...}", apis.Static(public, false)).BindFunc(pageHeaders)

		return se.Next()
	})
}

// pageHeaders keeps the page to its own files: no inline scripts, no other hosts.
func pageHeaders(e *core.RequestEvent) error {
	header := e.Response.Header()
	header.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cache-Control", "no-cache")

	return e.Next()
}
