package vmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/console"
	"github.com/godwit-vmm/godwit/internal/hostmem"
	"github.com/godwit-vmm/godwit/internal/netflag"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// ReceiveRequest says what a guest that comes gets of this host.
type ReceiveRequest struct {
	// From is the other host's address, for people.
	From string
	// Taps and Disks are those of LoadRequest, and Vsock, too. A tap may also be
	// bridge=NAME, for a new interface on that bridge.
	Taps  map[string]string
	Disks map[string]string
	Vsock string
	// DiskFolder is where disks go to that come with the guest, and are not in Disks; ""
	// is none. What Disks names for such a disk must not be there yet. KeepPartial keeps
	// what has come of a disk when the migration fails, for the next attempt.
	DiskFolder  string
	KeepPartial bool
	// Trusted lets the offer say which files and network interfaces of this host the
	// guest gets. Otherwise Disks and Taps have to name them all.
	Trusted bool
	// Told, if set, is told how the migration stands, and Note what becomes of disks
	// that come, for people.
	Told func(handover.Phase, string)
	Note func(text string)
}

// Receive makes the VM, which must not have been configured, the place for a guest that
// comes from another host. The VM is as before if it does not come.
func (v *VM) Receive(r ReceiveRequest) live.Incoming {
	return &incoming{vm: v, r: r, prepared: make(chan prepared, 1), verdict: make(chan bool, 1), launched: make(chan error, 1)}
}

// incoming is live.Incoming. The start of the VM waits, in a goroutine of its own, for
// the verdict whether the guest is to run.
type incoming struct {
	vm    *VM
	r     ReceiveRequest
	m     *machine.Machine
	begun bool
	// offer is that of Prepare.
	offer live.Offer
	// disks come with the guest. abandon is done if it does not come.
	disks   comingDisks
	abandon sync.Once
	// skew is how far this host's clock is ahead of the source's.
	skew time.Duration
	// paging is set by Paged, before the verdict.
	paging   *live.Paging
	prepared chan prepared
	judge    sync.Once
	verdict  chan bool
	launched chan error
}

type prepared struct {
	m   *machine.Machine
	err error
}

// bridgePrefix is before the name of a bridge.
const bridgePrefix = "bridge="

// errNotCome ends a start whose guest did not come.
var errNotCome = errors.New("the guest did not come")

// Name is that of live.Incoming.
func (i *incoming) Name() string { return i.vm.Name() }

// Died is that of live.Incoming.
func (i *incoming) Died() <-chan struct{} { return i.vm.Done() }

// Tell is that of live.Incoming.
func (i *incoming) Tell(p handover.Phase, reason string) {
	if i.r.Told != nil {
		i.r.Told(p, reason)
	}
}

// Prepare is that of live.Incoming.
func (i *incoming) Prepare(offer live.Offer) (*memory.Guest, error) {
	var o offered
	if err := json.Unmarshal(offer.Guest, &o); err != nil {
		return nil, fmt.Errorf("the offer: %w", err)
	}
	if o.Machine == nil {
		return nil, errors.New("the offer has no machine")
	}
	i.begun, i.offer = true, offer
	// Whoever can pass open files to this process is this user on this host.
	i.r.Trusted = i.r.Trusted || len(offer.Files) > 0
	// The time that the offer took comes on top, which is little.
	i.skew = time.Since(offer.Time.Round(0))
	go func() { i.launched <- i.start(&o, offer.Disks) }()
	p := <-i.prepared
	if p.err != nil {
		return nil, p.err
	}
	i.m = p.m
	return p.m.Memory(), nil
}

// start is the start of the VM.
func (i *incoming) start(o *offered, disks []live.OfferedDisk) error {
	v := i.vm
	v.op.Lock()
	defer v.op.Unlock()
	told := false
	err := v.starts(func() error {
		m, err := i.build(o, disks)
		told = true
		i.prepared <- prepared{m, err}
		if err != nil {
			return err
		}
		if run := <-i.verdict; !run {
			return errors.Join(errNotCome, m.Close())
		}
		phase := Running
		if o.Paused {
			phase = Paused
		}
		v.tell(Event{Kind: EventArrived, Path: i.r.From})
		s := newSession(m)
		s.paging = i.paging
		return v.launch(s, phase)
	})
	if !told {
		i.prepared <- prepared{err: err}
	}
	return err
}

