package topics

import (
	"net/netip"

	"github.com/pocketbase/pocketbase/core"
)

// owner is whom the server counts what a client makes grow for: an account, or
// the guests of one address. The zero value is a guest whose address says
// nothing; only the limits of a connection and of the process hold it back.
type owner string

// ownerOf returns the owner of what a request makes grow.
func ownerOf(e *core.RequestEvent) owner {
	if e.Auth != nil {
		return accountOwner(e.Auth.Collection().Id, e.Auth.Id)
	}
	return addressOwner(clientAddress(e))
}

// guestsOwner is that of all guests whose address says nothing, where they have
// a share together.
const guestsOwner owner = "guests"

// senderOf returns whom a publish counts for: nobody for superusers.
func senderOf(e *core.RequestEvent) owner {
	if e.HasSuperuserAuth() {
		return ""
	}
	return subscriberOf(e)
}

// subscriberOf returns whom a subscription counts for.
func subscriberOf(e *core.RequestEvent) owner {
	if who := ownerOf(e); who != "" {
		return who
	}
	return guestsOwner
}

// accountOwner is that of an account: its collection's id and its own.
func accountOwner(collection, id string) owner {
	return owner("account\x00" + collection + "\x00" + id)
}

// addressOwner is that of the guests of an address, which may be empty.
func addressOwner(address string) owner {
	if address == "" {
		return ""
	}
	return owner("address\x00" + address)
}

// connectionOwner is that of a guest's connection, where its address says
// nothing.
func connectionOwner(clientID string) owner { return owner("connection\x00" + clientID) }

// guestOwner is whom a connection counts for as long as nobody has signed in.
func guestOwner(address, clientID string) owner {
	if address == "" {
		return connectionOwner(clientID)
	}
	return addressOwner(address)
}

// clientAddress returns the address of a request's client in the form in which
// it is counted (for IPv6 the network of 64 bits, which is what a provider gives
// to one customer), or an empty one if the address is not known to be the
// client's own. A loopback or private peer is probably a proxy: it counts only
// where the settings name the proxy's header.
func clientAddress(e *core.RequestEvent) string {
	trusted := len(e.App.Settings().TrustedProxy.Headers) > 0
	text := e.RemoteIP()
	if trusted {
		text = e.RealIP()
	}
	return countedAddress(text, trusted)
}

func countedAddress(text string, trusted bool) string {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return ""
	}
	address = address.Unmap().WithZone("")
	if !trusted && (address.IsLoopback() || address.IsPrivate() || address.IsLinkLocalUnicast() || address.IsUnspecified()) {
		return ""
	}
	if address.Is4() {
		return address.String()
	}
	network, err := address.Prefix(64)
	if err != nil {
		return ""
	}
	return network.String()
}
