package live

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/migrate"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// Guest is a running guest that is to move. Its methods are called one at a time, but
// for Throttle and FetchDirty, which are called while the guest runs.
type Guest interface {
	migrate.Source
	// Throttle has the processors stand still for so many percent of the time, 0 to
	// 99.
	Throttle(percent int)
	// Save is the state of the paused guest, whose writes to its disks it makes
	// durable.
	Save() ([]byte, error)
	// TakeLocks and DropLocks are about the disks of the paused guest.
	TakeLocks() error
	DropLocks() error
	// Destroy makes sure that the guest never runs again here.
	Destroy()
}

// SourceOptions say how a guest moves, and where to.
type SourceOptions struct {
	// Offer is the guest; the version, ID, number of connections and disks are filled in.
	Offer Offer
	// Addr is where the destination listens: HOST:PORT or unix:PATH.
	Addr string
	// TLS is nil for plain connections.
	TLS *tls.Config
	// Connections for memory; 0 is DefaultConnections.
	Connections int
	Compress    stream.Compression
	// Limit bounds what memory and disks are sent with; nil does not.
	Limit *stream.Limiter
	// Disks move with the guest, at most MaxDisks.
	Disks []Disk
	// Policy says when the guest is paused for what is left, and what is done if that
	// does not get little enough.
	Policy stream.Policy
	Waits  Waits
	// Journal is this host's.
	Journal *handover.Journal
	// Progress, if set, is told how the migration stands, from any goroutine.
	Progress func(Progress)
	// Died is closed when the guest has ended.
	Died <-chan struct{}
	// Orders are of an operator: handover.ForceRun and handover.ForceGiveUp.
	Orders <-chan handover.Event
	// Trace is for tests.
	Trace Trace
}

// DefaultConnections is how many connections memory goes over unless a user says
// otherwise.
const DefaultConnections = 2

const (
	// answerTime is how long a destination may take to build its machine, and
	// timesTime how long its Times may come after STARTED.
	answerTime = time.Minute
	// redialFirst and redialMost are the pauses between attempts to reach a
	// destination again.
	redialFirst = 100 * time.Millisecond
	redialMost  = 2 * time.Second
	// stopTime is how long the copying may take to end by itself.
	stopTime = time.Second
)

// Errors of Migrate.
var (
	// ErrInDoubt says that the guest may run at the destination, or nowhere. It does
	// not run here.
	ErrInDoubt = errors.New("whether the destination has taken the guest is not known")
	// ErrTakenBack says that the destination refused late: the guest goes on here.
	ErrTakenBack = errors.New("the destination has given the guest back")
)

// RefusedError is a destination's answer.
type RefusedError struct {
	Host    string
	Reasons []string
}

// Error has all reasons.
func (e *RefusedError) Error() string {
	if len(e.Reasons) == 1 {
		return fmt.Sprintf("%s does not take the guest: %s", e.Host, e.Reasons[0])
	}
	return fmt.Sprintf("%s does not take the guest, for %d reasons:\n  - %s", e.Host, len(e.Reasons), strings.Join(e.Reasons, "\n  - "))
}

// source is a migration on its way.
type source struct {
	SourceOptions
	guest   Guest
	dialer  *stream.Dialer
	control *control
	sender  *stream.Sender
	mirrors mirrors
	// shared says that the destination has the guest's memory itself, and sender is nil.
	shared  bool
	driver  *driver
	machine handover.Source

	began time.Time
	// cancelCopy ends the copying, and copied is closed when it has.
	cancelCopy context.CancelCauseFunc
	copied     chan struct{}
	// paused and what follows belong to the copying, and then to the driver.
	paused   bool
	copyErr  error
	pausedAt time.Time
	report   Report

	// rest is the memory that is sent after the handover, nil if none is.
	rest *rest

	// why is what the machine has said about its end.
	why string

	// readyAt and doneAt are when READY and STARTED were heard first.
	readyAt, doneAt time.Time

	mu       sync.Mutex
	progress Progress
	there    Times
}

