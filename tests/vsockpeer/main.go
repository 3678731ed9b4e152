// Vsockpeer is both ends of the test of many vsock connections. On the host it
// starts itself in the guest, where it has been copied to, with godwit exec:
//
//	vsockpeer host GODWIT NAME VSOCK-PATH FILE-IN-GUEST
//
// Each end opens as many connections as the other, all at once, sends data that
// depends on the connection through each and checks that it is echoed.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/vsock"
	"github.com/godwit-vmm/godwit/guest/agent"
)

const (
	guestPort, hostPort = 5000, 5001
	// each is how many connections each end opens, and size how many bytes
	// go through each of them in either direction.
	each = 100
	size = 100 << 10
	// listening is what the guest says when it listens.
	listening = "listening\n"
	timeout   = 80 * time.Second
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "vsockpeer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 5 && args[0] == "host":
		return host(args[1], args[2], args[3], args[4])
	case len(args) == 1 && args[0] == "guest":
		return guest()
	}
	return errors.New("usage: vsockpeer host GODWIT NAME VSOCK-PATH FILE-IN-GUEST, or vsockpeer guest")
}

func host(godwit, name, path, file string) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	l, err := vsock.Listen(path, hostPort)
	if err != nil {
		return err
	}
	defer l.Close()
	go echoAll(func() (io.ReadWriteCloser, error) { return l.Accept() }, func() {})
	c := exec.CommandContext(ctx, godwit, "exec", name, "--", file, "guest")
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(out, make([]byte, len(listening))); err != nil {
		return errors.Join(fmt.Errorf("the guest does not listen: %w", err), c.Wait())
	}
	start := time.Now()
	err = exchange(0, func() (io.ReadWriteCloser, error) { return vsock.Dial(ctx, path, guestPort) })
	_, _ = io.Copy(io.Discard, out)
	if err := errors.Join(err, c.Wait()); err != nil {
		return err
	}
	s := time.Since(start).Seconds()
	fmt.Printf("%d connections, %d MiB checked in %.1f s\n", 2*each, 4*each*size>>20, s)
	return nil
}

func guest() error {
	l, err := agent.ListenVsock(guestPort)
	if err != nil {
		return err
	}
	var served sync.WaitGroup // the host's connections
	served.Add(each)
	go echoAll(func() (io.ReadWriteCloser, error) { return l.Accept() }, served.Done)
	if _, err := io.WriteString(os.Stdout, listening); err != nil {
		return err
	}
	err = exchange(1<<32, func() (io.ReadWriteCloser, error) { return agent.DialVsock(hostPort) })
	if err != nil {
		return fmt.Errorf("in the guest: %w", err)
	}
	served.Wait()
	return nil
}

// echoAll echoes connections and calls served after each.
func echoAll(accept func() (io.ReadWriteCloser, error), served func()) {
	for {
		c, err := accept()
		if err != nil {
			return
		}
		go func() {
			defer served()
			// The other end finds out what is wrong.
			_, _ = io.Copy(c, onlyReader{c})
			_ = c.Close()
		}()
	}
}

type onlyReader struct{ io.Reader }

// exchange opens all connections, and uses them when all are open.
func exchange(seed uint64, dial func() (io.ReadWriteCloser, error)) error {
	errs := make(chan error, each)
	var open sync.WaitGroup
	open.Add(each)
	for i := range uint64(each) {
		go func() {
			c, err := dial()
			open.Done()
			open.Wait()
			if err == nil {
				err = errors.Join(check(c, seed+i), c.Close())
			}
			if err != nil {
				err = fmt.Errorf("connection %d: %w", i, err)
			}
			errs <- err
		}()
	}
	var all []error
	for range each {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// check sends data and compares what comes back.
func check(c io.ReadWriter, seed uint64) error {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	data, got := make([]byte, size), make([]byte, size)
	rand.NewChaCha8(key).Read(data)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		wrote <- err
	}()
	n, err := io.ReadFull(c, got)
	if err != nil {
		return fmt.Errorf("after %d bytes of %d: %w", n, size, err)
	}
	if !bytes.Equal(got, data) {
		return errors.New("other data came back than was sent")
	}
	return <-wrote
}
