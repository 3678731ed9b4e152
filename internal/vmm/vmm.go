// Package vmm is the life of one guest: it is configured, started, paused and
// resumed, gets a new machine when it reboots, and ends. The commands that run
// guests and the API are built on it.
//
//	Not started --Start, Load--> Running <--Pause, Resume--> Paused
//	     any of them --the guest ends, Kill--> Ended
//
// A machine.Machine is one power cycle of the guest; a VM is all of them.
package vmm

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/console"
	"github.com/godwit-vmm/godwit/devices/virtio/net/pcap"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// Phase is where in its life a guest is.
type Phase int

// The phases. A guest that reboots is Running.
const (
	NotStarted Phase = iota
	Running
	Paused
	Ended
)

// String is the phase as Firecracker's API calls it; Ended is godwit's own.
func (p Phase) String() string {
	switch p {
	case NotStarted:
		return "Not started"
	case Running:
		return "Running"
	case Paused:
		return "Paused"
	}
	return "Ended"
}

// Errors about the phase.
var (
	// ErrNotStarted and ErrStarted say that it is too early, or too late.
	ErrNotStarted = errors.New("the guest is not started")
	ErrStarted    = errors.New("the guest is started already")
	// ErrNotPaused asks for Pause first.
	ErrNotPaused = errors.New("the guest is not paused")
	// ErrConfigured says that a snapshot brings its own configuration along.
	ErrConfigured = errors.New("the guest is configured already")
	// ErrEnded says that there is no guest any more.
	ErrEnded = errors.New("the guest has ended")
	// ErrRebooting says that there is no machine at the moment.
	ErrRebooting = errors.New("the guest is just rebooting: try again")
)

// Options say how the guest of a VM is run, as against Config, which says what
// machine it gets.
type Options struct {
	// System is KVM. It stays open until the VM has ended.
	System *kvm.System
	// Name of the guest, unless Identify tells another one.
	Name string
	// Identify, if set, tells what others know the guest by. It is called at the
	// start, when the VM and its memory are there, so that what it waits for
	// can go beside that; and not again once it has told, unless that start
	// fails.
	Identify func(Config) (Identity, error)
	// NoReboot ends the VM when the guest reboots.
	NoReboot bool
	// Console and Channel get what the guest writes to its first and second
	// serial port. nil discards it.
	Console, Channel io.Writer
	// HVC adds a virtio console, which then is what Input goes to. A guest that
	// is restored gets one if it had one.
	HVC *console.Config
	// Capture gets what passes the network cards; nil captures nothing.
	Capture *pcap.File
	// Built, if set, is called when the first machine is built, before its first
	// instruction. Its error ends the start.
	Built func() error
	// Event, if set, is told what happens to the guest. It is called from any
	// goroutine, must not block, and must not call the VM but for Name, Phase
	// and Machine.
	Event func(Event)
	// Trace and ExitTrace are those of machine.Config.
	Trace     func(phase string)
	ExitTrace io.Writer
}

// Identity is what others know a guest by.
type Identity struct {
	// Name of the guest: the MAC addresses of its network cards come from it.
	Name string
	// Vsock is the path of the socket of its vsock device, empty for no such
	// device.
	Vsock string
}

// VM is a guest. Its methods may be called from any goroutine.
type VM struct {
	o    Options
	ctx  context.Context // ends with Kill
	kill context.CancelCauseFunc
	done chan struct{} // closed when the guest has ended

	// known is what Identify has told.
	known   atomic.Pointer[Identity]
	figures figures

	// op is held by what leads from one phase to another: one at a time.
	op sync.Mutex
	// use is read-held while the machine is used, and held while it is
	// replaced. Who holds it does not ask for op.
	use     sync.RWMutex
	current atomic.Pointer[session]
	// typing has room for the one that gives the guest input.
	typing chan struct{}

	mu     sync.Mutex
	phase  Phase
	config Config
	// started is when the guest was started; zero before that.
	started time.Time
	// starting is set while a machine is built for the first time: the
	// configuration must not change any more.
	starting bool
	// configured is set by Configure.
	configured bool
	// held keeps a machine that does not run yet from doing so.
	held bool
	// changed is closed, and replaced, when one of the above changes, or
	// current.
	changed chan struct{}

	// outcome and err are the end, for those who have seen done.
	outcome machine.Outcome
	err     error
}

