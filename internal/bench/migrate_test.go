package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// TestWatcher has the guest stand still, and looks whether it has noted that.
func TestWatcher(t *testing.T) {
	needKVM(t)
	e := testEnv()
	e.Dir = t.TempDir()
	khz, err := hostTSCKHz()
	if err != nil {
		t.Fatal(err)
	}
	const ram = 64 << 20
	program, err := writeProgram(e, "watcher.elf", func(micro.Stop) ([]byte, error) { return watcher(khz, 1<<20, heartbeat, watcherSlack) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	g, err := startReady(t.Context(), e, program, ram)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	words := func() (*guestWords, error) { return openGuestWords(os.Getpid(), ram) }
	d := &downtimeRun{khz: khz}
	const still = 50 * time.Millisecond
	seen, err := d.observe(t.Context(), words, func() error {
		if err := g.Pause(); err != nil {
			return err
		}
		// As in a move, what was noted until now is that of the guest that stays.
		w, err := words()
		if err != nil {
			return err
		}
		defer w.close()
		before, err := w.word(watcherGaps)
		if err != nil {
			return err
		}
		time.Sleep(still)
		if err := g.Resume(); err != nil {
			return err
		}
		return poll(t.Context(), readyLimit, func() (bool, error) {
			now, err := w.word(watcherGaps)
			if err == nil && now > before {
				gap, err := w.word(watcherRing + int64(before%watcherKept)*8)
				if ms := float64(gap) / khz; err != nil || ms < milliseconds(still) {
					t.Errorf("the guest stood still for %v and noted %.1f ms: %v", still, ms, err)
				}
			}
			return now > before, err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen.longest < milliseconds(still) {
		t.Errorf("the guest stood still for %v and saw at most %.1f ms", still, seen.longest)
	}
	w, err := words()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	for _, gpa := range []int64{usedStart, usedStart + 1<<20 - 8} {
		if v, err := w.word(gpa); err != nil || v == 0 {
			t.Errorf("the word at %#x is %d: %v", gpa, v, err)
		}
	}
}

func TestOpenGuestWords(t *testing.T) {
	const size = 4<<20 + 8192 // no other memory of this process is likely to have it
	g, err := memory.New(memory.Options{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.PutUint64(8192, 42); err != nil {
		t.Fatal(err)
	}
	w, err := openGuestWords(os.Getpid(), size)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.setWord(8200, 43); err != nil {
		t.Fatal(err)
	}
	if v, err := g.Uint64(8200); err != nil || v != 43 {
		t.Errorf("%d, %v: want the word that was set", v, err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if v, err := w.word(8192); err != nil || v != 42 {
		t.Errorf("%d, %v: want the word that the guest has left", v, err)
	}
	w.close() // the last that held it
	if _, err := openGuestWords(os.Getpid(), size); err == nil {
		t.Error("memory that is gone was found")
	}
}

func TestReadHop(t *testing.T) {
	const report = `{"report":{"total_ns":90,"bytes":7}}` + "\n"
	const copying = `{"progress":{"phase":"copy","elapsed_ns":10}}` + "\n" + `{"progress":{"phase":"copy","elapsed_ns":20}}` + "\n"
	for _, test := range []struct{ name, text, problem string }{
		{"whole", `{"progress":{"phase":"connect","elapsed_ns":1}}` + "\n" + copying + `{"progress":{"phase":"stop","elapsed_ns":70}}` + "\n" + report, ""},
		{"failed", copying + `{"error":"no such place"}` + "\n", "no such place"},
		{"no pause", copying + report, "has not said when"},
		{"no report", copying + `{"progress":{"phase":"stop","elapsed_ns":70}}` + "\n", "has not said when"},
		{"not JSON", "moved\n", "invalid character"},
		{"nothing", "", "has not said when"},
	} {
		h, err := readHop(test.text)
		switch {
		case test.problem == "" && (err != nil || h.copying != 60 || h.Bytes != 7):
			t.Errorf("%s: %+v, %v", test.name, h, err)
		case test.problem != "" && (err == nil || !strings.Contains(err.Error(), test.problem)):
			t.Errorf("%s: error %v, want one with %q", test.name, err, test.problem)
		}
	}
}

func TestWatch(t *testing.T) {
	w := newWatch(regexp.MustCompile(`at (\S+)\n`))
	for _, piece := range []string{"waiting a", "t here", "\nand at there\n", strings.Repeat("x", 2*watchLimit)} {
		if n, err := w.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	<-w.seen
	if w.match[1] != "here" || len(w.String()) != watchLimit {
		t.Errorf("found %q in %d bytes", w.match, len(w.String()))
	}
}

func TestStartChild(t *testing.T) {
	ready := regexp.MustCompile(`ready (\d)\n`)
	c, match, err := startChild(t.Context(), ready, "/bin/sh", "-c", "echo ready 1 >&2; exec sleep 1000")
	if err != nil || match[1] != "1" {
		t.Fatalf("%q, %v", match, err)
	}
	c.kill()
	if _, _, err := startChild(t.Context(), ready, "/bin/sh", "-c", "echo no such thing >&2; exit 1"); err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("error %v of one that has ended", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := startChild(ctx, ready, "/bin/sh", "-c", "exec sleep 1000"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v of one that was broken off", err)
	}
}

// TestPlainCopy sends memory to ReceiveCopy in this process.
func TestPlainCopy(t *testing.T) {
	c, err := newCertificate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := &plainCopy{mem: make([]byte, 5*copyPiece), connections: 2}
	fill(p.mem)
	for _, o := range []CopyOptions{{}, {Fresh: true}, {Cert: c.cert, Key: c.key, CA: c.ca, Fresh: true}} {
		o.Size, o.Connections = uint64(len(p.mem)), p.connections
		said, done := newWatch(saidCopyAddress()), make(chan error, 1)
		go func() { done <- ReceiveCopy(t.Context(), o, said) }()
		select {
		case <-said.seen:
		case err := <-done:
			t.Fatal(err)
		}
		var config *tls.Config
		if o.Cert != "" {
			if config, err = stream.LoadTLS(c.cert, c.key, c.ca, false); err != nil {
				t.Fatal(err)
			}
			config.ServerName = "127.0.0.1"
		}
		took, err := p.send(t.Context(), said.match[1], config)
		if err != nil || took <= 0 {
			t.Errorf("%+v: %v, %v", o, took, err)
		}
		if err := <-done; err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, o := range []CopyOptions{{Size: copyPiece}, {Size: copyPiece, Connections: copyConnections + 1}, {Connections: 1}, {Size: 4096, Connections: 1}} {
		if err := ReceiveCopy(t.Context(), o, new(strings.Builder)); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// TestMigrateCases runs the cases briefly. Targets may be missed.
func TestMigrateCases(t *testing.T) {
	godwit := builtGodwit(t)
	report, err := Run(t.Context(), Options{Godwit: godwit, Quick: true, Only: names(moveCases())})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range report.Cases {
		if c.Error != "" || c.Skipped != "" {
			t.Errorf("%s: %s%s", c.Name, c.Error, c.Skipped)
			continue
		}
		targets := 0
		for _, m := range c.Metrics {
			targets += len(m.Targets)
			for _, s := range m.Series {
				if len(s.Samples) == 0 {
					t.Errorf("%s, %s: %s has no samples", c.Name, m.Name, s.Contestant)
				}
			}
		}
		if targets == 0 {
			t.Errorf("%s has no target", c.Name)
		}
	}
	var table strings.Builder
	if err := report.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
}
