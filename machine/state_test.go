package machine

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
)

// TestStateMoves stops a guest in the middle of a loop of port writes, loads
// its processor state and memory into another machine, and lets it go on
// there: every write comes out once, on one side or the other.
func TestStateMoves(t *testing.T) {
	const n = 20000
	sys := openKVM(t)
	msrs, err := sys.MSRIndexList()
	if err != nil {
		t.Fatal(err)
	}
	var out [2]bytes.Buffer
	kernel := program(t)(micro.PortLoop(micro.Write, 0x3f8, micro.Byte, n, micro.PowerOff()))
	var m [2]*Machine
	for i := range m {
		m[i], err = New(sys, Config{CPUs: 1, Memory: 8 << 20, Kernel: kernel, Console: &out[i]})
		if err != nil {
			t.Fatal(err)
		}
		defer m[i].Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first := make(chan Outcome, 1)
	running, kill := context.WithCancel(ctx)
	go func() {
		o, _ := m[0].Run(running)
		first <- o
	}()
	for m[0].cpus[0].Exits() < n/3 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	m[0].Pause()
	state, err := m[0].cpus[0].Save(msrs)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range m[0].mem.Regions() {
		copy(m[1].mem.Regions()[i].Mem, r.Mem)
	}
	kill()
	if o := <-first; o != Killed {
		t.Fatalf("the first guest %v before it was moved", o)
	}
	if err := m[1].cpus[0].Restore(state); err != nil {
		t.Fatal(err)
	}
	if o, err := m[1].Run(ctx); o != PoweredOff || err != nil {
		t.Fatalf("the moved guest %v: %v", o, err)
	}
	before := out[0].Len() + int(m[0].console.Overruns())
	after := out[1].Len() + int(m[1].console.Overruns())
	if before+after != n || before == 0 || after == 0 {
		t.Errorf("%d writes before the move and %d after, want %d together", before, after, n)
	}
}

func TestRestoreRefusesVersion(t *testing.T) {
	m := idleMachine(t)
	s, err := m.cpus[0].Save(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Version++
	if err := m.cpus[0].Restore(s); err == nil {
		t.Error("a state of an unknown version was loaded")
	}
}
