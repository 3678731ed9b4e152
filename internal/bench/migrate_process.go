package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is a program that runs beside the case, for as long as the case wants.
type child struct {
	cmd   *exec.Cmd
	said  *watch
	ended chan struct{} // closed when the program has ended
}

// endLimit is how long a program may take that is to end by itself.
const endLimit = 30 * time.Second

// startChild starts a program, which is killed when ctx ends, and waits until it says on
// its standard output or error what ready matches. match has the groups of ready. Without
// ready it does not wait. It is killed also when the thread ends that has started it, to
// which the caller is locked: nothing is left of a case, however it ends.
func startChild(ctx context.Context, ready *regexp.Regexp, argv ...string) (c *child, match []string, err error) {
	c = &child{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), said: newWatch(ready), ended: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = c.said, c.said
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		return nil, nil, err
	}
	go func() {
		defer close(c.ended)
		_ = c.cmd.Wait() // most are killed
	}()
	if ready == nil {
		return c, nil, nil
	}
	select {
	case <-c.said.seen:
		return c, c.said.match, nil
	case <-c.ended:
		err = errors.New("ended before it was ready")
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(readyLimit):
		err = fmt.Errorf("was not ready within %v", readyLimit)
	}
	c.kill()
	return nil, nil, fmt.Errorf("%s: %w: %s", filepath.Base(argv[0]), err, tail(c.said.String()))
}

// kill ends the program.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	<-c.ended
}

// wait returns when the program has ended by itself.
func (c *child) wait(ctx context.Context) error {
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(endLimit):
		return fmt.Errorf("process %d has not ended within %v: %s", c.cmd.Process.Pid, endLimit, tail(c.said.String()))
	}
}

// watch is an io.Writer that closes seen when the text matches. It keeps the beginning of
// the text.
type watch struct {
	want  *regexp.Regexp
	seen  chan struct{}
	match []string // to be read when seen is closed

	mu   sync.Mutex
	text []byte
}

// watchLimit bounds what a watch keeps, in bytes.
const watchLimit = 64 << 10

func newWatch(want *regexp.Regexp) *watch { return &watch{want: want, seen: make(chan struct{})} }

// Write never fails.
func (w *watch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, p[:min(len(p), watchLimit-len(w.text))]...)
	if w.match == nil && w.want != nil {
		if w.match = w.want.FindStringSubmatch(string(w.text)); w.match != nil {
			close(w.seen)
		}
	}
	return len(p), nil
}

// String is the text so far, as much of it as is kept. Any goroutine may call it.
func (w *watch) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.text)
}

// guestWords is the memory of a guest in another process, up to 3 GiB. It stays readable
// when the process has ended.
type guestWords struct{ f *os.File }

// openGuestWords finds the guest memory of a process: its memfd of that size.
func openGuestWords(pid int, size uint64) (*guestWords, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if target, err := os.Readlink(path); err != nil || !strings.HasPrefix(target, "/memfd:") {
			continue
		}
		if info, err := os.Stat(path); err == nil && uint64(info.Size()) == size {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			return &guestWords{f}, err
		}
	}
	return nil, fmt.Errorf("process %d has no memfd of %d bytes: no guest memory found", pid, size)
}

func (g *guestWords) close() { g.f.Close() }

// word reads a word of the guest's.
func (g *guestWords) word(gpa int64) (uint64, error) {
	var p [8]byte
	_, err := g.f.ReadAt(p[:], gpa)
	return binary.LittleEndian.Uint64(p[:]), err
}

// setWord changes a word. No dirty log has it: it is for a guest that is not on its way.
func (g *guestWords) setWord(gpa int64, v uint64) error {
	_, err := g.f.WriteAt(binary.LittleEndian.AppendUint64(nil, v), gpa)
	return err
}

// holdings is what a process has of its host.
type holdings struct {
	private float64 // MiB, without guest memory
	files   float64
	threads float64
}

// holdingsOf looks at a process.
func holdingsOf(pid int) (h holdings, err error) {
	m, err := residentMemory(pid, func(name string) bool { return strings.HasPrefix(name, "/memfd:") })
	if err != nil {
		return h, err
	}
	h.private = m.private / 1024
	for name, n := range map[string]*float64{"fd": &h.files, "task": &h.threads} {
		if *n, err = countEntries(filepath.Join("/proc", strconv.Itoa(pid), name)); err != nil {
			return h, err
		}
	}
	return h, nil
}

// countEntries counts what is in a folder, which need not be there.
func countEntries(dir string) (float64, error) {
	d, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return float64(len(names)), err
}

// withVariable sets an environment variable for the programs that this one starts.
// restore puts it back.
func withVariable(name, value string) (restore func(), err error) {
	before, was := os.LookupEnv(name)
	if err := os.Setenv(name, value); err != nil {
		return nil, err
	}
	return func() {
		// A name that was there can be set, and any can be removed.
		if was {
			_ = os.Setenv(name, before)
		} else {
			_ = os.Unsetenv(name)
		}
	}, nil
}
