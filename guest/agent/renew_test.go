package agent

import (
	"bytes"
	"errors"
	"fmt"
	stdnet "net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"golang.org/x/sys/unix"
)

// TestRenew is what a host does with a guest that it has restored.
func TestRenew(t *testing.T) {
	near, far := stdnet.Pipe()
	var clock time.Time
	var seeds [][]byte
	var macs string
	server := &Server{
		Version: "test", Reaper: NewReaper(),
		SetTime: func(to time.Time) error { clock = to; return nil },
		Reseed:  func(seed []byte) error { seeds = append(seeds, bytes.Clone(seed)); return nil },
		SetMAC: func(old, address stdnet.HardwareAddr) error {
			macs = old.String() + " " + address.String()
			return nil
		},
	}
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(far) }()
	c := dialTest(t, near)
	now := time.Unix(1_800_000_000, 12345)
	if err := c.SetTime(testContext(t), now); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Reseed(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	old, address := stdnet.HardwareAddr{2, 0, 0, 0, 0, 1}, stdnet.HardwareAddr{2, 0, 0, 0, 0, 2}
	if err := c.SetMAC(testContext(t), old, address); err != nil {
		t.Fatal(err)
	}
	far.Close()
	<-done
	if macs != "02:00:00:00:00:01 02:00:00:00:00:02" {
		t.Errorf("addresses %s", macs)
	}
	if !clock.Equal(now) {
		t.Errorf("the clock was set to %v, want %v", clock, now)
	}
	if len(seeds) != 2 || len(seeds[0]) != seedSize || bytes.Equal(seeds[0], seeds[1]) {
		t.Errorf("seeds %x", seeds)
	}
}

// TestRenewRefused: not every system may change these.
func TestRenewRefused(t *testing.T) {
	c := connect(t)
	if err := c.SetTime(testContext(t), time.Now()); err == nil || !strings.Contains(err.Error(), "does not set the clock") {
		t.Error(err)
	}
	if err := c.Reseed(testContext(t)); err == nil || !strings.Contains(err.Error(), "does not reseed") {
		t.Error(err)
	}
}

func TestSetMAC(t *testing.T) {
	nobody := stdnet.HardwareAddr{2, 0xde, 0xad, 0xbe, 0xef, 2}
	if err := SetMAC(nobody, nobody); err == nil || !strings.Contains(err.Error(), nobody.String()) {
		t.Error(err)
	}
	// A network of this thread's own, which ends with it. Its loopback interface has
	// the number of that of this machine, which is where interfaceOf looks.
	text, err := os.ReadFile("/sys/class/net/lo/address")
	if err != nil {
		t.Fatal(err)
	}
	lo, err := stdnet.ParseMAC(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		failed <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := SetMAC(lo, nobody); err != nil {
				return err
			}
			now, err := stdnet.InterfaceByIndex(1)
			if err == nil && now.HardwareAddr.String() != nobody.String() {
				err = fmt.Errorf("the interface has the address %v", now.HardwareAddr)
			}
			return err
		}()
	}()
	if err := <-failed; errors.Is(err, unix.EPERM) {
		testenv.Lacks(t, "a network of its own takes privileges")
	} else if err != nil {
		t.Error(err)
	}
}

func TestReseed(t *testing.T) {
	if err := Reseed([]byte("some more noise")); err != nil && !os.IsPermission(err) {
		t.Error(err)
	}
}
