package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// TestDescribeRecord: what an operator reads of each record that there can be.
func TestDescribeRecord(t *testing.T) {
	const source, destination = handover.RoleSource, handover.RoleDestination
	guest := func(phase live.Phase) *movingGuest {
		return &movingGuest{rundir.Info{Name: "web", PID: 7}, api.MigrationStatus{Address: "there:1", Progress: &live.Progress{Phase: phase}}}
	}
	cut := guest(live.PhasePostCopy)
	cut.Progress.Reason = "connection refused"
	incomplete := func(why string) *movingGuest {
		return &movingGuest{rundir.Info{Name: "web", PID: 7}, api.MigrationStatus{Missing: &api.MissingMemory{Bytes: 1 << 20, Reason: why}}}
	}
	for _, tt := range []struct {
		name         string
		role         handover.Role
		state        handover.RecordState
		open         bool
		guest        *movingGuest
		damaged      error
		owner, shows string
		doubt        bool
		says, todo   string
	}{
		{"let go, asking", source, handover.StateReleased, true, guest(live.PhaseInDoubt), nil, "unknown", "in doubt", true, "Its process 7 keeps it", "start godwit receive there again"},
		{"let go just now", source, handover.StateReleased, true, guest(live.PhaseHandover), nil, "unknown", "handover", true, "goes on asking", "--run-here --fenced"},
		{"let go, nobody asks", source, handover.StateReleased, true, nil, nil, "unknown", "in doubt", true, "nobody asks", "and ask it: godwit migration resolve web"},
		{"let go by a former process", source, handover.StateReleased, true, guest(""), nil, "unknown", "in doubt", true, "nobody asks", "--give-up"},
		{"let go and got again", source, handover.StateReleased, false, nil, nil, "here", "came back", false, "was this host's again", ""},
		{"gone", source, handover.StateGone, false, nil, nil, "there", "moved away", false, "not started here any more: the reason", "godwit migration resolve web --forget"},
		{"gone, but for its memory", source, handover.StateGone, false, guest(live.PhasePostCopy), nil, "there", "moved, its memory follows", false, "which process 7 sends", ""},
		{"gone, but its memory cannot", source, handover.StateGone, false, cut, nil, "there", "moved, its memory follows", false, "now: connection refused.", "--give-up"},
		{"came, but for its memory", destination, handover.StateOwner, false, incomplete(""), nil, "here", "came, its memory follows", false, "1.0 MiB of its memory are still there", ""},
		{"came, and waits", destination, handover.StateOwner, true, incomplete("EOF"), nil, "here", "waiting for the source's memory", false, "do not come: EOF.", "--give-up"},
		{"stayed", source, handover.StateOwner, false, nil, nil, "here", "taken back", false, "is this host's: the reason", ""},
		{"came, not known there", destination, handover.StateOwner, true, nil, nil, "here", "came", false, "came from there:1", "may not know yet"},
		{"came", destination, handover.StateOwner, false, nil, nil, "here", "came", false, "came from there:1", ""},
		{"refused, not known there", destination, handover.StateRefused, true, nil, nil, "there", "refused", false, "keeps it: the reason", "may not know yet"},
		{"refused", destination, handover.StateRefused, false, nil, nil, "there", "refused", false, "did not come", ""},
		{"damaged", source, 0, false, nil, errors.New("no JSON"), "unknown", "damaged record", true, "cannot be read: no JSON", "remove the record: godwit migration resolve web --forget"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := handover.Found{Key: handover.Key{VM: "web", Role: tt.role}, Err: tt.damaged}
			if tt.damaged == nil {
				f.Record = handover.Record{Entry: handover.Entry{Role: tt.role, State: tt.state, Reason: "the reason"}, VM: "web", Peer: "there:1", Time: time.Now()}
			}
			r := describeRecord(f, tt.open, tt.guest)
			todo := strings.Join(r.Todo, "\n")
			if r.Owner != tt.owner || r.State != tt.shows || r.InDoubt != tt.doubt || !strings.Contains(r.Says, tt.says) || !strings.Contains(todo, tt.todo) || (tt.todo == "") != (todo == "") {
				t.Errorf("got %+v", r)
			}
			var out strings.Builder
			if err := printMigrations(&out, []migrationRow{r}); err != nil || !strings.HasPrefix(out.String(), "web: "+tt.shows) || strings.ContainsRune(out.String(), '\x1b') {
				t.Errorf("printed %q, %v", out.String(), err)
			}
		})
	}
}

// TestResolveAsks: what --forget needs is a yes.
func TestResolveAsks(t *testing.T) {
	for answer, good := range map[string]bool{"yes\n": true, "no\n": false, "": false, "yes please\n": false, "yes": false} {
		var question strings.Builder
		o := resolveOptions{in: strings.NewReader(answer), messages: &question}
		if err := o.confirm("forget it?"); (err == nil) != good || !strings.Contains(question.String(), "forget it?") {
			t.Errorf("%q: %v, %q", answer, err, question.String())
		}
	}
}

func TestMigrationLine(t *testing.T) {
	v := migrationView{name: "web"}
	for want, p := range map[string]live.Progress{
		"web: handover":                  {Phase: live.PhaseHandover},
		"web: [..........":               {Phase: live.PhaseCopy, Remaining: 1 << 20},
		"[####################] round 3": {Phase: live.PhaseCopy, Round: 3, Sent: 1 << 63},
		"[##########..........]":         {Phase: live.PhaseCopy, Sent: 5, Remaining: 5},
		"web: [###############.....] disks: 3.0 MiB sent, 1.0 MiB left": {Phase: live.PhaseCopy, DiskSent: 3 << 20, DiskRemaining: 1 << 20},
		"0 bytes/s, disks 3.0 MiB sent, 1.0 MiB left":                   {Phase: live.PhaseCopy, Round: 1, Sent: 5, DiskSent: 3 << 20, DiskRemaining: 1 << 20},
		"runs there, 1.0 MiB of its memory are still here":              {Phase: live.PhasePostCopy, Sent: 1 << 20, Remaining: 1 << 20},
		"written 1.0 MiB/s, pause 5ms, slowed by 40%":                   {Phase: live.PhaseCopy, DirtyRate: 1 << 20, Predicted: 5 * time.Millisecond, Throttle: 40},
	} {
		if got := v.line(&p); !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestMigrationStatusEmpty(t *testing.T) {
	ownGuests(t)
	t.Setenv("GODWIT_STATE_DIR", t.TempDir())
	if out, _, err := runCobra(t, newMigration(), "status"); err != nil || !strings.HasPrefix(out, "no guest moves") {
		t.Errorf("%q, %v", out, err)
	}
	if out, _, err := runCobra(t, newMigration(), "status", "--json"); err != nil || out != "[]\n" {
		t.Errorf("%q, %v", out, err)
	}
}
