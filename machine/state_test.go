package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/console"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/memory"
)

// saved is the machine's state and memory, as another process would find them.
func saved(t *testing.T, m *Machine) *Saved {
	t.Helper()
	state, err := m.Save()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	copied := new(State)
	if err := json.Unmarshal(text, copied); err != nil {
		t.Fatal(err)
	}
	s := &Saved{State: func() (*State, error) { return copied, nil }}
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	for _, r := range m.mem.Regions() {
		if _, err := f.WriteAt(r.Mem, int64(r.Offset)); err != nil {
			t.Fatal(err)
		}
	}
	s.Memory = []memory.Extent{{Length: m.mem.Size(), File: f}}
	return s
}

// of is the state of a saved machine.
func of(s *Saved) *State {
	state, _ := s.State()
	return state
}

// TestStateMoves stops a guest in the middle of a loop of port writes and lets it go
// on in another machine: every write comes out once, on one side or the other.
func TestStateMoves(t *testing.T) {
	const n = 20000
	sys := openKVM(t)
	var out [2]bytes.Buffer
	// All devices are there, although the guest has a driver for the port only.
	config := func(i int) Config {
		return Config{
			CPUs: 2, Memory: 8 << 20, Console: &out[i],
			Vsock:   func() (string, error) { return filepath.Join(t.TempDir(), "vsock"), nil },
			Balloon: &balloon.Config{FreePageReporting: true}, HVC: &console.Config{},
		}
	}
	c := config(0)
	c.Kernel = program(t)(micro.PortLoop(micro.Write, 0x3f8, micro.Byte, n, micro.PowerOff()))
	m, err := New(sys, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first := make(chan Outcome, 1)
	running, kill := context.WithCancel(ctx)
	go func() {
		o, _ := m.Run(running)
		first <- o
	}()
	for m.cpus[0].Exits() < n/3 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	m.Pause()
	c = config(1)
	c.Saved = saved(t, m)
	kill()
	if o := <-first; o != Killed {
		t.Fatalf("the first guest %v before it was moved", o)
	}
	moved, err := New(sys, c)
	if err != nil {
		t.Fatal(err)
	}
	defer moved.Close()
	if o, err := moved.Run(ctx); o != PoweredOff || err != nil {
		t.Fatalf("the moved guest %v: %v", o, err)
	}
	before := out[0].Len() + int(m.console.Overruns())
	after := out[1].Len() + int(moved.console.Overruns())
	if before+after != n || before == 0 || after == 0 {
		t.Errorf("%d writes before the move and %d after, want %d together", before, after, n)
	}
}

// TestRestoreRefuses has a saved machine restored into one that is not like it.
func TestRestoreRefuses(t *testing.T) {
	sys := openKVM(t)
	plain := Config{CPUs: 1, Memory: 8 << 20}
	c := plain
	c.Kernel = program(t)(micro.Spin())
	m, err := New(sys, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, test := range []struct {
		name   string
		change func(*Config, *Saved)
		want   string
	}{
		{"processors", func(c *Config, _ *Saved) { c.CPUs = 2 }, "the saved machine has 1 CPUs, this one 2"},
		{"fewer devices", func(c *Config, _ *Saved) { c.NoRNG = true }, "give it the devices that it had"},
		{"other devices", func(c *Config, _ *Saved) { c.NoRNG, c.Balloon = true, &balloon.Config{} }, `is "rng", of this one "balloon"`},
		{"version", func(_ *Config, s *Saved) { of(s).Version++ }, "version 2"},
		{"processor gone", func(_ *Config, s *Saved) { of(s).CPUs[0] = nil }, "nothing is saved of CPU 0"},
		{"less memory", func(c *Config, _ *Saved) { c.Memory = 4 << 20 }, "are not pages of a guest"},
		{"memory cut", func(c *Config, s *Saved) { c.Memory, s.Memory[0].Length = 16<<20, 16<<20 }, "want 16777216 of saved memory"},
		{"processor feature", func(_ *Config, s *Saved) {
			for i := range of(s).CPUs[0].CPUID {
				if e := &of(s).CPUs[0].CPUID[i]; e.Function == 1 {
					e.ECX = ^uint32(0)
				}
			}
		}, "this host lacks processor features that the guest was started with: "},
		{"local APIC", func(_ *Config, s *Saved) { of(s).CPUs[0].LAPIC = nil }, "0 bytes of registers"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := plain
			c.Saved = saved(t, m)
			test.change(&c, c.Saved)
			other, err := New(sys, c)
			if err == nil {
				other.Close()
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
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
