package topics

import (
	"sync"

	"github.com/pocketbase/pocketbase/core"
)

// quota counts the subscriptions and connections of accounts, and the
// connections of addresses, against their limits. (What one connection may have
// is known from its request alone: see places.)
type quota struct {
	// -1 for no limit
	subscriptions int
	connections   int
	perAddress    int

	mu        sync.Mutex
	accounts  map[owner]*accountUse
	addresses map[owner]int
}

type accountUse struct {
	seats        int
	byConnection map[string]int
}

func newQuota(c Config) *quota {
	return &quota{
		subscriptions: c.MaxSubscriptionsPerAccount,
		connections:   c.MaxConnectionsPerAccount,
		perAddress:    c.MaxConnectionsPerAddress,
		accounts:      map[owner]*accountUse{},
		addresses:     map[owner]int{},
	}
}

// limitedAccount returns the account whose limits hold for who has made a
// request: none for guests, who are counted by connection and address, and for
// superusers, who act for the app.
func limitedAccount(auth *core.Record) owner {
	if auth == nil || auth.IsSuperuser() {
		return ""
	}
	return accountOwner(auth.Collection().Id, auth.Id)
}

// seat is the place of one subscription among those of its account. Whoever has
// it frees it, once.
type seat struct {
	quota      *quota
	account    owner
	connection string
}

// full answers with a denial if a subscription of the account on that connection
// would be one too many.
func (q *quota) full(account owner, connection string) *denial {
	q.mu.Lock()
	defer q.mu.Unlock()

	return q.check(account, connection)
}

// take returns a seat for one more subscription, unless that is too many.
func (q *quota) take(account owner, connection string) (*seat, *denial) {
	q.mu.Lock()
	defer q.mu.Unlock()

	if d := q.check(account, connection); d != nil {
		return nil, d
	}
	return q.add(account, connection), nil
}

// check expects q.mu to be held.
func (q *quota) check(account owner, connection string) *denial {
	use := q.accounts[account]
	switch {
	case use == nil:
		return nil
	case use.byConnection[connection] == 0 && q.connections >= 0 && len(use.byConnection) >= q.connections:
		return denyAccountConnections()
	case q.subscriptions >= 0 && use.seats >= q.subscriptions:
		return denyAccountSubscriptions()
	}
	return nil
}

// reuse returns one of the spare seats for another subscription of the
// connection, and those that are left. If Go code has ended a subscription during
// the request, so that there is none, it makes one.
func (q *quota) reuse(spare []*seat, account owner, connection string) (*seat, []*seat) {
	if last := len(spare) - 1; last >= 0 && spare[last].account == account {
		return spare[last], spare[:last]
	}

	q.mu.Lock()
	defer q.mu.Unlock()

	return q.add(account, connection), spare
}

// add expects q.mu to be held.
func (q *quota) add(account owner, connection string) *seat {
	use := q.accounts[account]
	if use == nil {
		use = &accountUse{byConnection: map[string]int{}}
		q.accounts[account] = use
	}
	use.seats++
	use.byConnection[connection]++
	return &seat{quota: q, account: account, connection: connection}
}

// free gives the seat back. s may be nil.
func (s *seat) free() {
	if s == nil {
		return
	}
	q := s.quota
	q.mu.Lock()
	defer q.mu.Unlock()

	use := q.accounts[s.account]
	use.seats--
	if use.byConnection[s.connection]--; use.byConnection[s.connection] == 0 {
		delete(use.byConnection, s.connection)
	}
	if use.seats == 0 {
		delete(q.accounts, s.account)
	}
}

// connect counts a connection of an address, and reports false if there are too
// many already. Those of an unknown address are not counted.
func (q *quota) connect(address owner) bool {
	if address == "" {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()

	if q.perAddress >= 0 && q.addresses[address] >= q.perAddress {
		return false
	}
	q.addresses[address]++
	return true
}

// disconnect undoes a connect that was allowed.
func (q *quota) disconnect(address owner) {
	if address == "" {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()

	if q.addresses[address]--; q.addresses[address] == 0 {
		delete(q.addresses, address)
	}
}

// places counts the subscriptions that one request makes on its connection.
type places struct {
	perTopic int
	limit    int

	taken  int
	topics map[string]int
}

// full answers with a denial if there is no place for one more.
func (p *places) full(topic string) *denial {
	switch {
	case p.topics[topic] >= p.perTopic:
		return denyTopicSubscriptions()
	case p.taken >= p.limit:
		return denySubscriptions()
	}
	return nil
}

func (p *places) take(topic string) {
	p.topics[topic]++
	p.taken++
}
