package machine

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/console"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/memory"
)

// FuzzRestore restores states that somebody made up, with checksums that are right:
// they are refused, or the guest runs or crashes, and nothing else happens.
func FuzzRestore(f *testing.F) {
	sys, err := kvm.Open("")
	if err != nil {
		testenv.Lacks(f, "%v", err)
	}
	defer sys.Close()
	config := func() Config {
		return Config{
			CPUs: 1, Memory: 4 << 20, Balloon: &balloon.Config{FreePageReporting: true}, HVC: &console.Config{},
			Vsock: func() (string, error) { return "", nil },
		}
	}
	elf, err := micro.Spin()
	if err != nil {
		f.Fatal(err)
	}
	c := config()
	c.Kernel = filepath.Join(f.TempDir(), "guest.elf")
	if err := os.WriteFile(c.Kernel, elf, 0o600); err != nil {
		f.Fatal(err)
	}
	m, err := New(sys, c)
	if err != nil {
		f.Fatal(err)
	}
	state, err := m.Save()
	if err != nil {
		f.Fatal(err)
	}
	file, err := os.Create(filepath.Join(f.TempDir(), "memory"))
	if err != nil {
		f.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(m.mem.Regions()[0].Mem); err != nil {
		f.Fatal(err)
	}
	size := m.mem.Size()
	if err := m.Close(); err != nil {
		f.Fatal(err)
	}
	// The parts one by one: what is wrong in one must not hide behind another.
	for _, part := range []any{state, state.PCI, state.IOAPIC, state.Virtio, state.Console, state.PM, state.RTC} {
		text, err := json.Marshal(part)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s := *state // the saved one, with those parts that the text has
		cpu := *state.CPUs[0]
		for _, into := range []any{&s, &s.PCI, &s.IOAPIC, &s.Virtio, &s.Console, &s.PM, &s.RTC, &cpu} {
			_ = json.Unmarshal(text, into)
		}
		if len(s.CPUs) == 1 && s.CPUs[0] == state.CPUs[0] {
			s.CPUs[0] = &cpu
		}
		c := config()
		c.Saved = &Saved{State: func() (*State, error) { return &s, nil }, Memory: []memory.Extent{{Length: size, File: file}}}
		m, err := New(sys, c)
		if err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		// However it ends.
		_, _ = m.Run(ctx)
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}
