// Package testserver runs an app as a process of its own, for programs that
// measure or try it over real connections.
package testserver

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
)

// Process is this program, started again as a server.
type Process struct {
	Address string

	command *exec.Cmd
	stdin   io.Closer
}

// Start runs this program with env added to its environment, by which it knows
// that it is to call Serve.
func Start(env ...string) (*Process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	command := exec.Command(program)
	command.Env = append(os.Environ(), env...)
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}

	p := &Process{command: command, stdin: stdin}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("the server did not start: %w", err)
	}
	p.Address = strings.TrimSpace(line)
	return p, nil
}

// Stop lets the server come to its end.
func (p *Process) Stop() {
	_ = p.stdin.Close()
	_ = p.command.Wait() // it was told to end
}

// Kill ends the server at once.
func (p *Process) Kill() {
	_ = p.command.Process.Kill() // it may have ended
	_ = p.command.Wait()         // it was killed
}

// Do sends the request and decodes the JSON of the response into answer, which
// may be nil.
func Do(client *http.Client, request *http.Request, answer any) error {
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()

	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s %s: %s: %s", request.Method, request.URL.Path, response.Status, raw)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(raw, answer)
}