// session is one power cycle of the guest.
type session struct {
	m *machine.Machine
	// ctx ends with it.
	ctx context.Context
	end context.CancelFunc
	// begun is set, under VM.mu, before the machine runs, and entered closed
	// when it does: only then can it be paused.
	begun   bool
	entered chan struct{}
	// tracked is nil unless the guest's writes since a snapshot are logged. Who
	// holds VM.op may use it.
	tracked *tracked
	// paging, if set, brings memory from another host.
	paging *live.Paging
	// usage is nil unless somebody wants to know what memory the guest uses.
	usage *usage
}

// New makes a VM that is not started. The guest is killed when ctx ends.
func New(ctx context.Context, o Options, c Config) *VM {
	v := &VM{
		o: o, config: c.clone(),
		done: make(chan struct{}), changed: make(chan struct{}), typing: make(chan struct{}, 1),
	}
	v.ctx, v.kill = context.WithCancelCause(ctx)
	// What runs ends by itself.
	context.AfterFunc(v.ctx, v.endUnstarted)
	return v
}

// identity is what others know the guest by.
func (v *VM) identity() (Identity, error) {
	if i := v.known.Load(); i != nil {
		return *i, nil
	}
	c := v.Config()
	i := Identity{Name: v.o.Name}
	if c.Vsock != nil {
		i.Vsock = c.Vsock.Path
	}
	if v.o.Identify != nil {
		var err error
		if i, err = v.o.Identify(c); err != nil {
			return i, err
		}
	}
	v.known.Store(&i)
	return i, nil
}

// Name of the guest, as far as it is known yet.
func (v *VM) Name() string {
	if i := v.known.Load(); i != nil {
		return i.Name
	}
	return v.o.Name
}

// Phase is where in its life the guest is.
func (v *VM) Phase() Phase {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.phase
}

// Started is when the guest was started first, in this process; zero before that.
func (v *VM) Started() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.started
}

// Config is a copy of the configuration.
func (v *VM) Config() Config {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.config.clone()
}

// Configure has change alter the configuration of a guest that is not started. It
// stays as it was if that fails.
func (v *VM) Configure(change func(*Config) error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.phase == Ended:
		return ErrEnded
	case v.phase != NotStarted || v.starting:
		return ErrStarted
	}
	c := v.config.clone()
	if err := change(&c); err != nil {
		return err
	}
	v.config, v.configured = c, true
	return nil
}

// Machine is the machine of now: nil if the guest does not run, or is just
// rebooting. It may be closed at any time; Use keeps it.
func (v *VM) Machine() *machine.Machine {
	if s := v.current.Load(); s != nil {
		return s.m
	}
	return nil
}

// Use calls f with the machine of now, which is not closed before f returns. It
// waits while the guest reboots. The guest's next reboot, and its end, wait for f.
func (v *VM) Use(f func(*machine.Machine) error) error {
	return v.useSession(func(s *session) error { return f(s.m) })
}

func (v *VM) useSession(f func(*session) error) error {
	v.use.RLock()
	defer v.use.RUnlock()
	if s := v.current.Load(); s != nil {
		return f(s)
	}
	if v.Phase() == NotStarted {
		return ErrNotStarted
	}
	return ErrEnded
}

// wake tells those who wait that something changed. The caller holds mu.
func (v *VM) wake() {
	close(v.changed)
	v.changed = make(chan struct{})
}

// set changes the fields below mu.
func (v *VM) set(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
	v.wake()
}
