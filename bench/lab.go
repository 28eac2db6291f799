package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pbtopics/topics/internal/testserver"
	"golang.org/x/sync/errgroup"
)

// lab is a running server with the connections to it.
type lab struct {
	options
	kind kind
	name string // of the scenario
	addr string
	http *http.Client

	process *testserver.Process

	subscribers []*subscriber
	received    counter
	phase       uint32
	closing     sync.Once
}

func openLab(o options, name string, k kind) (*lab, error) {
	process, err := testserver.Start(serveEnv + "=" + string(k))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k, err)
	}
	return &lab{options: o, kind: k, name: name, addr: process.Address, process: process, http: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 64},
		Timeout:   time.Minute,
	}}, nil
}

func (l *lab) close() {
	l.closing.Do(func() {
		for _, s := range l.subscribers {
			s.close()
		}
		l.http.CloseIdleConnections()
		l.process.Stop()
	})
}

// scaled is n connections, or fewer of them.
func (l *lab) scaled(n int) int { return max(2, int(float64(n)*l.scale)) }

// atOnce is how many requests the load generator has under way at a time.
const atOnce = 32

// open connects n clients. The i-th subscribes to topic(i).
func (l *lab) open(n int, topic func(i int) string) error {
	opened := make([]*subscriber, n)
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i := range n {
		group.Go(func() error {
			s, err := connect(l.addr, 0, &l.received)
			if err != nil {
				return err
			}
			opened[i] = s
			return l.subscribe(s, "", topic(i))
		})
	}
	err := group.Wait()
	for _, s := range opened {
		if s != nil {
			l.subscribers = append(l.subscribers, s)
		}
	}
	return err
}

// stall opens connections that read only little, and that slowly.
func (l *lab) stall(n int, topics ...string) ([]*subscriber, error) {
	var stalled []*subscriber
	for range n {
		s, err := connect(l.addr, 4096, &l.received)
		if err != nil {
			return nil, err
		}
		s.stalled = make(chan struct{})
		stalled = append(stalled, s)
		l.subscribers = append(l.subscribers, s)
		if err := l.subscribe(s, "", topics...); err != nil {
			return nil, err
		}
	}
	return stalled, nil
}

func (l *lab) subscribe(s *subscriber, token string, topics ...string) error {
	s.topics = topics
	if l.kind == records {
		topics = []string{"messages/*"}
	}
	body, err := json.Marshal(map[string]any{"clientId": s.id, "subscriptions": topics})
	if err != nil {
		return err
	}
	request, err := http.NewRequest(http.MethodPost, "http://"+l.addr+"/api/realtime", bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", token)
	return l.do(request, nil)
}

// post calls one of the bench server's own routes.
func (l *lab) post(path string, query url.Values, body, answer any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequest(http.MethodPost, "http://"+l.addr+"/bench/"+path+"?"+query.Encode(), bytes.NewReader(raw))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	return l.do(request, answer)
}

func (l *lab) usage(collect bool) (usage, error) {
	u := "http://" + l.addr + "/bench/usage"
	if collect {
		u += "?collect=1"
	}
	request, err := http.NewRequest(http.MethodGet, u, nil)
	if err != nil {
		return usage{}, err
	}
	var answer usage
	return answer, l.do(request, &answer)
}

func (l *lab) do(request *http.Request, answer any) error {
	return testserver.Do(l.http, request, answer)
}

// profiled runs f under a CPU profile of the server, if those are wanted.
func (l *lab) profiled(f func() error) error {
	if l.profiles == "" {
		return f()
	}
	name := strings.NewReplacer(" ", "-", "'", "").Replace(fmt.Sprintf("%s-%s-%d.pprof", l.name, l.kind, l.phase))
	folder, err := filepath.Abs(l.profiles)
	if err != nil {
		return err
	}
	if err := l.post("profile", url.Values{"to": {filepath.Join(folder, name)}}, nil, nil); err != nil {
		return err
	}
	return errors.Join(f(), l.post("profile", nil, nil, nil))
}
