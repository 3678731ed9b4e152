// Package machine puts a virtual machine together from the parts that the other
// packages provide, and leads it from its first instruction to its end. It is
// the one place that knows all parts.
//
// A Machine is used once: a guest that asks for a reset gets a new one.
package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godwit-vmm/godwit/bootloader"
	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/pci"
	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	virtioconsole "github.com/godwit-vmm/godwit/devices/virtio/console"
	virtionet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/vcpu"
	"golang.org/x/sys/unix"
)

// Machine is a virtual machine.
type Machine struct {
	cfg Config
	sys *kvm.System
	vm  *kvm.VM
	mem *memory.Guest
	// msrs is what savedMSRs has found out.
	msrs []uint32

	ports, mmio *devices.Bus
	router      *router
	ioapic      *devices.IOAPIC
	pm          *devices.PM
	pci         *pci.Bus
	rtc         *devices.RTC
	i8042       *devices.I8042
	// resetRegister is the chipset's (port 0xcf9).
	resetRegister *devices.ResetRegister
	virtio        []*virtioFunction
	disks         []*blk.Device
	nets          []*virtionet.Device
	balloon       *balloon.Device
	// endServe is what Saved.Serve returned.
	endServe func() error
	hvc      *virtioconsole.Device
	console  *devices.Serial
	channel  *devices.Serial
	cpus     []*vcpu.VCPU

	// dirtyMu is over the log of dirty pages: whether it is on, whether KVM
	// wants to be told to watch pages anew, and room for a slot's log.
	dirtyMu           sync.Mutex
	logging, clearing bool
	dirtyWords        []uint64
	// allDirty is set until the log was fetched once, and dirtied counts pages.
	allDirty bool
	dirtied  atomic.Uint64

	throttle throttle

	end     sync.Once
	ended   chan struct{} // closed by finish
	outcome Outcome
	err     error
}

