package vmm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godwit-vmm/godwit/machine"
)

// Start builds the machine and lets it run. After an error the guest is not
// started, and may be configured in another way.
func (v *VM) Start() error {
	v.op.Lock()
	defer v.op.Unlock()
	return v.starts(func() error {
		m, err := v.build()
		if err != nil {
			return err
		}
		return v.launch(newSession(m), Running)
	})
}

// starts calls start while the configuration must not change. The caller holds op.
func (v *VM) starts(start func() error) (err error) {
	defer v.countStart(time.Now(), &err)
	v.mu.Lock()
	phase := v.phase
	v.starting = phase == NotStarted
	v.mu.Unlock()
	switch phase {
	case NotStarted:
	case Ended:
		return ErrEnded
	default:
		return ErrStarted
	}
	v.known.Store(nil)
	err = start()
	v.set(func() { v.starting = false })
	return err
}

func (v *VM) build() (*machine.Machine, error) {
	if v.o.System == nil {
		return nil, errors.New("there is no KVM here")
	}
	return machine.New(v.o.System, v.machineConfig())
}

// launch begins the life of the guest with its first machine, which it takes over:
// in the phase Running, or Paused. The caller is within starts.
func (v *VM) launch(s *session, phase Phase) error {
	if v.o.Built != nil {
		if err := v.o.Built(); err != nil {
			return errors.Join(err, s.close())
		}
	}
	v.set(func() {
		v.phase, v.held, v.started = phase, phase == Paused, time.Now()
		v.current.Store(s)
	})
	v.tell(Event{Kind: EventStarted})
	if phase == Paused {
		v.tell(Event{Kind: EventPaused})
	}
	go v.live(s)
	if s.paging != nil {
		go s.unpage()
	}
	return nil
}

func newSession(m *machine.Machine) *session {
	s := &session{m: m, entered: make(chan struct{})}
	s.ctx, s.end = context.WithCancel(context.Background())
	return s
}

// live leads the guest from machine to machine to its end.
func (v *VM) live(s *session) {
	for {
		outcome, err := v.run(s)
		// What is typed for a guest that is gone is not waited for.
		s.end()
		v.record(s)
		v.use.Lock()
		v.keepCounters(s.m)
		v.set(func() { v.current.Store(nil) })
		err = errors.Join(err, s.close())
		s = nil
		if outcome == machine.Reset && err == nil && !v.o.NoReboot && v.ctx.Err() == nil {
			if s, err = v.reboot(); err != nil {
				err = fmt.Errorf("reboot the guest: %w", err)
			}
		}
		v.use.Unlock()
		if s == nil {
			v.finish(outcome, err)
			return
		}
		v.tell(Event{Kind: EventRebooted})
	}
}

// reboot makes the next machine. The caller holds use.
func (v *VM) reboot() (*session, error) {
	m, err := v.build()
	if err != nil {
		return nil, err
	}
	s := newSession(m)
	v.set(func() { v.current.Store(s) })
	return s, nil
}

// run runs a machine to its end, once it is not held any more: a guest that was
// paused when it asked for its reset is paused after it.
func (v *VM) run(s *session) (machine.Outcome, error) {
	for {
		v.mu.Lock()
		held, changed := v.held, v.changed
		s.begun = !held
		v.mu.Unlock()
		if !held {
			return s.m.Run(v.ctx)
		}
		select {
		case <-changed:
		case <-v.ctx.Done():
			return machine.Killed, nil
		}
	}
}

// trace is the machine's. All processors are on their way in phase "run".
func (v *VM) trace(phase string) {
	if phase == "run" {
		close(v.current.Load().entered)
	}
	if v.o.Trace != nil {
		v.o.Trace(phase)
	}
}

// finish notes the end.
func (v *VM) finish(outcome machine.Outcome, err error) {
	v.set(func() { v.phase = Ended })
	v.outcome, v.err = outcome, err
	if outcome == machine.Panicked {
		v.tell(Event{Kind: EventPanicked})
	}
	v.tell(Event{Kind: EventEnded, Outcome: outcome, Err: err})
	// Before those who wait for the end ask for its cause.
	v.kill(nil)
	close(v.done)
}

// endUnstarted ends a guest that was killed before it was started.
func (v *VM) endUnstarted() {
	v.op.Lock()
	defer v.op.Unlock()
	if v.Phase() == NotStarted {
		v.finish(machine.Killed, nil)
	}
}

// Kill ends the guest like a power cut. Cause tells why; a second call does
// nothing. It does not wait.
func (v *VM) Kill(cause error) { v.kill(cause) }

// Cause is what Kill was given, or why the context of New ended; nil for neither.
func (v *VM) Cause() error {
	if v.ctx.Err() == nil {
		return nil
	}
	return context.Cause(v.ctx)
}

// Done is closed when the guest has ended.
func (v *VM) Done() <-chan struct{} { return v.done }

// Wait waits for the end of the guest and says how it came: as machine.Run says it,
// with the outcome machine.Reset and an error for a reboot that failed. All that the
// guest wrote has then reached the writers.
func (v *VM) Wait() (machine.Outcome, error) {
	<-v.done
	return v.outcome, v.err
}
