package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"

	"github.com/pbtopics/topics/internal/testserver"
)

// burn takes as much CPU time as so many goroutines can, until standard input
// ends.
func burn(count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(n + 1) // threads, which the system shares the processor between
	for range n {
		go func() {
			for sum := [sha256.Size]byte{}; ; {
				sum = sha256.Sum256(sum[:])
			}
		}()
	}
	fmt.Println("burning")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err // which ends the process, and so the goroutines
}

// startBurners starts a process with the burners. Its end is the caller's to
// call.
func (r *stress) startBurners() (end func(), err error) {
	if r.burners == 0 {
		return func() {}, nil
	}
	p, err := testserver.Start(fmt.Sprintf("%s=%d", burnEnv, r.burners))
	if err != nil {
		return nil, err
	}
	return p.Kill, nil
}
