package vcpu

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/godwit-vmm/godwit/kvm"
	"golang.org/x/sys/unix"
)

// A goroutine that only makes system calls keeps its P for good, and after 10
// ms of that Go's monitor thread takes the P away at each of its ticks, every
// 20 us or so: a tenth of a processor, and a tenth more on each exit. Yielding
// before that costs two thread switches in yieldEvery. The clock is read only
// once in yieldCheck exits.
const (
	yieldEvery = 4 * time.Millisecond
	yieldCheck = 128
)

// yield gives the P away if the last time was long ago. It is called at each exit.
func (v *VCPU) yield() {
	v.unchecked++
	if v.unchecked < yieldCheck {
		return
	}
	v.unchecked = 0
	if now := time.Now(); now.Sub(v.yielded) >= yieldEvery {
		runtime.Gosched()
		v.yielded = now
	}
}

// loop runs the guest until something ends it. It returns nil after a stop
// that was asked for.
//
// The order is: what others want of this vCPU, KVM_RUN, its errno, and only
// after success the exit reason, which is stale otherwise.
func (v *VCPU) loop() error {
	for {
		if v.attention.Load() {
			if stop, err := v.attend(); stop {
				return err
			}
		}
		err := v.cpu.Run()
		v.owed = false
		if err != nil {
			if err := v.interrupted(err); err != nil {
				return err
			}
			continue
		}
		if err := v.exit(); err != nil {
			return err
		}
	}
}

// interrupted sorts out why KVM_RUN failed: a kick (EINTR), or a processor that
// is not up yet (EAGAIN), after which the loop goes on; all else is fatal.
func (v *VCPU) interrupted(err error) error {
	switch {
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		v.exits.count(kvm.KVM_EXIT_INTR)
		// Cleared before the loop reads attention: see kick.
		v.cpu.SetImmediateExit(false)
		return nil
	case errors.Is(err, unix.EFAULT):
		return v.crash("KVM_RUN failed on a guest memory access that the host cannot serve (is the host out of memory or huge pages?)", err)
	}
	return v.crash("KVM_RUN failed", err)
}

// finish completes the instruction of the last I/O exit without running
// another one, so that the saved state does not repeat the access. An access
// that KVM splits (a string instruction, a page crossing) exits again for its
// next part, which is served as usual.
func (v *VCPU) finish() error {
	for v.owed {
		v.cpu.SetImmediateExit(true)
		err := v.cpu.Run()
		v.owed = false
		if err != nil {
			if err := v.interrupted(err); err != nil {
				return err
			}
			continue
		}
		if err := v.exit(); err != nil {
			return err
		}
	}
	v.cpu.SetImmediateExit(false)
	return nil
}

// exit serves one exit. It does not allocate for those that a healthy guest
// makes.
func (v *VCPU) exit() error {
	reason := v.cpu.ExitReason()
	v.exits.count(reason)
	v.yield()
	switch reason {
	case kvm.KVM_EXIT_IO:
		v.owed = true
		return v.portIO()
	case kvm.KVM_EXIT_MMIO:
		v.owed = true
		if m := v.cpu.MMIO(); m.Write {
			v.cfg.MMIO.Write(m.Addr, m.Data)
		} else {
			v.cfg.MMIO.Read(m.Addr, m.Data)
		}
		return nil
	case kvm.KVM_EXIT_IOAPIC_EOI:
		if v.cfg.EOI != nil {
			v.cfg.EOI(v.cpu.IOAPICEOI())
		}
		return nil
	case kvm.KVM_EXIT_INTR, kvm.KVM_EXIT_IRQ_WINDOW_OPEN, kvm.KVM_EXIT_SET_TPR, kvm.KVM_EXIT_NOTIFY:
		return nil
	case kvm.KVM_EXIT_SHUTDOWN:
		return v.crash("triple fault: the guest took an exception that it had no handler for", nil)
	case kvm.KVM_EXIT_HLT:
		return v.crash("the guest halted with nothing that could wake it", nil)
	case kvm.KVM_EXIT_INTERNAL_ERROR:
		return v.crash(v.internalError(), nil)
	case kvm.KVM_EXIT_FAIL_ENTRY:
		e := v.cpu.FailEntry()
		return v.crash(fmt.Sprintf("the processor refused to enter the guest: hardware reason %#x on host processor %d", e.HardwareEntryFailureReason, e.CPU), nil)
	case kvm.KVM_EXIT_SYSTEM_EVENT:
		return v.crash(fmt.Sprintf("KVM system event %d", v.cpu.SystemEvent().Type), nil)
	default:
		return v.crash(fmt.Sprintf("exit to user space that godwit does not serve: %v", reason), nil)
	}
}

// portIO serves IN and OUT, and INS and OUTS, which hand over several elements
// of one size at one port.
func (v *VCPU) portIO() error {
	io := v.cpu.IO()
	if io.Data == nil || io.Size == 0 {
		return v.crash("KVM described a port access that lies outside its own buffer", nil)
	}
	for data := io.Data; len(data) >= io.Size; data = data[io.Size:] {
		if io.Write {
			v.cfg.Ports.Write(uint64(io.Port), data[:io.Size])
		} else {
			v.cfg.Ports.Read(uint64(io.Port), data[:io.Size])
		}
	}
	return nil
}

// internalError says what KVM could not do (KVM API §5, KVM_EXIT_INTERNAL_ERROR).
func (v *VCPU) internalError() string {
	e := v.cpu.InternalError()
	switch e.Suberror {
	case kvm.KVM_INTERNAL_ERROR_EMULATION:
		return "KVM could not emulate an instruction (software KVM cannot run this guest's ring 0: see godwit doctor)"
	case kvm.KVM_INTERNAL_ERROR_SIMUL_EX:
		return "KVM internal error: exceptions while delivering exceptions"
	case kvm.KVM_INTERNAL_ERROR_DELIVERY_EV:
		return fmt.Sprintf("KVM internal error: cannot deliver an event (%#x)", e.Values())
	case kvm.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
		return fmt.Sprintf("KVM internal error: unexpected exit reason (%#x)", e.Values())
	}
	return fmt.Sprintf("KVM internal error, suberror %d (%#x)", e.Suberror, e.Values())
}
