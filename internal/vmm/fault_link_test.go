package vmm

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// wiring is two network namespaces with a link between them. A nil one is the loopback
// interface that all have.
type wiring struct {
	// names are those of the namespaces, by side.
	names map[string]string
}

// wireName is what the link is called in both.
const wireName = "wire0"

// addresses of the two ends of the link.
var addresses = map[string]string{"source": "192.0.2.1", "destination": "192.0.2.2"}

func newWiring(t *testing.T) *wiring {
	t.Helper()
	unique := fmt.Sprintf("godwit-%d-%d-", os.Getpid(), time.Now().UnixNano())
	w := &wiring{names: map[string]string{"source": unique + "s", "destination": unique + "d"}}
	if _, err := exec.LookPath("ip"); err != nil {
		testenv.Lacks(t, "network namespaces: %v", err)
	}
	for _, name := range w.names {
		if err := ip("netns", "add", name); err != nil {
			testenv.Lacks(t, "%v", err)
		}
		t.Cleanup(func() {
			if err := ip("netns", "del", name); err != nil {
				t.Error(err)
			}
		})
	}
	err := ip("-n", w.names["source"], "link", "add", wireName, "type", "veth", "peer", "name", wireName, "netns", w.names["destination"])
	for side, name := range w.names {
		err = errors.Join(err, ip("-n", name, "addr", "add", addresses[side]+"/30", "dev", wireName),
			ip("-n", name, "link", "set", "lo", "up"), ip("-n", name, "link", "set", wireName, "up"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// plug has the link up, or down.
func (w *wiring) plug(t *testing.T, in bool) {
	t.Helper()
	state := "down"
	if in {
		state = "up"
	}
	if err := ip("-n", w.names["destination"], "link", "set", wireName, state); err != nil {
		t.Error(err)
	}
}

// listen is where a side listens.
func (w *wiring) listen(side string) string {
	if w == nil {
		return "127.0.0.1:0"
	}
	return addresses[side] + ":0"
}

// inside calls do in the namespace of a side: sockets that it makes, and processes that it
// starts, are there.
func (w *wiring) inside(side string, do func() error) error {
	if w == nil {
		return do()
	}
	there, err := os.Open(filepath.Join("/run/netns", w.names[side]))
	if err != nil {
		return err
	}
	defer there.Close()
	done := make(chan error)
	go func() {
		// It is not unlocked: the thread ends with its goroutine, and nobody else comes to
		// be in the namespace.
		runtime.LockOSThread()
		err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// security is what a side speaks TLS with, nil without.
func (r role) security(server bool) (*tls.Config, error) {
	if r.TLS == "" {
		return nil, nil
	}
	cert := filepath.Join(r.TLS, "cert.pem")
	return stream.LoadTLS(cert, filepath.Join(r.TLS, "key.pem"), cert, server)
}
