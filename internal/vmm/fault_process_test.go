package vmm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// sideProcess is a process of a cell, see faultSide.
type sideProcess struct {
	role
	cell   *cell
	cmd    *exec.Cmd
	orders io.WriteCloser
	// over is closed when the process has ended and all that it said was heard.
	over chan struct{}
	once sync.Once
	// words is what it has said, under the cell's mu.
	words []word
}

// start starts the process of a side, which stops at a point.
func (c *cell) start(side, point string) *sideProcess {
	c.t.Helper()
	of := side
	if side == "resolver" {
		of = "source"
	}
	s := &sideProcess{cell: c, over: make(chan struct{}), role: role{
		Side: side, Scenario: c.scenario, Point: point, Journal: c.journal(of),
		Disk: c.disk, Turn: c.turn, Kernel: c.kernel, Addr: c.addr, Listen: c.wire.listen(of), Waits: c.waits,
	}}
	if c.link == secure {
		s.TLS = c.dir
	}
	text, err := json.Marshal(s.role)
	if err != nil {
		c.t.Fatal(err)
	}
	orders, in, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, words, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	var output bytes.Buffer
	s.orders = in
	s.cmd = exec.Command(os.Args[0], "-test.run=^TestFaultChild$", "-test.timeout=10m")
	s.cmd.Env = append(os.Environ(), faultVariable+"="+string(text))
	s.cmd.Stdout, s.cmd.Stderr = &output, &output
	s.cmd.ExtraFiles = []*os.File{orders, words}
	err = c.wire.inside(of, s.cmd.Start)
	_ = orders.Close()
	_ = words.Close()
	if err != nil {
		c.t.Fatal(err)
	}
	go func() {
		s.hear(out)
		_ = s.cmd.Wait()
		_ = out.Close()
		s.hears(word{Kind: "gone", Text: output.String()})
		close(s.over)
	}()
	c.t.Cleanup(s.kill)
	return s
}

// hear takes what the process says.
func (s *sideProcess) hear(out io.Reader) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var w word
		if err := json.Unmarshal(lines.Bytes(), &w); err != nil {
			w = word{Kind: "error", Text: err.Error()}
		}
		s.hears(w)
		if w.Kind == "point" {
			s.cell.onPoint(s, w.Text)
		}
	}
}

func (s *sideProcess) hears(w word) {
	s.cell.mu.Lock()
	s.words = append(s.words, w)
	s.cell.mu.Unlock()
	s.cell.note("%s says %s %s", s.Side, w.Kind, w.Text)
}

// order is lost if the process is gone.
func (s *sideProcess) order(text string) { _, _ = io.WriteString(s.orders, text+"\n") }

func (s *sideProcess) signal(sig unix.Signal) { _ = s.cmd.Process.Signal(sig) }

func (s *sideProcess) cont() {
	s.cell.note("%s goes on", s.Side)
	s.signal(unix.SIGCONT)
}

// kill returns when the process is gone.
func (s *sideProcess) kill() {
	s.once.Do(func() {
		_ = s.cmd.Process.Kill()
		<-s.over
		_ = s.orders.Close()
	})
}

func (s *sideProcess) dead() bool {
	select {
	case <-s.over:
		return true
	default:
		return false
	}
}

// said says whether one of some kinds of word was said. The caller holds the cell's mu.
func (s *sideProcess) said(kinds ...string) bool {
	return slices.ContainsFunc(s.words, func(w word) bool { return slices.Contains(kinds, w.Kind) })
}

// text is what was said last with a kind of word.
func (s *sideProcess) text(kind string) string {
	s.cell.mu.Lock()
	defer s.cell.mu.Unlock()
	for _, w := range slices.Backward(s.words) {
		if w.Kind == kind {
			return w.Text
		}
	}
	return ""
}

// forget forgets what was said with a kind of word.
func (s *sideProcess) forget(kind string) {
	s.cell.mu.Lock()
	defer s.cell.mu.Unlock()
	s.words = slices.DeleteFunc(s.words, func(w word) bool { return w.Kind == kind })
}

// status asks how the guest is.
func (s *sideProcess) status() word {
	s.cell.t.Helper()
	s.forget(orderStatus)
	s.order(orderStatus)
	s.cell.must("the status of the "+s.Side, func() bool { return s.said(orderStatus, "gone") })
	s.cell.mu.Lock()
	defer s.cell.mu.Unlock()
	for _, w := range s.words {
		if w.Kind == orderStatus {
			return w
		}
	}
	s.cell.t.Errorf("the process of the %s has ended", s.Side)
	return word{}
}
