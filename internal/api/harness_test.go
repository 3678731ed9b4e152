package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/kvm"
)

// do sends a request and returns the status and the body of the answer.
type do func(method, path, body string) (int, string)

// spin is a kernel that spins.
func spin(t testing.TB) string {
	t.Helper()
	elf, err := micro.Spin()
	path := filepath.Join(t.TempDir(), "guest.elf")
	if err == nil {
		err = os.WriteFile(path, elf, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// newVM makes a guest, which the end of the test kills.
func newVM(t *testing.T, c vmm.Config) *vmm.VM {
	t.Helper()
	sys, err := kvm.Open("")
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	t.Cleanup(func() { sys.Close() })
	vm := vmm.New(t.Context(), vmm.Options{System: sys, Name: "guest"}, c)
	t.Cleanup(func() {
		vm.Kill(nil)
		if _, err := vm.Wait(); err != nil {
			t.Error(err)
		}
	})
	return vm
}

// started starts a guest that spins, with the given changes to its configuration, and
// a server for it.
func started(t *testing.T, change func(*vmm.Config)) (do, *vmm.VM) {
	t.Helper()
	c := vmm.Config{CPUs: 1, Memory: 32 << 20, Kernel: spin(t)}
	change(&c)
	vm := newVM(t, c)
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	return client(t, New(vm, Options{}), parseDocument(t)), vm
}

// client serves on a socket, and checks what passes against the document.
func client(t *testing.T, s *Server, d *document) do {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "api")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- s.Serve(l) }()
	c := http.Client{
		Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			return net.Dial("unix", socket)
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("a redirection") },
	}
	t.Cleanup(func() {
		c.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return func(method, path, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequest(method, "http://godwit"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.check(method, path, body, answer.StatusCode, text); err != nil {
			t.Errorf("%s %s %.100s: %v", method, path, body, err)
		}
		return answer.StatusCode, strings.TrimSpace(string(text))
	}
}

// must sends a request that has to be carried out.
func (d do) must(t *testing.T, method, path, body string) string {
	t.Helper()
	status, answer := d(method, path, body)
	if status != 200 && status != 204 {
		t.Fatalf("%s %s %s: status %d, %s", method, path, body, status, answer)
	}
	return answer
}

// refused sends a request that has to be refused with certain words.
func (d do) refused(t *testing.T, method, path, body, want string) {
	t.Helper()
	status, answer := d(method, path, body)
	var f Fault
	if err := json.Unmarshal([]byte(answer), &f); err != nil || status != 400 || !strings.Contains(f.Message, want) {
		t.Errorf("%s %s %.60s: status %d, %s, want %q", method, path, body, status, answer, want)
	}
}
