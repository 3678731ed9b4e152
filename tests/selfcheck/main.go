// Selfcheck is what a guest runs while it is saved, restored or moved: it checks its
// own memory, timers, TCP connections and disk, and says what it has found.
//
//	selfcheck start FOLDER    leaves the checks running; the disk's are in FOLDER
//	selfcheck status          fails if a check has failed, or does not go on
//	selfcheck identity        prints what no two guests have in common
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// statusFile has the newest status.
const statusFile = "/tmp/selfcheck.status"

const (
	// statusEvery is how often the status is written, and patience how long a
	// check may take for one round.
	statusEvery = 50 * time.Millisecond
	patience    = 90 * time.Second
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "selfcheck:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "start":
		return start(args[1])
	case len(args) == 2 && args[0] == "check":
		return check(args[1])
	case len(args) == 1 && args[0] == "status":
		return status()
	case len(args) == 1 && args[0] == "identity":
		return identity()
	}
	return errors.New("want start FOLDER, status or identity")
}

// start leaves a process behind that has nothing to do with who started it.
func start(folder string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := exec.Command(self, "check", folder)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return err
	}
	return status()
}

// found is what the checks have found so far.
type found struct {
	// Rounds of each check.
	Rounds map[string]uint64
	// Errors are what is wrong.
	Errors []string
}

// checks are the running ones.
type checks struct {
	mu     sync.Mutex
	rounds map[string]*atomic.Uint64
	errors []string
}

// run calls round for ever, as long as it finds nothing wrong.
func (c *checks) run(name string, round func() error) {
	n := new(atomic.Uint64)
	c.mu.Lock()
	c.rounds[name] = n
	c.mu.Unlock()
	go func() {
		for {
			if err := round(); err != nil {
				c.mu.Lock()
				c.errors = append(c.errors, fmt.Sprintf("%s, round %d: %v", name, n.Load(), err))
				c.mu.Unlock()
				return
			}
			n.Add(1)
		}
	}()
}

func (c *checks) found() found {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := found{Rounds: make(map[string]uint64), Errors: c.errors}
	for name, n := range c.rounds {
		f.Rounds[name] = n.Load()
	}
	return f
}

func check(folder string) error {
	c := &checks{rounds: make(map[string]*atomic.Uint64)}
	for i := range 2 {
		c.run(fmt.Sprintf("memory %d", i), newMemory(uint64(i)).round)
	}
	c.run("timer", newTimer().round)
	tcp, err := newTCP()
	if err != nil {
		return err
	}
	c.run("tcp", tcp.round)
	disk, err := newDisk(filepath.Join(folder, "data"))
	if err != nil {
		return err
	}
	c.run("disk", disk.round)
	for {
		text, err := json.Marshal(c.found())
		if err != nil {
			return err
		}
		temp := statusFile + ".new"
		if err := os.WriteFile(temp, text, 0o600); err != nil {
			return err
		}
		if err := os.Rename(temp, statusFile); err != nil {
			return err
		}
		time.Sleep(statusEvery)
	}
}

// status waits until each check has done three more rounds.
func status() error {
	var from *found
	for deadline := time.Now().Add(patience); ; time.Sleep(statusEvery) {
		now, err := readStatus()
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return err
		case len(now.Errors) > 0:
			return fmt.Errorf("%q", now.Errors)
		case from == nil:
			from = now
		case now.beyond(from):
			fmt.Println("sound")
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("in %v the checks went on from %v to %v only", patience, from, now)
		}
	}
}

func readStatus() (*found, error) {
	text, err := os.ReadFile(statusFile)
	if err != nil {
		return nil, err
	}
	f := new(found)
	return f, json.Unmarshal(text, f)
}

func (f *found) beyond(from *found) bool {
	for name, n := range from.Rounds {
		if f.Rounds[name] < n+3 {
			return false
		}
	}
	return len(from.Rounds) > 0
}
