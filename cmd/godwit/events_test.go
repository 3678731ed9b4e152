package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/events"
)

func TestPrintEvent(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	for _, tt := range []struct {
		e    events.Event
		want string
	}{
		{events.Event{Type: events.Paused}, "paused"},
		{events.Event{Type: events.Ended, Message: "powered off"}, "ended  powered off"},
		{events.Event{Type: events.DeviceReset, Device: "disk 0", Message: "a loop in its queue"}, "device-reset  disk 0  a loop in its queue"},
		{events.Event{Type: events.Dropped, Count: 7}, "dropped  7 events were lost here"},
		{events.Event{Type: events.Panicked, Message: "\x1b[2J\nx\u0085"}, "panicked  ?[2J?x?"},
	} {
		tt.e.Time, tt.e.Name = at, "web"
		var out bytes.Buffer
		if err := printEvent(&out, tt.e); err != nil {
			t.Fatal(err)
		}
		if want := at.Local().Format("2006-01-02 15:04:05") + ".678" + "  web  " + tt.want + "\n"; out.String() != want {
			t.Errorf("got  %swant %s", out.String(), want)
		}
	}
}

// lines collects what a follower prints, and tells of each line.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
	each func(line string)
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	l.text.Write(p)
	l.mu.Unlock()
	if l.each != nil {
		l.each(string(p))
	}
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// printShort follows from the start and prints names and types only.
func printShort(l *lines) *follower {
	return &follower{w: l, since: "0", print: func(w io.Writer, e events.Event) error {
		_, err := fmt.Fprintf(w, "%s %s\n", e.Name, e.Type)
		return err
	}}
}

func TestEventsOfOne(t *testing.T) {
	ownGuests(t)
	startProcess(t, "web", obedient)
	startProcess(t, "other", silent)
	l := &lines{}
	l.each = func(line string) {
		if strings.HasSuffix(line, "  started\n") {
			go runCobra(t, newStop(), "web")
		}
	}
	c := newEvents()
	c.SetArgs([]string{"web", "--since", "1h"})
	c.SetOut(l)
	err := c.ExecuteContext(t.Context())
	out := l.String()
	want := regexp.MustCompile(`^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d\d\d  web  started\n.*  web  ended  powered off\n$`)
	if err != nil || !want.MatchString(out) {
		t.Errorf("got %v\n%s", err, out)
	}
}

func TestEventsJSON(t *testing.T) {
	ownGuests(t)
	v := startVMM(t, "web")
	v.bus.Publish(events.Event{Type: events.Started})
	v.bus.Publish(events.Event{Type: events.Ended})
	v.bus.Close()
	out, _, err := runCobra(t, newEvents(), "--json", "--since", "1h", "web")
	d := json.NewDecoder(strings.NewReader(out))
	for seq, want := range []events.Type{events.Started, events.Ended} {
		var e events.Event
		if decodeErr := d.Decode(&e); decodeErr != nil || err != nil || e.Type != want || e.Seq != uint64(seq+1) || e.Name != "web" {
			t.Errorf("got %+v, %v, %v, want %s", e, decodeErr, err, want)
		}
	}
	if d.More() {
		t.Errorf("more than that:\n%s", out)
	}
}

// TestEventsOfAll: those of all guests, also of one that is started meanwhile and
// of one that is killed, until all are gone.
func TestEventsOfAll(t *testing.T) {
	ownGuests(t)
	first := startProcess(t, "first", obedient)
	var later sync.WaitGroup
	l := &lines{}
	l.each = func(line string) {
		switch line {
		case "first started\n":
			later.Go(func() {
				startProcess(t, "later", obedient)
			})
		case "later started\n":
			first.Process.Kill()
		case "first gone\n":
			go runCobra(t, newStop(), "later")
		}
	}
	if err := printShort(l).follow(t.Context(), nil); err != nil {
		t.Error(err)
	}
	later.Wait()
	if want := "first started\nlater started\nfirst gone\nlater ended\n"; l.String() != want {
		t.Errorf("got\n%swant\n%s", l.String(), want)
	}
}

func TestEventsEnds(t *testing.T) {
	ownGuests(t)
	if out, messages, err := runCobra(t, newEvents()); err != nil || out != "" || messages != "godwit: no guest runs\n" {
		t.Errorf("without guests: %q, %q, %v", out, messages, err)
	}
	startVMM(t, "web").bus.Publish(events.Event{Type: events.Started})
	if _, _, err := runCobra(t, newEvents(), "web", "nobody"); err == nil || err.Error() != "guest nobody is not running: godwit ps lists those that are" {
		t.Errorf("a guest that is not there: %v", err)
	}
	for _, names := range [][]string{nil, {"web"}} {
		ctx, cancel := context.WithCancel(t.Context())
		l := &lines{each: func(string) { cancel() }}
		if err := printShort(l).follow(ctx, names); err != nil {
			t.Errorf("interrupted: %v", err)
		}
		broken := printShort(&lines{})
		failed := errors.New("no space left")
		broken.print = func(io.Writer, events.Event) error { return failed }
		if err := broken.follow(t.Context(), names); !errors.Is(err, failed) {
			t.Errorf("a failed write: %v", err)
		}
		bad := printShort(&lines{})
		bad.since = "yesterday"
		if err := bad.follow(t.Context(), names); err == nil || !strings.Contains(err.Error(), "guest web: since=yesterday") {
			t.Errorf("a refusal: %v", err)
		}
	}
}
