package live

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// written writes a record into a journal, as a process has that is gone.
func written(t *testing.T, j *handover.Journal, k handover.Key, e handover.Entry, peer string) {
	t.Helper()
	slot, err := j.Acquire(k)
	if err == nil {
		slot.Peer = peer
		e.Role, e.Base = k.Role, 1
		err = errors.Join(slot.Write(e), slot.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestResolve asks a destination, and an operator, what is to be after RELEASED.
func TestResolve(t *testing.T) {
	released := &handover.Entry{State: handover.StateReleased, Epoch: 1}
	for _, tt := range []struct {
		name string
		// here and there are the records; there is a destination that answers unless
		// silent is set.
		here, there *handover.Entry
		silent      bool
		order       handover.EventKind
		want        handover.SourceState
		// epoch is the one of the guest here, 0 if it is not here.
		epoch uint64
	}{
		{name: "owner there", here: released, there: &handover.Entry{State: handover.StateOwner, Epoch: 2}, want: handover.SourceGone},
		{name: "settled there", here: released, there: &handover.Entry{State: handover.StateOwner, Epoch: 2, Settled: true}, want: handover.SourceGone},
		{name: "refused there", here: released, there: &handover.Entry{State: handover.StateRefused, Epoch: 2}, want: handover.SourceOwner, epoch: 3},
		{name: "unknown there", here: released, want: handover.SourceOwner, epoch: 3},
		{name: "forced to run", here: released, silent: true, order: handover.ForceRun, want: handover.SourceOwner, epoch: 3},
		{name: "given up", here: released, silent: true, order: handover.ForceGiveUp, want: handover.SourceGone},
		{name: "gone already", here: &handover.Entry{State: handover.StateGone, Epoch: 1, Settled: true}, silent: true, want: handover.SourceGone},
		{name: "back already", here: &handover.Entry{State: handover.StateOwner, Epoch: 3, Settled: true}, silent: true, want: handover.SourceOwner, epoch: 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := handover.NewID()
			k := handover.Key{VM: "traveller", Role: handover.RoleSource, ID: id}
			d, j := newThere(t), newJournal(t)
			addr := d.addr
			if tt.silent {
				addr = "127.0.0.1:1"
			}
			written(t, j, k, *tt.here, addr)
			if tt.there != nil {
				written(t, d.Journal, handover.Key{VM: "traveller", Role: handover.RoleDestination, ID: id}, *tt.there, "")
			}
			orders := make(chan handover.Event, 1)
			if tt.order != 0 {
				orders <- handover.Event{Kind: tt.order, Reason: "it was switched off"}
			}
			close(orders)
			got, err := Resolve(t.Context(), ResolveOptions{Journal: j, Key: k, Waits: quick, Orders: orders})
			if got != tt.want || err != nil {
				t.Fatalf("%v, %v, want %v", got, err, tt.want)
			}
			if epoch, err := j.Epoch("traveller"); epoch != tt.epoch || (err == nil) != (tt.epoch > 0) {
				t.Errorf("epoch %d, %v, want %d", epoch, err, tt.epoch)
			}
			if open, err := j.Unsettled(); len(open) > 0 || err != nil {
				t.Errorf("left: %v, %v", open, err)
			}
		})
	}
}

// TestResolveEnds: what is not decided stays as it was.
func TestResolveEnds(t *testing.T) {
	j := newJournal(t)
	k := handover.Key{VM: "traveller", Role: handover.RoleSource, ID: handover.NewID()}
	if _, err := Resolve(t.Context(), ResolveOptions{Journal: j, Key: k}); err == nil {
		t.Error("a migration without a record was resolved")
	}
	written(t, j, k, handover.Entry{State: handover.StateReleased, Epoch: 1}, "127.0.0.1:1")
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan handover.Phase, 1)
	_, err := Resolve(ctx, ResolveOptions{Journal: j, Key: k, Report: func(p handover.Phase, _ string) {
		told <- p
		cancel()
	}})
	if p := <-told; p != handover.PhaseInDoubt || !errors.Is(err, ErrInDoubt) {
		t.Errorf("%v, %v", p, err)
	}
	slot, err := j.Acquire(k)
	if err != nil {
		t.Fatal(err)
	}
	defer slot.Close()
	if r, err := slot.Load(); r.State != handover.StateReleased || err != nil {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := Resolve(t.Context(), ResolveOptions{Journal: j, Key: k}); !errors.Is(err, handover.ErrBusy) {
		t.Errorf("while another process asks: %v", err)
	}
}

// TestAnswers: what strangers ask about does not pile up in the journal, nor change what is
// known; and the guest's name there does not matter.
func TestAnswers(t *testing.T) {
	d := newThere(t)
	ask := func(id handover.ID, want handover.Verb) {
		t.Helper()
		dialer := &stream.Dialer{Addr: d.addr, ID: stream.ID(id)}
		conn, err := dialer.Control(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := newControl(conn, nil)
		if err := c.send(frameHandover, handover.Message{Verb: handover.Commit, ID: id, Epoch: 1}.Encode()); err != nil {
			t.Fatal(err)
		}
		_, body, err := c.receive(frameHandover)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := handover.DecodeMessage(body); err != nil || m.Verb != want {
			t.Errorf("the answer is %+v, %v, want %v", m, err, want)
		}
	}
	here := handover.Key{VM: unknownGuest, Role: handover.RoleDestination, ID: handover.NewID()}
	written(t, d.Journal, here, handover.Entry{State: handover.StateOwner, Epoch: 2}, "192.0.2.7:4000")
	for range 2 * keptRefusals {
		ask(handover.NewID(), handover.Refused)
	}
	ask(here.ID, handover.Started)
	// That a connection has ended is found out later, and has no event here.
	var all []handover.Found
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if all, err = d.Journal.List(); err != nil {
			t.Fatal(err)
		}
		if len(all) < 3*keptRefusals/2 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d records stay", len(all))
		}
	}
	for _, f := range all {
		if f.Record.Peer == "" || (f.Key == here) != (f.Record.State == handover.StateOwner) {
			t.Errorf("there is %+v", f)
		}
	}
	if epoch, err := d.Journal.Epoch(unknownGuest); epoch != 2 || err != nil {
		t.Errorf("the guest that is here: epoch %d, %v", epoch, err)
	}
}
