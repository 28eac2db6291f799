package topics_test

import (
	"encoding/json"
	"fmt"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// imports are what a block of Go that is not a whole file may use.
var imports = map[string]string{
	"apis":   "github.com/pocketbase/pocketbase/apis",
	"core":   "github.com/pocketbase/pocketbase/core",
	"errors": "errors",
	"time":   "time",
	"topics": "github.com/pbtopics/topics",
	"types":  "github.com/pocketbase/pocketbase/tools/types",
}

var declaration = regexp.MustCompile(`(?m)^(\w+)(?:, err)? :=`)

// goFile makes a Go file of a block: what is no file becomes declarations, or
// the body of a function with the parameters that the pages use.
func (b block) goFile() string {
	line := fmt.Sprintf("//line %s:%d\n", b.page, b.line+1)
	if program, ok := strings.CutPrefix(b.text, "package main\n"); ok {
		return line + "package snippet\n" + program + "\n" // compiled, but not linked
	}

	var file strings.Builder
	fmt.Fprintln(&file, "package snippet")
	body := line + b.text + "\n"
	if !strings.HasPrefix(b.text, "func ") {
		for _, match := range declaration.FindAllStringSubmatch(b.text, -1) {
			body += "_ = " + match[1] + "\n"
		}
		body = "func _(app core.App, e *core.RequestEvent, record *core.Record, topic string, data any) error {\n" + body + "return nil\n}\n"
	}
	for name, path := range imports {
		if regexp.MustCompile(`\b` + name + `\.`).MatchString(body) {
			fmt.Fprintf(&file, "import %q\n", path)
		}
	}
	return file.String() + body
}

// Every block of Go compiles.
func TestDocsGoCompiles(t *testing.T) {
	root, err := os.Getwd()
	require.NoError(t, err)
	dir := t.TempDir()

	// the packages exist in the overlay only, so that they are in this module
	// without writing to its folder
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	args := []string{"build", "-overlay=" + filepath.Join(dir, "overlay.json")}
	if raceEnabled() {
		args = append(args, "-race") // then PocketBase is compiled already
	}

	inPage := map[string]int{}
	for _, p := range readPages(t) {
		for _, b := range p.code {
			if b.language != "go" {
				continue
			}
			inPage[p.path]++
			formatted, err := format.Source([]byte(b.text))
			require.NoError(t, err, "%s:%d", b.page, b.line)
			require.Equal(t, strings.TrimSpace(string(formatted)), b.text, "%s:%d is not formatted", b.page, b.line)

			name := strconv.Itoa(len(overlay.Replace))
			file := filepath.Join(dir, name+".go")
			require.NoError(t, os.WriteFile(file, []byte(b.goFile()), 0o600))
			overlay.Replace[filepath.Join(root, "docs_snippets", name, "main.go")] = file
			args = append(args, "./docs_snippets/"+name)
		}
	}
	for path, least := range map[string]int{"README.md": 5, "docs/messages.md": 1, recoveryPage: 2, "docs/presence.md": 3} {
		require.GreaterOrEqual(t, inPage[path], least, path)
	}

	raw, err := json.Marshal(overlay)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), raw, 0o600))

	out, err := exec.Command("go", args...).CombinedOutput()
	require.NoError(t, err, string(out))
}

func raceEnabled() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
