// Command coresuite runs PocketBase's own realtime tests twice on a copy of the
// PocketBase version in go.mod: as they are, and with the plugin registered in
// every test app. It fails if a test that passes without the plugin does not
// pass with it.
//
//	go run ./coresuite -race  # the realtime tests: must not change
//	go run ./coresuite -all   # all API tests: shows what changes
//
// The plugin allows unknown topics here, because PocketBase's tests subscribe
// to names of their own, such as "test1".
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	pocketbase = "github.com/pocketbase/pocketbase"
	plugin     = "github.com/pbtopics/topics"
)

func main() {
	modfile := flag.String("modfile", "go.mod", "the go.mod `file` that says which PocketBase to test")
	race := flag.Bool("race", false, "run the tests with the race detector")
	all := flag.Bool("all", false, "run all tests of PocketBase's API, not only the realtime ones")
	flag.Parse()

	if err := run(*modfile, *race, *all); err != nil {
		fmt.Fprintln(os.Stderr, "coresuite:", err)
		os.Exit(1)
	}
}

func run(modfile string, race, all bool) error {
	dir, err := os.MkdirTemp("", "topics-coresuite-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	s := suite{race: race, all: all, modfile: filepath.Join(dir, "core.mod")}
	core := filepath.Join(dir, "pocketbase")

	version, err := s.prepare(modfile, core)
	if err != nil {
		return err
	}
	fmt.Println("PocketBase", version)

	without, err := s.test("without the plugin")
	if err != nil {
		return err
	}
	if err := register(filepath.Join(core, "tests", "app.go")); err != nil {
		return err
	}
	with, err := s.test("with the plugin")
	if err != nil {
		return err
	}

	return compare(without, with)
}

// suite is a set of PocketBase's tests, run against the copy that modfile names.
type suite struct {
	modfile string
	race    bool
	all     bool
}

// prepare copies PocketBase's module to core, and writes s.modfile: modfile
// with that copy in PocketBase's place.
func (s *suite) prepare(modfile, core string) (version string, err error) {
	out, err := exec.Command("go", "list", "-modfile="+modfile, "-m", "-f", "{{.Version}}\n{{.Dir}}", pocketbase).Output()
	if err != nil {
		return "", failed("go list", err)
	}
	version, source, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if source == "" {
		return "", errors.New("PocketBase is not downloaded; run go mod download first")
	}
	if err := os.CopyFS(core, os.DirFS(source)); err != nil {
		return "", err
	}

	for from, to := range map[string]string{modfile: s.modfile, sumOf(modfile): sumOf(s.modfile)} {
		content, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(to, content, 0o600); err != nil {
			return "", err
		}
	}
	if _, err := exec.Command("go", "mod", "edit", "-replace="+pocketbase+"="+core, s.modfile).Output(); err != nil {
		return "", failed("go mod edit", err)
	}

	return version, nil
}

// sumOf returns the go.sum that belongs to a go.mod.
func sumOf(modfile string) string {
	return strings.TrimSuffix(modfile, ".mod") + ".sum"
}

// register makes every app that PocketBase's tests create register the plugin.
func register(file string) error {
	source, err := os.ReadFile(file)
	if err != nil {
		return err
	}

	const imports, result = "import (\n", "\n\treturn t, nil\n}\n"
	head, body, ok := strings.Cut(string(source), "\nfunc NewTestAppWithConfig(")
	if !ok || strings.Count(head, imports) != 1 || strings.Count(body, result) != 1 {
		return fmt.Errorf("%s is not as expected: adapt register to this PocketBase", filepath.Base(file))
	}
	head = strings.Replace(head, imports, imports+"\t\""+plugin+"\"\n", 1)
	body = strings.Replace(body, result, "\n\ttopics.MustRegister(t, topics.Config{AllowUnknown: true})\n"+result, 1)

	return os.WriteFile(file, []byte(head+"\nfunc NewTestAppWithConfig("+body), 0o600)
}

// results maps each test that ran to how it ended.
type results map[string]result

type result struct {
	action string // pass, fail or skip; empty if the test binary died first
	output string
}

// test runs the suite. Failed tests are no error, as some may fail without the plugin too.
func (s *suite) test(label string) (results, error) {
	start := time.Now()
	found := results{}

	// -mod=mod adds sums of modules that only PocketBase's tests need
	args := []string{"test", "-json", "-modfile=" + s.modfile, "-mod=mod", "-count=1", "-timeout=20m"}
	if s.race {
		args = append(args, "-race")
	}
	api := []string{pocketbase + "/apis"}
	if !s.all {
		api = append(api, "-run=Realtime", "-timeout=5m")
	}
	for _, target := range [][]string{api, {pocketbase + "/tools/subscriptions"}} {
		if err := goTest(append(slices.Clone(args), target...), found); err != nil {
			return nil, fmt.Errorf("%s: %w", label, err)
		}
	}

	counts := map[string]int{}
	for _, r := range found {
		counts[r.action]++
	}
	fmt.Printf("%-20s %4d tests passed, %d failed, %d skipped, %d without an end, in %s\n",
		label+":", counts["pass"], counts["fail"], counts["skip"], counts[""], time.Since(start).Round(time.Second))

	return found, nil
}

// goTest adds the tests that one go test command ran to found. No test at all is an error.
func goTest(args []string, found results) error {
	cmd := exec.Command("go", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runErr := cmd.Run()

	ran := false
	var rest strings.Builder // output that belongs to no test: a build that failed, a panic
	for dec := json.NewDecoder(&stdout); ; {
		var event struct{ Action, Package, Test, Output string }
		if err := dec.Decode(&event); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
		}
		if event.Test == "" {
			rest.WriteString(event.Output)
			continue
		}

		ran = true
		name := strings.TrimPrefix(event.Package, pocketbase+"/") + " " + event.Test
		r := found[name]
		r.output += event.Output
		if event.Action == "pass" || event.Action == "fail" || event.Action == "skip" {
			r.action = event.Action
		}
		found[name] = r
	}
	if !ran {
		return fmt.Errorf("go %s ran no test (%v)\n%s%s", strings.Join(args, " "), runErr, rest.String(), stderr.String())
	}

	return nil
}

// compare fails if a test passed without the plugin and did not pass with it.
func compare(without, with results) error {
	var worse []string
	for name, before := range without {
		switch after := with[name]; {
		case before.action == "pass" && after.action != "pass":
			worse = append(worse, name)
		case before.action != "pass":
			fmt.Printf("without the plugin: %q %s; with it: %q\n", before.action, name, after.action)
		}
	}
	if len(worse) == 0 {
		fmt.Println("every test that passes without the plugin passes with it")
		return nil
	}

	slices.Sort(worse)
	for _, name := range worse {
		fmt.Printf("\npassed without the plugin, %q with it: %s\n%s", with[name].action, name, with[name].output)
	}

	return fmt.Errorf("%d tests that pass without the plugin do not pass with it", len(worse))
}

// failed adds what a command said on stderr to its error.
func failed(command string, err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%s: %w\n%s", command, err, exit.Stderr)
	}

	return fmt.Errorf("%s: %w", command, err)
}
