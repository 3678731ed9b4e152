package live

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// ResolveOptions name a migration of this host whose process has ended.
type ResolveOptions struct {
	// Journal is this host's, and Key names the record, which is a source's.
	Journal *handover.Journal
	Key     handover.Key
	// Addr is where the destination listens; empty is where it did, as the record says.
	Addr string
	// TLS is nil for plain connections.
	TLS   *tls.Config
	Waits Waits
	// Orders are of an operator: handover.ForceRun and handover.ForceGiveUp.
	Orders <-chan handover.Event
	// Report, if set, is told how the migration stands, by the goroutine of Resolve.
	Report func(handover.Phase, string)
	// Trace is for tests.
	Trace Trace
}

// Resolve asks the destination of a migration that was in doubt when the source's
// process ended until it has answered, or an operator has said what is to be (rule 5 of
// package handover). It returns the state that the source came to:
// handover.SourceGone if the guest is the destination's, handover.SourceOwner or
// handover.SourceAborted if this host may start it, from its disks or a snapshot.
//
// When ctx ends before that the error wraps ErrInDoubt, and the record is as it was. It
// wraps handover.ErrBusy while another process asks, which is the guest's own, as a rule.
func Resolve(ctx context.Context, o ResolveOptions) (handover.SourceState, error) {
	slot, err := o.Journal.Acquire(o.Key)
	if err != nil {
		return 0, err
	}
	defer slot.Close()
	record, err := slot.Load()
	if err != nil {
		return 0, err
	}
	machine, first, err := handover.RestoreSource(record)
	if err != nil {
		return 0, err
	}
	if o.Addr == "" {
		o.Addr = record.Peer
	}
	slot.Peer = o.Addr
	d := newDriver(resolving(&machine, slot, &o), o.Waits)
	linked, unlink := context.WithCancel(ctx)
	defer unlink()
	link := &link{driver: d, addr: o.Addr, id: stream.ID(record.ID), tls: o.TLS, hear: func([]byte) error { return nil }, trace: o.Trace}
	go link.keep(linked, nil)
	go d.pass(linked, nil, o.Orders)
	if err := d.run(ctx, first); err != nil {
		return machine.State(), fmt.Errorf("%w: %w", ErrInDoubt, err)
	}
	return machine.State(), nil
}

// resolving is what a source without a guest does.
func resolving(s *handover.Source, slot *handover.Slot, o *ResolveOptions) part {
	nothing := func() error { return nil }
	report := o.Report
	if report == nil {
		report = func(handover.Phase, string) {}
	}
	return part{
		step: func(e handover.Event) (actions []handover.Action) {
			*s, actions = s.Step(e)
			return actions
		},
		final: func() bool { return s.Final() }, slot: slot, trace: o.Trace,
		takeLocks: nothing, dropLocks: nothing,
		run:    func() error { return errors.New("a source has no guest to run for the first time") },
		resume: func() {}, destroy: func() {}, report: report,
	}
}
