package api

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
)

// request sends a request and returns the status and the body of the answer.
type request func(method, path, body string) (int, string)

// serve starts a server for a machine with the given changes to its
// configuration.
func serve(t *testing.T, change func(*machine.Config)) (request, *machine.Machine) {
	t.Helper()
	sys, err := kvm.Open("")
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	t.Cleanup(func() { sys.Close() })
	elf, err := micro.Exit(micro.PowerOff())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := machine.Config{CPUs: 1, Memory: 32 << 20, Kernel: filepath.Join(dir, "guest.elf")}
	if err := os.WriteFile(c.Kernel, elf, 0o600); err != nil {
		t.Fatal(err)
	}
	change(&c)
	m, err := machine.New(sys, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return client(t, New(func() *machine.Machine { return m })), m
}

func client(t *testing.T, s *Server) request {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "api")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- s.Serve(l) }()
	c := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
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
		return answer.StatusCode, strings.TrimSpace(string(text))
	}
}

func TestBalloon(t *testing.T) {
	do, _ := serve(t, func(c *machine.Config) { c.Balloon = &balloon.Config{DeflateOnOOM: true, Target: 2 << 20} })
	if status, body := do("PATCH", "/balloon", `{"amount_mib": 8}`); status != 204 || body != "" {
		t.Fatalf("status %d, %s", status, body)
	}
	status, body := do("GET", "/balloon", "")
	if want := `{"amount_mib":8,"deflate_on_oom":true,"free_page_reporting":false}`; status != 200 || body != want {
		t.Errorf("status %d, %s, want %s", status, body, want)
	}
	status, body = do("GET", "/balloon/statistics", "")
	var stats balloon.Stats
	if err := json.Unmarshal([]byte(body), &stats); err != nil || status != 200 || stats.TargetMiB != 8 || stats.ActualMiB != 0 {
		t.Errorf("status %d, %v: %s", status, err, body)
	}
}

func TestRefusals(t *testing.T) {
	withBalloon, _ := serve(t, func(c *machine.Config) { c.Balloon = &balloon.Config{} })
	without, _ := serve(t, func(*machine.Config) {})
	rebooting := client(t, New(func() *machine.Machine { return nil }))
	for _, test := range []struct {
		do                 request
		method, path, body string
		want               string
	}{
		{withBalloon, "PATCH", "/balloon", `{"amount_mib": 64}`, "more than it has"},
		{withBalloon, "PATCH", "/balloon", `{"amount_mib": 18446744073709551615}`, "more than any guest has"},
		{withBalloon, "PATCH", "/balloon", `{"amount_mib": -1}`, "request's body"},
		{withBalloon, "PATCH", "/balloon", `{"amount": 1}`, "unknown field"},
		{withBalloon, "PATCH", "/balloon", `{}`, "amount_mib is missing"},
		{withBalloon, "PATCH", "/balloon", `{"amount_mib": 1} {}`, "behind its object"},
		{withBalloon, "PATCH", "/balloon", `nonsense`, "request's body"},
		{withBalloon, "PATCH", "/balloon", `{"amount_mib": "` + strings.Repeat("9", maxBody) + `"}`, "too large"},
		{withBalloon, "DELETE", "/balloon", "", "there is no DELETE /balloon"},
		{withBalloon, "GET", "/nothing", "", "there is no GET /nothing"},
		{without, "PATCH", "/balloon", `{"amount_mib": 1}`, "no balloon"},
		{without, "PATCH", "/drives/0", `{"drive_id": "0"}`, "no drive"},
		{without, "PATCH", "/drives/0", `{"drive_id": "1"}`, "not the one of the path"},
		{rebooting, "GET", "/balloon", "", "rebooting"},
	} {
		status, body := test.do(test.method, test.path, test.body)
		var f Fault
		if err := json.Unmarshal([]byte(body), &f); err != nil || status != 400 || !strings.Contains(f.Message, test.want) {
			t.Errorf("%s %s %.40s: status %d, %s, want %q", test.method, test.path, test.body, status, body, test.want)
		}
	}
}

func TestResize(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	do, m := serve(t, func(c *machine.Config) { c.Disks = []blk.Config{{Path: image}} })
	if err := os.Truncate(image, 4<<20); err != nil {
		t.Fatal(err)
	}
	if status, body := do("PATCH", "/drives/0", `{"drive_id": "0"}`); status != 204 || m.Disks()[0].Capacity() != 4<<20 {
		t.Errorf("status %d, %s; the disk has %d bytes", status, body, m.Disks()[0].Capacity())
	}
	if err := os.Truncate(image, 1000); err != nil {
		t.Fatal(err)
	}
	if status, body := do("PATCH", "/drives/0", `{"drive_id": "0"}`); status != 400 || !strings.Contains(body, image) {
		t.Errorf("a size that is no multiple of 512: status %d, %s", status, body)
	}
}
