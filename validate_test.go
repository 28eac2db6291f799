package topics

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGuestsPass(t *testing.T) {
	for text, want := range map[string]bool{
		"":                               false,
		"x =":                            false,
		"members.id ?= @request.auth.id": true,
		"@request.auth.id = owner || open = true":                      true,
		"@request.auth.id != '' && members.id ?= @request.auth.id":     false,
		"@topic.id = @request.auth.id":                                 false, // never empty
		"@request.auth.role = 'admin'":                                 false,
		"@request.auth.role != 'banned'":                               true,
		"@request.auth.role != 'banned' && @request.auth.id != ''":     false,
		"@request.auth.verified = true":                                false,
		"@request.auth.verified != true":                               true,
		"@request.auth.team = NULL":                                    false,
		"open = true && (closed = false || (a.b ?= @request.auth.id))": true,
	} {
		require.Equal(t, want, guestsPass(text), text)
	}
}
