package vmm

import (
	"context"
	"errors"

	"github.com/godwit-vmm/godwit/machine"
)

// Pause stops the guest between two instructions. Pausing a paused guest does
// nothing.
func (v *VM) Pause() error {
	v.op.Lock()
	defer v.op.Unlock()
	return v.pause()
}

// pause is Pause for who holds op.
func (v *VM) pause() error {
	return v.useSession(func(s *session) error {
		if v.Phase() == Paused {
			return nil
		}
		if v.hold(s) {
			<-s.entered
			s.m.Pause()
		}
		v.set(func() { v.phase = Paused })
		v.tell(Event{Kind: EventPaused})
		return nil
	})
}

// hold keeps the machine from running if it does not do so yet; it tells whether
// it does.
func (v *VM) hold(s *session) (begun bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.held = true
	return s.begun
}

// Resume lets a paused guest run on. Resuming one that runs does nothing.
func (v *VM) Resume() error {
	v.op.Lock()
	defer v.op.Unlock()
	return v.resume()
}

// resume is Resume for who holds op.
func (v *VM) resume() error {
	return v.useSession(func(s *session) error {
		if v.Phase() == Running {
			return nil
		}
		// Before the guest runs, which may end it at once: what is told comes
		// in order.
		v.tell(Event{Kind: EventResumed})
		v.mu.Lock()
		begun := s.begun
		v.mu.Unlock()
		if begun {
			s.m.Resume()
		}
		v.set(func() { v.phase, v.held = Running, false })
		return nil
	})
}

// PowerButton presses the power button: a guest that listens shuts down. It does
// not wait, not even for a reboot that is under way.
func (v *VM) PowerButton() error {
	switch m := v.Machine(); {
	case m != nil:
		// First, for the guest may end at once.
		v.tell(Event{Kind: EventPowerButton})
		m.PowerButton()
		return nil
	case v.Phase() == NotStarted:
		return ErrNotStarted
	case v.Phase() == Ended:
		return ErrEnded
	}
	return ErrRebooting
}

// Input types p on the guest's console: the virtio console if there is one, else the
// first serial port. It waits until the guest is started and has taken p, or ctx
// ends, and returns how much it has taken. What a guest has not taken when it reboots
// is lost, and counts as taken. What is typed by several goroutines comes one after
// the other.
func (v *VM) Input(ctx context.Context, p []byte) (int, error) {
	select {
	case v.typing <- struct{}{}:
		defer func() { <-v.typing }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-v.done:
		return 0, ErrEnded
	}
	s, err := v.await(ctx)
	if err != nil {
		return 0, err
	}
	sending, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(s.ctx, stop)()
	n, err := send(sending, s.m, p)
	if s.ctx.Err() != nil {
		return len(p), nil
	}
	return n, err
}

func send(ctx context.Context, m *machine.Machine, p []byte) (int, error) {
	if m.HVC() != nil {
		return m.HVC().Send(ctx, p)
	}
	return m.Console().Send(ctx, p)
}

// SendChannel gives the guest input on its second serial port, and returns when the
// guest has taken all of p. One goroutine may do so at a time.
func (v *VM) SendChannel(ctx context.Context, p []byte) (int, error) {
	m := v.Machine()
	if m == nil {
		return 0, errors.New("the guest does not run")
	}
	return m.Channel().Send(ctx, p)
}

// await waits until there is a machine.
func (v *VM) await(ctx context.Context) (*session, error) {
	for {
		v.mu.Lock()
		changed := v.changed
		v.mu.Unlock()
		if s := v.current.Load(); s != nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-v.done:
			return nil, ErrEnded
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
