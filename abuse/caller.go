package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/pbtopics/topics/internal/testserver"
)

// patience is how long anybody waits for an answer of the server.
const patience = 20 * time.Second

// caller is somebody who talks to the server: an account or, without a token, a
// guest.
type caller struct {
	http    *http.Client
	server  string
	token   string
	address string // the client's own
}

func (c *caller) newRequest(method, path string, body io.Reader) (*http.Request, error) {
	request, err := http.NewRequest(method, "http://"+c.server+path, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", c.token)
	request.Header.Set(addressHeader, c.address)
	return request, nil
}

func (c *caller) get(path string, answer any) error {
	request, err := c.newRequest(http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return testserver.Do(c.http, request, answer)
}

func (c *caller) post(path string, body, answer any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := c.newRequest(http.MethodPost, path, strings.NewReader(string(raw)))
	if err != nil {
		return err
	}
	return testserver.Do(c.http, request, answer)
}

// subscribe sets the subscriptions of a connection.
func (c *caller) subscribe(clientID string, keys ...string) error {
	return c.post("/api/realtime", map[string]any{"clientId": clientID, "subscriptions": keys}, nil)
}

// key is that of a topic with options.
func key(topic string, query map[string]any) string {
	raw, err := json.Marshal(map[string]any{"query": query})
	if err != nil {
		panic(err)
	}
	return topic + "?options=" + url.QueryEscape(string(raw))
}

// stream is one open event stream.
type stream struct {
	conn     net.Conn
	lines    *bufio.Reader
	clientID string
}

// connect opens a stream, which the caller closes.
func (c *caller) connect() (s *stream, err error) {
	conn, err := net.DialTimeout("tcp", c.server, patience)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close() // it is of no use
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "GET /api/realtime HTTP/1.1\r\nHost: %s\r\n%s: %s\r\n\r\n", c.server, addressHeader, c.address); err != nil {
		return nil, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET /api/realtime: %s", response.Status)
	}

	s = &stream{conn: conn, lines: bufio.NewReaderSize(response.Body, 64<<10)}
	_, data, err := s.next()
	if err != nil {
		return nil, err
	}
	var hello struct {
		ClientID string `json:"clientId"`
	}
	if err := json.Unmarshal([]byte(data), &hello); err != nil {
		return nil, err
	}
	s.clientID = hello.ClientID
	return s, conn.SetDeadline(time.Time{})
}

// next reads an event.
func (s *stream) next() (event, data string, err error) {
	for {
		line, err := s.lines.ReadString('\n')
		if err != nil {
			return "", "", err
		}
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "" && data != "":
			return event, data, nil
		case strings.HasPrefix(line, "event:"):
			event = line[len("event:"):]
		case strings.HasPrefix(line, "data:"):
			data = line[len("data:"):]
		}
	}
}

func (s *stream) close() { _ = s.conn.Close() } // its reader sees it