// Migrate moves a guest. When ctx ends before the guest has been let go, it is called
// off; life ends with the process, also while the guest is in doubt (ErrInDoubt).
//
// Without an error the guest is the destination's, and destroyed here; with ErrLost, too.
// With ErrInDoubt it is destroyed or stands still. After any other error it runs here, as before, but for
// the dirty log, which is on.
func Migrate(ctx, life context.Context, g Guest, o SourceOptions) (Report, error) {
	if o.Connections == 0 {
		o.Connections = DefaultConnections
	}
	if o.Waits == (Waits{}) {
		o.Waits = DefaultWaits
	}
	o.Offer.Version, o.Offer.Connections = Version, o.Connections
	o.Offer.PostCopy = o.Policy.PostCopy != stream.PostCopyNever
	var err error
	if o.Offer.Disks, err = offerDisks(o.Disks); err != nil {
		return Report{}, err
	}
	s := &source{SourceOptions: o, guest: g, began: time.Now(), copied: make(chan struct{})}
	s.machine = handover.NewSource(o.Offer.ID, o.Offer.Epoch)
	s.dialer = &stream.Dialer{Addr: o.Addr, ID: stream.ID(o.Offer.ID), TLS: o.TLS}
	slot, err := o.Journal.Acquire(handover.Key{VM: o.Offer.Name, Role: handover.RoleSource, ID: o.Offer.ID})
	if err != nil {
		return s.report, err
	}
	defer slot.Close()
	slot.Peer = o.Addr
	s.tell(func(p *Progress) { p.Phase = PhaseConnect })
	if err := s.connect(ctx); err != nil {
		return s.report, errors.Join(err, s.hangUp())
	}
	err = s.handOver(ctx, life, slot)
	s.report.Total = time.Since(s.began)
	return s.report, errors.Join(err, s.hangUp())
}

// tell changes the progress and passes it on.
func (s *source) tell(change func(*Progress)) {
	s.mu.Lock()
	change(&s.progress)
	s.progress.Elapsed = time.Since(s.began)
	s.progress.DiskSent, s.progress.DiskRemaining = s.mirrors.progress()
	p := s.progress
	s.mu.Unlock()
	if s.Progress != nil {
		s.Progress(p)
	}
}

// connect makes the offer, and the connections.
func (s *source) connect(ctx context.Context) error {
	conn, err := s.dialer.Control(ctx)
	if err != nil {
		return err
	}
	s.control = newControl(conn, s.Trace)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	answer, err := s.offer()
	if err == nil && len(answer.Reasons) > 0 {
		return &RefusedError{answer.Host, answer.Reasons}
	}
	if err != nil {
		return orCause(ctx, fmt.Errorf("migrate to %s: %w", s.Addr, err))
	}
	s.shared = s.Offer.SharesMemory && answer.Shared
	if s.shared {
		s.Connections = 0
	}
	var data []net.Conn
	for i := range s.Connections {
		conn, err := s.dialer.Data(ctx, stream.Data, i)
		if err != nil {
			for _, c := range data {
				err = errors.Join(err, c.Close())
			}
			return orCause(ctx, err)
		}
		data = append(data, conn)
	}
	if err := s.connectDisks(ctx, answer); err != nil {
		for _, c := range data {
			err = errors.Join(err, c.Close())
		}
		return orCause(ctx, err)
	}
	if !s.shared {
		s.sender = stream.NewSender(data, stream.SenderOptions{Compress: s.Compress, Limit: s.Limit, Stall: s.Waits.Ready})
	}
	if !stop() {
		return context.Cause(ctx)
	}
	return nil
}

func orCause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (s *source) offer() (Answer, error) {
	var a Answer
	s.Offer.Time = time.Now()
	if err := s.control.sendOffer(s.Offer); err != nil {
		return a, err
	}
	text, err := s.control.expect(frameAnswer, answerTime)
	if err != nil {
		return a, fmt.Errorf("no answer to the offer: %w: is it godwit receive that listens there, and has it not ended?", err)
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return a, fmt.Errorf("answer to the offer: %w", err)
	}
	return a, nil
}

// hangUp closes the connections.
func (s *source) hangUp() error {
	if s.sender != nil {
		// What goes wrong with connections that are not needed does not matter.
		_ = s.sender.Close()
	}
	s.mirrors.close()
	if s.driver != nil {
		s.driver.attach(nil)
	} else if s.control != nil {
		_ = s.control.conn.Close()
	}
	return nil
}

