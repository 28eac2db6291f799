package topics_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// page is a page of the documentation.
type page struct {
	path string
	text string
	code []block
	all  []heading
}

// heading is one of level 3, below one of level 2.
type heading struct{ section, text string }

// block is a fenced block of a page.
type block struct {
	page     string
	line     int
	section  string // the last heading of level 2
	heading  string // the last heading of level 3 below it
	language string
	text     string
}

var fence = regexp.MustCompile("^```(\\w*)$")

func readPage(t testing.TB, path string) page {
	t.Helper()

	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	p := page{path: path, text: string(raw)}

	var (
		at   block
		open bool
	)
	for i, line := range strings.Split(p.text, "\n") {
		switch {
		case open && line == "```":
			at.text = strings.TrimSuffix(at.text, "\n")
			p.code = append(p.code, at)
			open = false
		case open:
			at.text += line + "\n"
		case fence.MatchString(line):
			at.page, at.line, at.language, at.text = path, i+1, fence.FindStringSubmatch(line)[1], ""
			open = true
		case strings.HasPrefix(line, "## "):
			at.section, at.heading = line[3:], ""
		case strings.HasPrefix(line, "### "):
			at.heading = line[4:]
			p.all = append(p.all, heading{at.section, at.heading})
		}
	}
	require.False(t, open, "%s: a block does not end", path)

	return p
}

// headings are those of level 3 in a section.
func (p page) headings(section string) []string {
	var found []string
	for _, h := range p.all {
		if h.section == section {
			found = append(found, h.text)
		}
	}
	return found
}

func (p page) blocks(section, heading, language string) []block {
	var found []block
	for _, b := range p.code {
		if b.section == section && b.heading == heading && b.language == language {
			found = append(found, b)
		}
	}
	return found
}

func readPages(t testing.TB) []page {
	t.Helper()

	paths, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)

	var pages []page
	for _, path := range append(paths, "README.md") {
		pages = append(pages, readPage(t, path))
	}
	return pages
}

var (
	firstCell = regexp.MustCompile("(?m)^\\| ((?:`\\w+`(?:, )?)+) \\|")
	quoted    = regexp.MustCompile("`(\\w+)`")
)

// firstCells are the quoted words in the first column of the tables of a
// section.
func (p page) firstCells(section string) []string {
	_, text, _ := strings.Cut(p.text, "\n## "+section+"\n")
	text, _, _ = strings.Cut(text, "\n## ")

	var words []string
	for _, row := range firstCell.FindAllStringSubmatch(text, -1) {
		for _, word := range quoted.FindAllStringSubmatch(row[1], -1) {
			words = append(words, word[1])
		}
	}
	return words
}

// secondCell is what comes beside a quoted word in a table.
func secondCell(t testing.TB, p page, word string) string {
	t.Helper()
	_, after, found := strings.Cut(p.text, "\n| `"+word+"` | ")
	require.True(t, found, "%s: %s", p.path, word)
	cell, _, _ := strings.Cut(after, " |")
	return cell
}
