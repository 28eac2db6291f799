package topics

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCountedAddress(t *testing.T) {
	for text, want := range map[string][2]string{ // without and with a trusted proxy
		"203.0.113.7":          {"203.0.113.7", "203.0.113.7"},
		"::ffff:203.0.113.7":   {"203.0.113.7", "203.0.113.7"},
		"2001:db8:1:2:3:4:5:6": {"2001:db8:1:2::/64", "2001:db8:1:2::/64"},
		"2001:db8:1:2:ffff::":  {"2001:db8:1:2::/64", "2001:db8:1:2::/64"},
		"2001:db8:1:3::1%eth0": {"2001:db8:1:3::/64", "2001:db8:1:3::/64"},
		"127.0.0.1":            {"", "127.0.0.1"},
		"::1":                  {"", "::/64"},
		"10.1.2.3":             {"", "10.1.2.3"},
		"192.168.0.9":          {"", "192.168.0.9"},
		"fd00::1":              {"", "fd00::/64"},
		"169.254.1.1":          {"", "169.254.1.1"},
		"fe80::1":              {"", "fe80::/64"},
		"0.0.0.0":              {"", "0.0.0.0"},
		"":                     {"", ""},
		"somewhere":            {"", ""},
		"203.0.113.7:80":       {"", ""},
	} {
		require.Equal(t, want[0], countedAddress(text, false), text)
		require.Equal(t, want[1], countedAddress(text, true), text)
	}
}
