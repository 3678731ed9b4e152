package live

import (
	"context"
	"errors"
	"testing"

	"github.com/godwit-vmm/godwit/migrate/handover"
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
