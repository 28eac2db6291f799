package topics_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"
	"github.com/stretchr/testify/require"

	"github.com/pbtopics/topics"
)

// parsed are the plugin's own files.
func parsed(t testing.TB) []*ast.File {
	t.Helper()

	var files []*ast.File
	for _, pattern := range []string{"*.go", "migrations/*.go"} {
		paths, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			files = append(files, file)
		}
	}
	return files
}

var (
	code     = regexp.MustCompile(`^[a-z]+(_[a-z]+)+$`)
	sentinel = regexp.MustCompile(`^Err[A-Z]`)
)

// documentedCodes finds the codes of the plugin: the constants whose name is
// or begins with "code", what validation.NewError is given, and the exported
// errors.
func documentedCodes(t testing.TB) []string {
	t.Helper()

	found := map[string]bool{}
	add := func(e ast.Expr) {
		if text, ok := literal(e); ok && code.MatchString(text) {
			found[text] = true
		}
	}
	for _, file := range parsed(t) {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, name := range n.Names {
					if sentinel.MatchString(name.Name) {
						found[name.Name] = true
					}
					if strings.HasPrefix(name.Name, "code") && i < len(n.Values) {
						add(n.Values[i])
					}
				}
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "NewError" {
					add(n.Args[0])
				}
			}
			return true
		})
	}
	return slices.Sorted(maps.Keys(found))
}

func literal(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			text, err := strconv.Unquote(e.Value)
			return text, err == nil
		}
	case *ast.BinaryExpr: // its beginning
		return literal(e.X)
	}
	return "", false
}

const errorsPage = "docs/errors.md"

func TestDocsHaveEveryCode(t *testing.T) {
	var headings []string
	for _, h := range readPage(t, errorsPage).all {
		require.Regexp(t, "^`[a-zA-Z_]+`$", h.text, "only codes have headings of level 3")
		headings = append(headings, strings.Trim(h.text, "`"))
	}
	codes := documentedCodes(t)
	require.GreaterOrEqual(t, len(codes), 25)
	require.ElementsMatch(t, codes, headings)
}

// Each page of a code says when it comes and what to do.
func TestDocsOfCodesSayWhatToDo(t *testing.T) {
	text := readPage(t, errorsPage).text
	for _, code := range documentedCodes(t) {
		_, after, found := strings.Cut(text, "\n### `"+code+"`\n")
		require.True(t, found, code)
		after, _, _ = strings.Cut(after, "\n#")
		require.Contains(t, after, "- **When:** ", code)
		require.Contains(t, after, "- **Do:** ", code)
	}
}

func TestDocsHaveEveryLogLine(t *testing.T) {
	text := readPage(t, errorsPage).text
	lines := 0
	for _, file := range parsed(t) {
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 || !isLogCall(call.Fun) {
				return true
			}
			message, ok := literal(call.Args[0])
			require.True(t, ok, "a log message begins with a literal")
			require.Contains(t, text, "`"+message, "docs/errors.md has each log line")
			lines++
			return true
		})
	}
	require.GreaterOrEqual(t, lines, 10)
}

// isLogCall finds x.Logger().Level(...) and a call of such a method value that
// is called log.
func isLogCall(f ast.Expr) bool {
	switch f := f.(type) {
	case *ast.Ident:
		return f.Name == "log"
	case *ast.SelectorExpr:
		call, ok := f.X.(*ast.CallExpr)
		if !ok {
			return false
		}
		logger, ok := call.Fun.(*ast.SelectorExpr)
		return ok && logger.Sel.Name == "Logger"
	}
	return false
}

func TestREADMEHasEveryField(t *testing.T) {
	readme := readPage(t, "README.md")

	var fields []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[topics.Config]()) {
		fields = append(fields, f.Name)
	}
	require.ElementsMatch(t, fields, readme.firstCells("Config"))

	app := newApp(t, topics.Config{})
	collection, err := app.FindCollectionByNameOrId("_topics")
	require.NoError(t, err)
	names := collection.Fields.FieldNames()
	require.ElementsMatch(t, names[1:], readme.firstCells("Topic rules"), "all but the id")
}

// The record in the README can be saved as it is.
func TestREADMERecord(t *testing.T) {
	d := newRulesDoc(t, seedRulesDocs(t))
	d.rooms()
	for _, b := range readPage(t, "README.md").code {
		if b.language == "json" {
			require.NoError(t, json.Unmarshal([]byte(b.text), &d.fields))
		}
	}
	room := d.record("rooms", map[string]any{"members": []string{d.id["ann"]}})
	d.subscribe("room/"+room, "ann")
	d.publish("room/"+room, 1)
}

var (
	link   = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	spaces = regexp.MustCompile(`[^a-z0-9_ -]`)
)

