package metrics

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openFile(t *testing.T, path string, r *Registry) *File {
	t.Helper()
	f, err := OpenFile(path, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestFile(t *testing.T) {
	r := New()
	c := r.Counter("godwit_vcpu_exits_total", "", "reason", "io")
	g := r.Gauge("godwit_up", "")
	h := r.Histogram("godwit_snapshot_seconds", "", Latencies())
	read := 4096.0
	r.Collect(func(s *Sink) {
		s.Counter("godwit_block_read_bytes_total", "", read, "id", "root")
		s.Counter("process_cpu_seconds_total", "", 1.5)
		s.Gauge("godwit_broken", "", math.NaN())
	})
	path := filepath.Join(t.TempDir(), "metrics.json")
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := openFile(t, path, r)
	flush := func() {
		t.Helper()
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	c.Add(5)
	g.Set(1)
	h.Observe(0.5)
	flush()
	c.Add(2)
	read = 10 // a new machine, after a reboot
	flush()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`"utc_timestamp_ms":\d{13}`).ReplaceAllString(string(got), `"utc_timestamp_ms":0`)
	const want = `before
{"block_root":{"read_bytes":4096},"process":{"cpu_seconds":1.5},"snapshot":{"seconds":{"count":1,"sum":0.5}},"utc_timestamp_ms":0,"vcpu":{"exits_io":5},"vmm":{"up":1}}
{"block_root":{"read_bytes":10},"process":{"cpu_seconds":0},"snapshot":{"seconds":{"count":0,"sum":0}},"utc_timestamp_ms":0,"vcpu":{"exits_io":2},"vmm":{"up":1}}
`
	if text != want {
		t.Errorf("got\n%swant\n%s", text, want)
	}
	f.Close()
	if err := f.Flush(); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("after Close: %v", err)
	}
}

func TestOpenFileFails(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "none", "x")} {
		if _, err := OpenFile(path, New()); err == nil || !strings.Contains(err.Error(), "metrics file "+path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestPipe: nobody needs to read a pipe for the guest to go on, and who reads it
// gets whole lines with all counts.
func TestPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r := New()
	c := r.Counter("godwit_x_total", "")
	for i := range 100 { // lines that are long
		r.Gauge("godwit_g", "", "i", fmt.Sprint(i, strings.Repeat("x", 50)))
	}
	f := openFile(t, path, r)
	flushes, full := uint64(0), false
	for ; !full && flushes < 1000; flushes++ {
		c.Inc()
		err := f.Flush()
		if full = errors.Is(err, unix.EAGAIN); err != nil && !full {
			t.Fatal(err)
		}
	}
	if !full {
		t.Fatal("the pipe was never full")
	}
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var sum uint64
	in := bufio.NewReader(reader)
	for sum < flushes {
		line, err := in.ReadBytes('\n')
		var v struct {
			VMM struct{ X uint64 }
		}
		if err == nil {
			err = json.Unmarshal(line, &v)
		}
		if err != nil {
			t.Fatalf("after %d: %.100s: %v", sum, line, err)
		}
		sum += v.VMM.X
		// Now there is room for what has been left, and for more.
		if err := f.Flush(); err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
	}
	if sum != flushes {
		t.Errorf("counted %d, want %d", sum, flushes)
	}
}

func TestRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r := New()
	r.Counter("godwit_x_total", "")
	f := openFile(t, path, r)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	warnings := make(chan error, 100)
	go func() {
		defer close(done)
		f.Run(ctx, time.Millisecond, func(err error) { warnings <- err })
	}()
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	in := bufio.NewReader(reader)
	for range 3 {
		if _, err := in.ReadBytes('\n'); err != nil {
			t.Fatal(err)
		}
	}
	// Nobody reads any more: it is told once.
	if err := <-warnings; !errors.Is(err, unix.EAGAIN) {
		t.Errorf("warned of %v", err)
	}
	cancel()
	<-done
	if len(warnings) != 0 {
		t.Errorf("warned again: %v", <-warnings)
	}
	// A last line, and no warning without somebody to hear it.
	file := filepath.Join(t.TempDir(), "file")
	openFile(t, file, r).Run(ctx, time.Hour, nil)
	if text, err := os.ReadFile(file); err != nil || strings.Count(string(text), "\n") != 1 {
		t.Errorf("got %q, %v", text, err)
	}
	closed := openFile(t, file, r)
	closed.Close()
	closed.Run(ctx, time.Hour, nil)
}
