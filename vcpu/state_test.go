package vcpu

import (
	"math"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/kvm"
)

func TestAdvanceTSC(t *testing.T) {
	for _, tt := range []struct {
		kHz  uint32
		by   time.Duration
		want uint64
	}{
		{3_000_000, 0, 7},
		{3_000_000, time.Nanosecond, 10},
		{2_000_000, time.Hour + 3*time.Nanosecond, 7 + 7200e9 + 6},
		{0, time.Hour, 7}, // a host that did not know its rate
	} {
		s := State{TSCkHz: tt.kHz, MSRs: []kvm.MSREntry{{Index: 1, Data: 1}, {Index: msrTSC, Data: 7}}}
		if s.AdvanceTSC(tt.by); s.MSRs[1].Data != tt.want || s.MSRs[0].Data != 1 {
			t.Errorf("%v at %d kHz: %+v, want %d", tt.by, tt.kHz, s.MSRs, tt.want)
		}
	}
	// A hostile state's values are its guest's own affair.
	s := State{TSCkHz: math.MaxUint32, MSRs: []kvm.MSREntry{{Index: msrTSC, Data: math.MaxUint64}}}
	s.AdvanceTSC(math.MaxInt64)
}
