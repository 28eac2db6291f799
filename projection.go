package topics

import (
	"slices"
	"strconv"
	"strings"

	"github.com/ganigeorgiev/fexpr"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
)

// optionNames are options of a subscription, as a rule names them:
// @request.query.* and @request.headers.*. Both lists are sorted.
type optionNames struct {
	all     bool // whatever is sent
	query   []string
	headers []string
}

// covers reports whether a decision that knows these options can evaluate a
// rule that reads those.
func (n optionNames) covers(read optionNames) bool {
	if n.all {
		return true
	}
	return !read.all && contains(n.query, read.query) && contains(n.headers, read.headers)
}

func contains(list, part []string) bool {
	return !slices.ContainsFunc(part, func(name string) bool { return !slices.Contains(list, name) })
}

// projection is what a decision knows of a subscription's options: only those
// that its rule reads. So clients cannot make decisions of their own with
// options that mean nothing.
type projection struct {
	names   optionNames
	options subscriptions.SubscriptionOptions
	text    string // equal for equal projections
}

// everyOption is the projection that leaves nothing out.
func everyOption(key string, options subscriptions.SubscriptionOptions) projection {
	_, raw, _ := strings.Cut(key, "?")
	return projection{names: optionNames{all: true}, options: options, text: "*" + raw}
}

func project(names optionNames, key string, options subscriptions.SubscriptionOptions) projection {
	if names.all {
		return everyOption(key, options)
	}

	p := projection{names: names, options: noOptions()}
	var text []byte
	keep := func(kind byte, names []string, from, to map[string]string) {
		for _, name := range names {
			// an option that is missing differs from one that nobody looked for
			text = strconv.AppendQuote(append(text, kind), name)
			if value, given := from[name]; given {
				to[name] = value
				text = strconv.AppendQuote(append(text, '='), value)
			}
		}
	}
	keep('q', names.query, options.Query, p.options.Query)
	keep('h', names.headers, options.Headers, p.options.Headers)
	p.text = string(text)

	return p
}

// projectOptions returns what the rule of the key's topic reads of its options
// now. The decision checks that this is still enough.
func (p *Plugin) projectOptions(app core.App, a action, key string, options subscriptions.SubscriptionOptions) projection {
	topic := topicOf(key)
	d, err := p.rules.find(app, topic)
	if err != nil {
		return everyOption(key, options) // the decision says what is wrong
	}
	return project(d.optionsRead(app, a, topic), key, options)
}

// optionsRead returns the options that the definition's rule reads. Without a
// definition, or with a rule that cannot be found, nothing is evaluated.
func (d *definition) optionsRead(app core.App, a action, topic string) optionNames {
	if d == nil {
		return optionNames{}
	}
	text := d.rule(a).text
	if a == actionSubscribe && text != nil && *text == viewRule {
		b, err := d.bind(app, a, topic)
		if err != nil {
			return optionNames{}
		}
		text = b.text
	}
	if text == nil {
		return optionNames{}
	}
	return optionsReadBy(*text)
}

const (
	queryPrefix   = "@request.query"
	headersPrefix = "@request.headers"
)

// optionsReadBy returns the options that a rule reads: all of them where the
// rule cannot be parsed, or calls a function that may read what it likes.
func optionsReadBy(text string) optionNames {
	if !strings.Contains(text, queryPrefix) && !strings.Contains(text, headersPrefix) && !callsFunction(text) {
		return optionNames{} // without a parse: this is asked for each decision
	}

	groups, err := fexpr.Parse(text)
	if err != nil {
		return optionNames{all: true}
	}
	var n optionNames
	n.addGroups(groups)
	for _, list := range []*[]string{&n.query, &n.headers} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return n
}

// callsFunction may return false positives, never false negatives: a function's
// name is followed by its arguments without a space.
func callsFunction(text string) bool {
	for i := 1; i < len(text); i++ {
		if text[i] != '(' {
			continue
		}
		if c := text[i-1]; c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= 0x80 {
			return true
		}
	}
	return false
}

func (n *optionNames) addGroups(groups []fexpr.ExprGroup) {
	for _, g := range groups {
		switch item := g.Item.(type) {
		case fexpr.Expr:
			n.addToken(item.Left)
			n.addToken(item.Right)
		case fexpr.ExprGroup:
			n.addGroups([]fexpr.ExprGroup{item})
		case []fexpr.ExprGroup:
			n.addGroups(item)
		default:
			n.all = true
		}
	}
}

func (n *optionNames) addToken(t fexpr.Token) {
	switch t.Type {
	case fexpr.TokenText, fexpr.TokenNumber:
	case fexpr.TokenIdentifier:
		n.addIdentifier(t.Literal)
	case fexpr.TokenFunction:
		args, ok := t.Meta.([]fexpr.Token)
		if !ok || t.Literal != "geoDistance" && t.Literal != "strftime" {
			n.all = true // of the app's own, which can resolve any name
		}
		for _, arg := range args {
			n.addToken(arg)
		}
	default:
		n.all = true
	}
}

func (n *optionNames) addIdentifier(name string) {
	path := strings.Split(name, ".")
	if path[0] != "@request" {
		return
	}
	if len(path) < 3 {
		// the whole request, of which core makes nothing today; method and
		// context are the same for all subscriptions
		n.all = n.all || len(path) < 2 || path[1] == "query" || path[1] == "headers"
		return
	}

	// core takes a part after one colon for a modifier, and more of them for
	// part of the name
	plain, _, _ := strings.Cut(path[2], ":")
	switch path[1] {
	case "query":
		n.query = append(n.query, plain, path[2])
	case "headers":
		n.headers = append(n.headers, plain, path[2])
	}
}
