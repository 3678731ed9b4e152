// Echopeer is both ends of a TCP connection that a test watches while its guest moves:
//
//	echopeer leave ADDRESS    leaves a process behind that answers each number with that
//	                          number, and ends when it listens
//	echopeer count ADDRESS    sends numbers, one after the other, until its input ends, and
//	                          prints how many were answered and the longest wait
package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const (
	// pause is that between an answer and the next number.
	pause = 5 * time.Millisecond
	// patience is how long an answer may take: TCP itself would wait for longer.
	patience = 2 * time.Minute
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "echopeer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "leave":
		return leave(args[1])
	case len(args) == 2 && args[0] == "serve":
		return serve()
	case len(args) == 2 && args[0] == "count":
		return count(args[1])
	}
	return errors.New("want leave ADDRESS or count ADDRESS")
}

// leave leaves a process behind that has nothing to do with who started it.
func leave(address string) error {
	l, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := exec.Command(self, "serve", "inherited")
	c.ExtraFiles = []*os.File{f}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return c.Start()
}

// serve answers on the listener that it was started with.
func serve() error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			// The client says what went wrong.
			_, _ = io.Copy(c, c)
		}()
	}
}

// Result is what count prints.
type Result struct {
	Answered uint64        `json:"answered"`
	Longest  time.Duration `json:"longest_ns"`
}

func count(address string) error {
	c, err := net.DialTimeout("tcp4", address, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	fmt.Println("connected")
	var r Result
	for {
		select {
		case <-ended:
			return json.NewEncoder(os.Stdout).Encode(r)
		case <-time.After(pause):
		}
		began := time.Now()
		if err := exchange(c, r.Answered+1); err != nil {
			return fmt.Errorf("after %d numbers: %w", r.Answered, err)
		}
		r.Answered++
		r.Longest = max(r.Longest, time.Since(began))
	}
}

func exchange(c net.Conn, n uint64) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := binary.Write(c, binary.LittleEndian, n); err != nil {
		return err
	}
	var got uint64
	if err := binary.Read(c, binary.LittleEndian, &got); err != nil {
		return err
	}
	if got != n {
		return fmt.Errorf("sent %d, %d came back", n, got)
	}
	return nil
}
