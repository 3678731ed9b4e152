package vcpu

import (
	"sync/atomic"

	"github.com/godwit-vmm/godwit/kvm"
)

// knownReasons is how many exit reasons are counted apart: KVM numbers them from 0,
// and the highest that it has by now is 40 (KVM API §5, kvm_run.exit_reason).
const knownReasons = 48

// exitCounts counts exits by their reason, and those with higher ones together. The
// vCPU's thread counts; any goroutine may read. That costs an exit one uncontended
// atomic addition, about 5 ns.
type exitCounts [knownReasons + 1]atomic.Uint64

func (c *exitCounts) count(r kvm.ExitReason) { c[min(r, knownReasons)].Add(1) }

// ExitCount is how often a vCPU has left the guest for user space for a reason.
type ExitCount struct {
	Reason kvm.ExitReason
	Count  uint64
}

// ExitCounts are those of all reasons that there were since the start, in the order
// of their numbers. KVM_EXIT_INTR has the kicks as well. It may be called from any
// goroutine.
func (v *VCPU) ExitCounts() []ExitCount {
	var counts []ExitCount
	for r := range v.exits {
		if n := v.exits[r].Load(); n > 0 {
			counts = append(counts, ExitCount{kvm.ExitReason(r), n})
		}
	}
	return counts
}

// Exits counts the exits to user space since the start. It may be called from any
// goroutine.
func (v *VCPU) Exits() uint64 {
	var n uint64
	for r := range v.exits {
		n += v.exits[r].Load()
	}
	return n
}