// handOver copies the guest and hands it over.
func (s *source) handOver(ctx, life context.Context, slot *handover.Slot) error {
	s.driver = newDriver(part{
		step:      s.step,
		final:     func() bool { return s.machine.Final() },
		slot:      slot,
		trace:     s.Trace,
		takeLocks: s.guest.TakeLocks, dropLocks: s.guest.DropLocks,
		resume: s.resume, destroy: s.guest.Destroy, report: s.phase,
	}, s.Waits)
	s.driver.attach(s.control)
	linked, unlink := context.WithCancel(life)
	defer unlink()
	link := &link{driver: s.driver, addr: s.Addr, id: s.dialer.ID, tls: s.TLS, hear: s.hear, trace: s.Trace}
	go link.keep(linked, s.control)
	go s.driver.pass(linked, s.Died, s.Orders)

	copying, cancel := context.WithCancelCause(life)
	s.cancelCopy = cancel
	defer cancel(nil)
	go func() {
		if s.shared {
			s.copyErr = s.pass(copying)
		} else {
			s.copyErr = s.copy(copying)
		}
		close(s.copied) // first: the driver may wait for it
		if s.copyErr != nil {
			s.driver.post(handover.Event{Kind: handover.Failed, Reason: s.copyErr.Error()})
		}
	}()
	defer context.AfterFunc(ctx, func() {
		s.driver.post(handover.Event{Kind: handover.Cancel, Reason: context.Cause(ctx).Error()})
	})()
	if err := s.driver.run(life, nil); err != nil {
		s.stopCopying()
		s.stopRest()
		if s.machine.MayRun() {
			return err
		}
		return fmt.Errorf("%w: %w", ErrInDoubt, err)
	}
	return s.outcome(ctx)
}

// step is the machine's, and notes when it came to what the report is about.
func (s *source) step(e handover.Event) (actions []handover.Action) {
	before := s.machine.State()
	s.machine, actions = s.machine.Step(e)
	switch now := s.machine.State(); {
	case now == before:
	case now == handover.SourceReleasing:
		s.readyAt = time.Now()
	case now == handover.SourceLeaving:
		s.doneAt = time.Now()
	}
	return actions
}

// outcome is what Migrate returns.
func (s *source) outcome(ctx context.Context) error {
	switch s.machine.State() {
	case handover.SourceGone:
		<-s.copied
		err := s.finishRest()
		s.finish()
		return err
	case handover.SourceOwner:
		return fmt.Errorf("%w, which goes on here: %s", ErrTakenBack, s.why)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.copyErr != nil && !errors.Is(s.copyErr, errStopped) {
		return s.copyErr
	}
	return fmt.Errorf("the migration to %s was called off, and the guest goes on here: %s", s.Addr, s.why)
}

// finish completes the report of a guest that has moved.
func (s *source) finish() {
	s.mu.Lock()
	d := &s.report.Downtime
	d.Total = s.doneAt.Sub(s.pausedAt)
	d.Handover = s.doneAt.Sub(s.readyAt)
	d.State = d.Total - d.Handover - d.Pause - d.LastRound - d.Save
	d.There = s.there
	s.mu.Unlock()
	s.tell(func(p *Progress) { p.Phase, p.Remaining, p.Rate = PhaseDone, 0, 0 })
}

// phase is the driver's report.
func (s *source) phase(p handover.Phase, why string) {
	if why != "" && p != handover.PhaseNotNow {
		s.why = why
	}
	switch p {
	case handover.PhaseHandover:
		s.tell(func(p *Progress) { p.Phase = PhaseHandover })
	case handover.PhaseInDoubt:
		s.tell(func(p *Progress) { p.Phase, p.Reason = PhaseInDoubt, why })
	case handover.PhaseStuck, handover.PhaseConflict:
		s.tell(func(p *Progress) { p.Phase, p.Reason = PhaseStuck, why })
	}
}

// errStopped is why the copying ended when the machine wanted it to.
var errStopped = errors.New("the migration was called off")

func (s *source) stopCopying() {
	s.cancelCopy(errStopped) // what waits for the peer does not any more
	select {
	case <-s.copied:
		return
	case <-time.After(stopTime):
	}
	// It sends the state to a destination that does not read: the guest does not wait
	// for that.
	_ = s.control.conn.Close()
	<-s.copied
}

// resume lets the guest run on.
func (s *source) resume() {
	s.stopCopying()
	s.stopRest()
	s.guest.Throttle(0)
	if s.paused {
		s.paused = false
		s.guest.Resume()
	}
}

// hear takes what is not for the machine.
func (s *source) hear(body []byte) error {
	var t Times
	if err := json.Unmarshal(body, &t); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.there = t
	return nil
}