// build makes the machine, after everything was checked, with all that is wrong.
func (i *incoming) build(o *offered, disks []live.OfferedDisk) (*machine.Machine, error) {
	v := i.vm
	c := o.Config.Config
	v.mu.Lock()
	configured := v.configured
	v.mu.Unlock()
	if configured {
		return nil, ErrConfigured
	}
	var errs []error
	if !i.offer.SharesMemory {
		errs = append(errs, hostmem.Enough(o.Used, c.HugePages))
	}
	i.relocate(&c, o, disks, func(err error) { errs = append(errs, err) })
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	before, hvc := v.Config(), v.o.HVC
	v.o.HVC = o.Config.hvc(hvc)
	v.set(func() { v.config = c })
	back := func() {
		v.o.HVC = hvc
		v.set(func() { v.config = before })
	}
	if v.o.System == nil {
		back()
		return nil, errors.New("there is no KVM here")
	}
	config := v.machineConfig()
	config.Incoming = true
	i.disks.interim(&config)
	var m *machine.Machine
	err := i.takePassed(&config, c.Nets)
	if err == nil {
		m, err = machine.New(v.o.System, config)
	}
	if err != nil {
		back()
		return nil, err
	}
	// A rehearsal, with the state that the guest had when the migration began.
	if err := m.Load(o.Machine); err != nil {
		back()
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// relocate changes what the guest had of its host to what it gets here, and tells wrong
// what cannot be had.
func (i *incoming) relocate(c *Config, o *offered, disks []live.OfferedDisk, wrong func(error)) {
	c.Vsock = nil
	if i.r.Vsock != "" {
		c.Vsock = &Vsock{Path: i.r.Vsock}
	}
	for k := range c.Nets {
		n := &c.Nets[k]
		if tap, ok := i.r.Taps[n.ID]; ok {
			n.Tap.Name, n.Tap.Bridge = tap, ""
			if bridge, ok := strings.CutPrefix(tap, bridgePrefix); ok {
				n.Tap.Name, n.Tap.Bridge = "", bridge
			}
		} else if n.Kind == netflag.Tap && !i.r.Trusted {
			wrong(fmt.Errorf("network card %[1]s: who comes without TLS cannot choose an interface of this host: say it with --tap %[1]s=NAME or %[1]s=bridge=NAME", n.ID))
		}
		if !i.r.Trusted {
			n.User.Forwards = nil
		}
	}
	if !i.r.Trusted {
		// The guest could reboot into any file of this host.
		c.Kernel, c.Initrd = "", ""
	}
	if err := i.vm.settleMACs(c, o.Machine, LoadRequest{}); err != nil {
		wrong(err)
	}
	if err := checkMoving(o.Moving, len(disks), len(c.Drives)); err != nil {
		wrong(err)
		return
	}
	known := make(map[string]bool)
	for k := range c.Drives {
		d := &c.Drives[k]
		id := driveID(k, *d)
		known[id] = true
		if at := slices.Index(o.Moving, k); at >= 0 {
			if err := i.placeDisk(k, d, id, disks[at]); err != nil {
				wrong(err)
			}
			continue
		}
		file := &d.Path
		if d.Overlay != "" {
			file = &d.Overlay
		}
		if path := i.r.Disks[id]; path != "" {
			*file = path
		}
		if !i.r.Trusted && (i.r.Disks[id] == "" || d.Overlay != "") {
			wrong(fmt.Errorf("disk %s: who comes without TLS cannot choose a file of this host: say it with --disk %s=PATH", id, id))
			continue
		}
		for _, path := range []string{d.Path, d.Overlay} {
			if _, err := os.Stat(path); path != "" && err != nil {
				wrong(fmt.Errorf("disk %s: %w: give another path with --disk %s=PATH", id, err, id))
			}
		}
	}
	for id := range i.r.Disks {
		if !known[id] {
			wrong(fmt.Errorf("the guest has no disk %q", id))
		}
	}
}

// hvc is the console that a guest with this configuration gets: one if it had one.
func (c *savedConfig) hvc(has *console.Config) *console.Config {
	switch {
	case !c.HVC:
		return nil
	case has == nil:
		return &console.Config{}
	}
	return has
}

// Load is that of live.Incoming.
func (i *incoming) Load(state []byte) error {
	var s movedState
	if err := json.Unmarshal(state, &s); err != nil {
		return fmt.Errorf("the guest's state: %w", err)
	}
	if s.Machine == nil {
		return errors.New("the guest's state has no machine")
	}
	// The guest's clock goes on by the time that it stands still.
	s.Machine.Clock.Realtime += uint64(i.skew)
	s.Machine.AdvanceClock()
	return i.m.Load(s.Machine)
}

// TakeLocks is that of live.Incoming.
func (i *incoming) TakeLocks() error {
	if err := i.disks.commit(); err != nil {
		return err
	}
	if err := i.m.ActivateDisks(); err != nil {
		return err
	}
	// The guest does not run anywhere, but may still run on where it was: until Run
	// nobody writes here.
	return i.m.Memory().Adopt()
}

// DropLocks is that of live.Incoming. The machine was closed, and the locks dropped, by
// Destroy; that the guest is not this host's is in the journal.
func (i *incoming) DropLocks() error { return i.disks.remove(i.r.KeepPartial) }

// Run is that of live.Incoming.
func (i *incoming) Run() error {
	i.judge.Do(func() { i.verdict <- true })
	err := <-i.launched
	i.launched <- err
	if err == nil {
		i.disks.close()
	}
	return err
}

// Destroy is that of live.Incoming.
func (i *incoming) Destroy() {
	if !i.begun {
		return
	}
	i.judge.Do(func() { i.verdict <- false })
	err := <-i.launched
	i.launched <- err
	// What cannot be removed is in the way of the next attempt, which says so.
	i.abandon.Do(func() { _ = i.disks.abandon(i.r.KeepPartial, i.note) })
}