// New builds a machine on sys, and loads the kernel or the saved state. It does not
// run yet. sys stays open for as long as the machine.
func New(sys *kvm.System, c Config) (*Machine, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	m := &Machine{cfg: c, sys: sys, ports: new(devices.Bus), mmio: new(devices.Bus), ended: make(chan struct{})}
	if err := m.build(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// build does the steps in the order that KVM wants: what belongs to the VM as
// a whole before the first processor, and the cheap checks of what the user
// gave before the costly steps.
func (m *Machine) build() error {
	m.sys.AskCPUID()
	var err error
	if m.vm, err = m.sys.CreateVM(); err != nil {
		return err
	}
	m.trace("vm")
	if err := m.addMemory(); err != nil {
		return err
	}
	// A guest that moves stays the same one, and has its generation ID in memory.
	if !m.cfg.Incoming {
		if err := m.newGeneration(); err != nil {
			return err
		}
	}
	m.trace("memory")
	var entry bootloader.Entry
	if m.boots() {
		if entry, err = m.load(); err != nil {
			return err
		}
		m.trace("kernel")
	}
	if err := m.addInterrupts(); err != nil {
		return err
	}
	if err := m.addDevices(); err != nil {
		return err
	}
	m.trace("devices")
	cpuid, err := m.sys.SupportedCPUID()
	if err != nil {
		return err
	}
	if err := m.addCPUs(cpuid); err != nil {
		return err
	}
	switch {
	case m.cfg.Saved != nil:
		var s *State
		if s, err = m.cfg.Saved.State(); err == nil {
			err = m.restore(s)
		}
	case m.boots():
		err = m.cpus[0].SetEntry(func(r *kvm.Regs, s *kvm.Sregs) { enter(&entry, r, s) })
	}
	m.trace("cpus")
	return err
}

// boots tells whether the guest begins with a kernel.
func (m *Machine) boots() bool { return m.cfg.Saved == nil && !m.cfg.Incoming }

func (m *Machine) trace(phase string) {
	if m.cfg.Trace != nil {
		m.cfg.Trace(phase)
	}
}

func (m *Machine) addMemory() error {
	// KVM on Intel keeps pages of its own in the guest's address space.
	if err := m.vm.SetIdentityMapAddr(uint64(memory.KVMIdentityMap)); err != nil {
		return err
	}
	if err := m.vm.SetTSSAddr(uint32(memory.KVMTSS)); err != nil {
		return err
	}
	var err error
	o := memory.Options{Size: m.cfg.Memory, HugePages: m.cfg.HugePages, Name: m.cfg.Name, Passed: m.cfg.Passed}
	serve := m.cfg.Saved != nil && m.cfg.Saved.Serve != nil
	if m.cfg.Saved != nil && !serve {
		o.Saved = m.cfg.Saved.Memory
	}
	m.mem, err = memory.New(o)
	if err == nil && serve {
		m.endServe, err = m.cfg.Saved.Serve(m.mem)
	}
	if err != nil {
		return err
	}
	return m.setSlots(0)
}

func (m *Machine) load() (bootloader.Entry, error) {
	o := bootloader.Options{
		Cmdline:  m.cfg.Cmdline,
		Platform: describe(m.cfg.CPUs, m.mem.Ranges()),
	}
	for _, in := range []struct {
		path string
		file **bootloader.File
	}{{m.cfg.Kernel, &o.Kernel}, {m.cfg.Initrd, &o.Initrd}} {
		if in.path == "" {
			continue
		}
		f, err := os.Open(in.path)
		if err != nil {
			return bootloader.Entry{}, err
		}
		defer f.Close()
		if *in.file, err = bootloader.NewFile(f); err != nil {
			return bootloader.Entry{}, err
		}
	}
	return bootloader.Load(m.mem, o)
}

func (m *Machine) addInterrupts() error {
	if err := m.vm.EnableSplitIRQChip(ioapicPins); err != nil {
		return err
	}
	if err := m.vm.EnableX2APIC(); err != nil {
		return err
	}
	m.router = newRouter(m.vm)
	m.ioapic = devices.NewIOAPIC(devices.IOAPICConfig{Send: m.router.send, SetRoutes: m.router.setPins})
	return nil
}

func (m *Machine) addCPUs(supported []kvm.CPUIDEntry2) error {
	deadline, err := m.vm.CheckExtension(kvm.KVM_CAP_TSC_DEADLINE_TIMER)
	if err != nil {
		return err
	}
	// The rate that the host's kernel knows its TSC to have by now: what KVM
	// took over when it was loaded may be a first guess (see CheckTSC). Kernels
	// without the call are left to their guess.
	if err := m.vm.SetTSCKHz(0); err != nil && !errors.Is(err, unix.ENOTTY) {
		return err
	}
	var ports, mmio vcpu.Bus = m.ports, m.mmio
	if m.cfg.ExitTrace != nil {
		t := &exitTrace{w: m.cfg.ExitTrace, start: time.Now()}
		ports, mmio = t.wrap("port", ports), t.wrap("mmio", mmio)
	}
	for id := range m.cfg.CPUs {
		k, err := m.vm.CreateVCPU(id)
		if err != nil {
			return fmt.Errorf("vCPU %d of %d: %w", id, m.cfg.CPUs, err)
		}
		v := vcpu.New(k, vcpu.Config{
			ID: id, Ports: ports, MMIO: mmio, EOI: m.ioapic.EOI,
			ReadMemory: func(gpa uint64, p []byte) error { return m.mem.Read(memory.GPA(gpa), p) },
			Ended:      m.cpuEnded,
		})
		m.cpus = append(m.cpus, v)
		if err := v.CheckTSC(); err != nil {
			return err
		}
		// A host that cannot tell the rate leaves the guest to measure it.
		khz, err := k.GetTSCKHz()
		if err != nil {
			khz = 0
		}
		topology := vcpu.Topology{Count: m.cfg.CPUs, TSCkHz: khz, TSCDeadline: deadline > 0}
		if err := k.SetCPUID2(vcpu.CPUID(supported, id, topology)); err != nil {
			return err
		}
		if err := v.SetFirmwareMSRs(); err != nil {
			return err
		}
	}
	return nil
}

// cpuEnded runs on the thread of a vCPU whose loop is over.
func (m *Machine) cpuEnded(_ int, err error) {
	if err != nil {
		m.finish(0, err)
	}
}

// finish notes how the guest ends, the first one counts, and asks the
// processors to stop. It does not wait for them, because it is called on their
// threads; the one that calls does not enter the guest again.
func (m *Machine) finish(o Outcome, err error) {
	m.end.Do(func() {
		m.outcome, m.err = o, err
		for _, v := range m.cpus {
			v.RequestStop()
		}
		close(m.ended)
	})
}

// Over tells whether the guest has come to its end. One that is paused and is not
// over will go on when it is resumed.
func (m *Machine) Over() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

// Ended is closed when the guest has come to its end.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// Console is the first serial port, whose input is what a user types.
func (m *Machine) Console() *devices.Serial { return m.console }

// Channel is the second serial port.
func (m *Machine) Channel() *devices.Serial { return m.channel }

// Memory is the guest's memory.
func (m *Machine) Memory() *memory.Guest { return m.mem }

// PowerButton presses the power button: a guest that listens shuts down.
func (m *Machine) PowerButton() { m.pm.PressPowerButton() }

// Stray counts the accesses to ports and addresses without a device.
func (m *Machine) Stray() uint64 {
	pr, pw := m.ports.Unclaimed()
	mr, mw := m.mmio.Unclaimed()
	return pr + pw + mr + mw
}

// flushTimeout bounds how long the end of a machine waits for a reader of its
// serial output that does not read.
const flushTimeout = 2 * time.Second

// Run runs the guest to its end and says how it ended. A guest that crashed is
// an error, often a *vcpu.Crash. All that the guest wrote before its end has
// reached the writers when Run returns, unless they block. Run is called once.
func (m *Machine) Run(ctx context.Context) (Outcome, error) {
	raiseProcs(len(m.cpus))
	if !m.boots() {
		m.resumeVirtio()
	}
	if m.cfg.Saved != nil {
		m.announceGeneration()
	}
	if m.cfg.Incoming {
		defer m.announcePlace()()
	}
	for _, v := range m.cpus {
		v.Start()
	}
	m.trace("run")
	select {
	case <-m.ended:
	case <-ctx.Done():
		m.finish(Killed, nil)
	}
	m.stopCPUs()
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	// The writers' own errors are theirs to report.
	_ = m.console.Flush(flush)
	_ = m.channel.Flush(flush)
	if m.hvc != nil {
		_ = m.hvc.Flush(flush)
	}
	m.trace("end")
	return m.outcome, m.err
}

// Pause stops all processors between two instructions, and then the devices
// that work beside them.
func (m *Machine) Pause() {
	m.pauseCPUs()
	m.pauseVirtio()
}

func (m *Machine) pauseCPUs() {
	for _, v := range m.cpus {
		v.RequestPause()
	}
	for _, v := range m.cpus {
		v.Pause()
	}
}

// Resume lets devices and processors run on.
func (m *Machine) Resume() {
	m.resumeVirtio()
	for _, v := range m.cpus {
		v.Resume()
	}
}

// AwaitStop stops the processors of a guest that has come to its end, as Run does, and
// tells whether they have within a time: one that waits for memory, in a device, has not.
func (m *Machine) AwaitStop(within time.Duration) bool {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		m.stopCPUs()
	}()
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case <-stopped:
		return true
	case <-late.C:
		return false
	}
}

func (m *Machine) stopCPUs() {
	for _, v := range m.cpus {
		v.RequestStop()
	}
	for _, v := range m.cpus {
		v.Wait()
	}
}

// Close frees everything. It stops the processors first if they still run.
func (m *Machine) Close() error {
	m.stopCPUs()
	var errs []error
	for _, v := range m.cpus {
		errs = append(errs, v.Close())
	}
	errs = append(errs, m.closeDevices())
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
	}
	if m.endServe != nil {
		errs = append(errs, m.endServe())
	}
	if m.mem != nil {
		errs = append(errs, m.mem.Close())
	}
	return errors.Join(errs...)
}
