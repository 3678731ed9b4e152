package live

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/godwit-vmm/godwit/migrate/handover"
)

// answer speaks for a migration whose process is gone, as its record tells, or refuses one
// that nothing is known of (rule 4 of package handover).
func (s *Server) answer(ctx context.Context, c *control, m handover.Message) {
	slot, d, first, err := s.recall(m, c.conn.RemoteAddr().String())
	if err != nil {
		return // another process has it, which the source finds sooner or later
	}
	defer slot.Close()
	nothing := func() error { return nil }
	heard := false
	driver := newDriver(part{
		step: func(e handover.Event) (actions []handover.Action) {
			heard = heard || e.Kind == handover.Received
			d, actions = d.Step(e)
			return actions
		},
		// One that had ended before answers, too.
		final: func() bool { return heard && d.Final() }, slot: slot, trace: s.Trace,
		takeLocks: nothing, dropLocks: nothing, run: func() error { return errors.New("its process has ended") },
		resume: func() {}, destroy: func() {}, report: func(handover.Phase, string) {},
	}, s.Waits)
	if err := c.conn.SetReadDeadline(time.Time{}); err != nil {
		return
	}
	driver.attach(c)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		defer stop()
		driver.post(handover.Event{Kind: handover.Received, Message: m})
		_ = driver.listen(c, frameHandover, nil)
	}()
	// It ends with the acknowledgement, or the connection: the source asks again.
	_ = driver.run(ctx, first)
	driver.attach(nil)
	s.tidy(d.State())
}

// keptRefusals is how many refusals that were not acknowledged stay in the journal, for
// people.
const keptRefusals = 64

// tidy keeps what strangers can have written from piling up in the journal, after a
// migration that came to a state.
func (s *Server) tidy(state handover.DestinationState) {
	if state == handover.DestinationRefused {
		// What is left is so until the next time.
		_ = s.Journal.PruneRefusals(keptRefusals)
	}
}

// recall finds what is known of a migration that a peer asks about, and takes its place in
// the journal.
func (s *Server) recall(m handover.Message, peer string) (*handover.Slot, handover.Destination, []handover.Action, error) {
	var none handover.Destination
	key := handover.Key{VM: unknownGuest, Role: handover.RoleDestination, ID: m.ID}
	// First: the process that takes part in it must not come to its end meanwhile.
	slot, err := s.Journal.Acquire(key)
	if err != nil {
		return nil, none, nil, err
	}
	found, err := s.Journal.Of(m.ID)
	found = slices.DeleteFunc(found, func(f handover.Found) bool { return f.Role != handover.RoleDestination })
	if err == nil && len(found) == 0 {
		slot.Peer = peer
		d, first := handover.UnknownDestination(m.ID, m.Epoch)
		return slot, d, first, nil
	}
	if err := errors.Join(err, slot.Close()); err != nil {
		return nil, none, nil, err
	}
	// What it is called in the journal is part of its place there.
	if slot, err = s.Journal.Acquire(found[0].Key); err != nil {
		return nil, none, nil, err
	}
	r, err := slot.Load()
	if err == nil {
		slot.Peer = r.Peer
		var d handover.Destination
		var first []handover.Action
		if d, first, err = handover.RestoreDestination(r); err == nil {
			return slot, d, first, nil
		}
	}
	return nil, none, nil, errors.Join(err, slot.Close())
}

// unknownGuest is the name in records of migrations of which nothing is known. A guest may
// have it, too.
const unknownGuest = "unknown"
