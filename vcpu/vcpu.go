// Package vcpu runs virtual processors: one locked operating system thread
// each, the KVM_RUN loop with its exits, pausing and kicking, what CPUID says,
// and the processor state in the order in which KVM wants it saved and loaded.
//
// A VCPU is stopped (not yet started, or ended), running, or parked. Its
// registers and other state may be touched only while it is stopped or parked.
package vcpu

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godwit-vmm/godwit/kvm"
	"golang.org/x/sys/unix"
)

// MaxCPUs is the largest number of virtual processors of one guest.
const MaxCPUs = 64

// kickSignal interrupts KVM_RUN. Go's runtime has a handler for it that does
// nothing while nobody subscribed to it, which is all that a kick needs.
const kickSignal = unix.SIGUSR1

// Bus serves what a guest does on ports or on memory that is not RAM. It is
// called on the vCPU threads, on several at once.
type Bus interface {
	Read(addr uint64, data []byte)
	Write(addr uint64, data []byte)
}

// Config wires a VCPU to the rest of the machine.
type Config struct {
	// ID numbers the processor from 0 and is its APIC ID.
	ID int
	// Ports and MMIO serve the two kinds of accesses.
	Ports, MMIO Bus
	// EOI is told of the end of a level-triggered interrupt that came from
	// the user space I/O APIC. May be nil.
	EOI func(vector uint8)
	// ReadMemory reads guest physical memory for the dump of a crash. May
	// be nil.
	ReadMemory func(gpa uint64, p []byte) error
	// Ended is called once on the vCPU's thread when its loop is over:
	// with nil after Stop, else with what ended it, often a *Crash. It
	// must not call Stop, Pause or Wait.
	Ended func(id int, err error)
}

// run states of a VCPU.
type runState int

const (
	stopped runState = iota
	running
	parked
)

// VCPU is one virtual processor and its thread.
type VCPU struct {
	cfg Config
	cpu *kvm.VCPU

	// attention asks the thread to look at the fields under mu before it
	// enters the guest again. It is the only thing that an exit costs
	// when nobody wants anything.
	attention atomic.Bool
	// owed is set between an I/O exit and the next KVM_RUN, which is when
	// KVM finishes the instruction (KVM API §5, kvm_run.io). Only the
	// thread touches it.
	owed bool
	// yielded is when the thread last gave Go's scheduler a turn, unchecked the
	// number of exits since it was last looked at.
	yielded   time.Time
	unchecked int
	exits     exitCounts

	mu        sync.Mutex
	changed   sync.Cond // state changed, or a want did
	state     runState
	wantPause bool
	wantStop  bool
	tid       int // of the thread, while it is not stopped
}

// New makes a stopped VCPU of a KVM one, which it owns from now on.
func New(cpu *kvm.VCPU, cfg Config) *VCPU {
	v := &VCPU{cfg: cfg, cpu: cpu}
	v.changed.L = &v.mu
	return v
}

// ID is the number of the processor.
func (v *VCPU) ID() int { return v.cfg.ID }

// KVM is the handle below, for state that this package does not cover. Use it
// only while the VCPU is stopped or parked.
func (v *VCPU) KVM() *kvm.VCPU { return v.cpu }

// Start runs the VCPU on a thread of its own. A VCPU starts once.
func (v *VCPU) Start() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.state != stopped || v.wantStop {
		return
	}
	v.state = running
	go v.thread()
}

// thread is the life of the operating system thread. It never unlocks, so the
// thread ends with the goroutine and nothing else inherits its signal or
// scheduling state.
func (v *VCPU) thread() {
	runtime.LockOSThread()
	v.mu.Lock()
	v.tid = unix.Gettid()
	v.mu.Unlock()

	err := v.guarded()

	if v.cfg.Ended != nil {
		v.cfg.Ended(v.cfg.ID, err)
	}
	v.mu.Lock()
	v.tid = 0
	v.state = stopped
	v.wantStop = true
	v.changed.Broadcast()
	v.mu.Unlock()
}

// guarded runs the loop and turns a panic in a device, which a guest may have
// provoked, into the end of this guest with an error that shows where: the
// terminal is restored and other guests of the process live on.
func (v *VCPU) guarded() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = v.crash(fmt.Sprintf("bug in godwit: %v\n%s", p, debug.Stack()), nil)
		}
	}()
	return v.loop()
}

// kick makes the thread leave the guest, or not enter it, and look at what is
// wanted. The order matters: the wish is written (under mu) before attention,
// attention before immediate_exit, and that before the signal. Whatever the
// thread does in between, it sees one of them: if it clears immediate_exit
// after an earlier kick, it reads attention afterwards; if it is past that
// read, KVM_RUN returns at once because of immediate_exit; if it is in the
// guest already, the signal gets it out.
//
// The caller holds mu, so the thread cannot end and its number be reused.
func (v *VCPU) kick() {
	v.attention.Store(true)
	v.cpu.SetImmediateExit(true)
	if v.tid != 0 {
		_ = unix.Tgkill(unix.Getpid(), v.tid, kickSignal)
	}
}

// RequestPause asks the VCPU to park without waiting for it. To pause several,
// request all first, then call Pause on each.
func (v *VCPU) RequestPause() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wantPause = true
	if v.state == running {
		v.kick()
	}
}

// Pause returns when the VCPU is parked, or stopped, and every instruction that
// it began is complete.
func (v *VCPU) Pause() {
	v.RequestPause()
	v.mu.Lock()
	defer v.mu.Unlock()
	for v.state == running && v.wantPause {
		v.changed.Wait()
	}
}

// Resume lets a parked VCPU run on.
func (v *VCPU) Resume() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wantPause = false
	v.changed.Broadcast()
}

// RequestStop asks the VCPU to end without waiting for it.
func (v *VCPU) RequestStop() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wantStop = true
	v.changed.Broadcast()
	if v.state == running {
		v.kick()
	}
}

// Stop ends the VCPU and waits until its thread is done with the guest.
func (v *VCPU) Stop() {
	v.RequestStop()
	v.Wait()
}

// Wait returns when the thread is done with the guest, or was never started.
func (v *VCPU) Wait() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for v.state != stopped {
		v.changed.Wait()
	}
}

// Close frees the processor. It must be stopped.
func (v *VCPU) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.state != stopped {
		return errors.New("close a virtual processor: it is still running")
	}
	v.wantStop = true
	return v.cpu.Close()
}

// attend runs on the thread when someone asked for attention: it parks while a
// pause is wanted, and tells whether the loop shall end.
func (v *VCPU) attend() (stop bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for {
		v.attention.Store(false)
		if v.wantStop {
			return true, nil
		}
		if !v.wantPause {
			return false, nil
		}
		// Finishing the instruction may call devices, which take their
		// time and locks of their own: not under mu. Wishes that come
		// meanwhile are seen by going round again.
		if v.owed {
			v.mu.Unlock()
			err := v.finish()
			v.mu.Lock()
			if err != nil {
				return true, err
			}
			continue
		}
		v.state = parked
		v.changed.Broadcast()
		for v.wantPause && !v.wantStop {
			v.changed.Wait()
		}
		v.state = running
		v.changed.Broadcast()
	}
}
