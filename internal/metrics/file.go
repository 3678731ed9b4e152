package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// FlushInterval is how often a metrics file gets a line of its own.
const FlushInterval = time.Minute

// File is a file, or a named pipe, that gets the figures as lines, each a JSON
// object as Firecracker writes them:
//
//	{"utc_timestamp_ms":1767323045000,"block_0":{"read_bytes":4096},"vcpu":{"exits_io":12},...}
//
// An object is what a metric's name begins with, behind the program's own name, and
// its label id if it has one; a key is the rest of the name, without _total, and the
// values of the other labels. Counters and histograms are what came since the line
// before, gauges what they are.
type File struct {
	registry *Registry
	path     string

	mu sync.Mutex
	fd int
	// last has what counters were at the line before, by object and key.
	last map[[2]string]float64
	// rest is what a full pipe did not take of the last line.
	rest []byte
}

// OpenFile opens a file for the figures of a registry. What is there is kept; there
// is a file afterwards if there was none.
func OpenFile(path string, r *Registry) (*File, error) {
	// For writing and reading, so that a pipe can be opened that nobody reads
	// yet, and never to wait for whoever reads it.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("metrics file %s: %w", path, err)
	}
	return &File{registry: r, path: path, fd: fd, last: make(map[[2]string]float64)}, nil
}

// Flush writes a line. A pipe that is full misses it; the counts come with the next.
func (f *File) Flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return fmt.Errorf("metrics file %s: it is closed", f.path)
	}
	if err := f.write(); err != nil {
		return fmt.Errorf("metrics file %s: %w", f.path, err)
	}
	return nil
}

func (f *File) write() error {
	if err := f.writeRest(); err != nil {
		return err
	}
	samples, err := f.registry.gather()
	line, now, lineErr := f.line(samples, time.Now())
	if lineErr != nil {
		return errors.Join(err, lineErr)
	}
	n, writeErr := write(f.fd, line)
	if n > 0 { // the rest is to follow, so that it counts as written
		f.rest, f.last = line[n:], now
	}
	if errors.Is(writeErr, unix.EAGAIN) && n > 0 {
		writeErr = nil
	}
	return errors.Join(err, writeErr)
}

// writeRest writes what was left of a line.
func (f *File) writeRest() error {
	n, err := write(f.fd, f.rest)
	f.rest = f.rest[n:]
	return err
}

// write writes as much of p as can be.
func write(fd int, p []byte) (n int, err error) {
	for n < len(p) {
		m, err := unix.Write(fd, p[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// line makes a line, and says what the counters were.
func (f *File) line(samples []sample, at time.Time) (_ []byte, now map[[2]string]float64, _ error) {
	now = make(map[[2]string]float64)
	line := map[string]any{"utc_timestamp_ms": at.UnixMilli()}
	for i := range samples {
		s := &samples[i]
		object, key := s.path()
		keys, ok := line[object].(map[string]any)
		if !ok {
			keys = make(map[string]any)
			line[object] = keys
		}
		// since is a counter's growth. One that has shrunk began anew.
		since := func(part string, v float64) float64 {
			id := [2]string{object, key + part}
			now[id] = v
			if before := f.last[id]; before <= v {
				return v - before
			}
			return v
		}
		switch {
		case math.IsNaN(s.value) || math.IsInf(s.value, 0):
			// JSON has no such numbers.
		case s.kind == gauge:
			keys[key] = s.value
		case s.kind == counter:
			keys[key] = since("", s.value)
		default:
			var n uint64
			for _, count := range s.counts {
				n += count
			}
			keys[key] = map[string]float64{"count": since(" count", float64(n)), "sum": since(" sum", s.value)}
		}
	}
	text, err := json.Marshal(line)
	return append(text, '\n'), now, err
}

// program is what the names of godwit's own metrics begin with.
const program = "godwit_"

// path is where a sample is in a line.
func (s *sample) path() (object, key string) {
	name := strings.TrimSuffix(strings.TrimPrefix(s.name, program), "_total")
	object, key, ok := strings.Cut(name, "_")
	if !ok {
		object, key = "vmm", name
	}
	for i := 0; i < len(s.labels); i += 2 {
		if s.labels[i] == "id" {
			object += "_" + s.labels[i+1]
		} else {
			key += "_" + s.labels[i+1]
		}
	}
	return object, key
}

// Run flushes every so often, and a last time when ctx ends. warn, if not nil, gets
// an error when the one before was no error.
func (f *File) Run(ctx context.Context, every time.Duration, warn func(error)) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	failed := false
	for done := false; !done; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			done = true
		}
		err := f.Flush()
		if err != nil && !failed && warn != nil {
			warn(err)
		}
		failed = err != nil
	}
}

// Close closes the file. A Flush after it is an error.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return nil
	}
	fd := f.fd
	f.fd = -1
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("metrics file %s: %w", f.path, err)
	}
	return nil
}