// anchor is what a heading is linked by.
func anchor(heading string) string {
	return strings.ReplaceAll(spaces.ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

func TestDocsLinks(t *testing.T) {
	pages := map[string][]string{}
	for _, p := range readPages(t) {
		anchors := []string{""}
		for line := range strings.Lines(p.text) {
			if heading, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && line[0] == '#' {
				anchors = append(anchors, anchor(strings.TrimSpace(heading)))
			}
		}
		pages[p.path] = anchors
	}

	for _, p := range readPages(t) {
		for _, match := range link.FindAllStringSubmatch(p.text, -1) {
			target, fragment, _ := strings.Cut(match[1], "#")
			if strings.HasPrefix(target, "https:") {
				continue
			}
			path := p.path
			if target != "" {
				path = filepath.Join(filepath.Dir(p.path), target)
			}
			require.FileExists(t, path, "%s links to %s", p.path, match[1])
			if fragment != "" {
				require.Contains(t, pages[path], fragment, "%s links to %s", p.path, match[1])
			}
		}
	}
}

const recoveryPage = "docs/recovery.md"

// The page has each reason of a gap, and each limit with its default.
func TestDocsOfRecovery(t *testing.T) {
	page := readPage(t, recoveryPage)

	reasons := map[string]bool{}
	for _, file := range parsed(t) {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) == 0 || !regexp.MustCompile(`^gap[A-Z]`).MatchString(spec.Names[0].Name) {
				return true
			}
			if text, ok := literal(spec.Values[0]); ok {
				reasons[text] = true
			}
			return true
		})
	}
	require.GreaterOrEqual(t, len(reasons), 4)
	cells := page.firstCells("Gaps")
	for reason := range reasons {
		require.Contains(t, cells, reason)
	}

	// the README says the same of the limits
	readme := readPage(t, "README.md")
	for _, field := range page.firstCells("Keeping a history")[2:] {
		require.Equal(t, secondCell(t, readme, field), secondCell(t, page, field), field)
	}
}

const operatingPage = "docs/operating.md"

// What the page says brings the collection back: with and without a restart,
// and where the name was taken.
func TestDocsBringTheCollectionBack(t *testing.T) {
	page := readPage(t, operatingPage)
	exported := page.blocks("The collection's JSON", "", "json")[0].text

	bringBack := func(t *testing.T, app *tests.TestApp, s *server) (*tests.TestApp, *server) {
		body := `{"deleteMissing":false,"collections":` + exported + `}`
		r := s.request(http.MethodPut, "/api/collections/import", newSuperuser(t, app), body)
		require.Equal(t, 204, r.status, r.body)
		return app, s
	}
	startAgain := func(t *testing.T, app *tests.TestApp, _ *server) (*tests.TestApp, *server) {
		return restart(t, app, topics.Config{}, false)
	}
	// a collection like the migration's, without its times
	shape := func(t *testing.T, app core.App) string {
		collection, err := app.FindCollectionByNameOrId("_pb_topics_")
		require.NoError(t, err)
		raw, err := json.Marshal(collection)
		require.NoError(t, err)
		var fields map[string]any
		require.NoError(t, json.Unmarshal(raw, &fields))
		delete(fields, "created")
		delete(fields, "updated")
		raw, err = json.Marshal(fields)
		require.NoError(t, err)
		return string(raw)
	}

	for name, repair := range map[string]func(*testing.T, *tests.TestApp, *server) (*tests.TestApp, *server){"restart": startAgain, "import": bringBack} {
		t.Run(name, func(t *testing.T) {
			app := newApp(t, topics.Config{})
			s := serve(t, app)
			before := shape(t, app)
			define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
			c := s.connect()
			c.allow("", "a")

			remove(t, app, "_topics")
			c.deny("", "a", "topic_unknown")
			require.NoError(t, app.RunAllMigrations())
			c.deny("", "a", "topic_unknown")

			app, s = repair(t, app, s)
			require.JSONEq(t, before, shape(t, app))
			c = s.connect()
			c.deny("", "a", "topic_unknown")
			define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
			c.allow("", "a")
		})

		t.Run(name+" where the name is taken", func(t *testing.T) {
			app := newApp(t, topics.Config{})
			s := serve(t, app)
			before := shape(t, app)
			remove(t, app, "_topics")
			newCollection(t, app, "_topics")
			require.NoError(t, app.RunAllMigrations())
			_, err := app.FindCollectionByNameOrId("_pb_topics_")
			require.Error(t, err)

			rename(t, app, "_topics", "mine")
			app, s = repair(t, app, s)
			require.JSONEq(t, before, shape(t, app))
			define(t, app, map[string]any{"pattern": "a", "subscribeRule": ""})
			s.connect().allow("", "a")
		})
	}
}
