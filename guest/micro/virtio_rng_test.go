package micro

import (
	"bytes"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/rng"
)

func TestEntropy(t *testing.T) {
	e := Entropy{Driver: Driver{Stop: AnyStop(), EventIdx: true}, Size: 1000, Depth: 4, Requests: 40}
	check := func(t *testing.T, r Result, ram []byte) {
		t.Helper()
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
		if r.Count != e.Requests || r.Bytes > e.Requests*uint64(e.Size) || r.Bytes < e.Requests || r.Histogram.Count() != e.Requests {
			t.Errorf("%d requests, %d bytes, %d times", r.Count, r.Bytes, r.Histogram.Count())
		}
		if zeros := bytes.Count(ram, []byte{0}); zeros > len(ram)/32 {
			t.Errorf("%d zeros among %d bytes", zeros, len(ram))
		}
	}
	for _, m := range machines {
		t.Run(m.name, func(t *testing.T) {
			g := m.start(t, program(t)(e.ELF()), nil, "-device", "virtio-rng-pci")
			r := g.wait()
			ram := make([]byte, e.Size*e.Depth)
			if _, err := g.ram.ReadAt(ram, BufferStart); err != nil {
				t.Fatal(err)
			}
			check(t, r, ram)
		})
	}
	t.Run("godwit", func(t *testing.T) {
		d, err := rng.New(rng.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		g := newVirtioGuest(t, program(t)(e.ELF()), d)
		r := g.run()
		check(t, r, g.ram[BufferStart:BufferStart+e.Size*e.Depth])
	})
}

func TestEntropyMistakes(t *testing.T) {
	for _, e := range []Entropy{{}, {Size: 1<<20 + 1}, {Size: 8, Depth: -1}, {Size: 8, Depth: 257}} {
		if _, err := e.ELF(); err == nil || !strings.Contains(err.Error(), "want 1 to") {
			t.Errorf("%+v: error %v", e, err)
		}
	}
}
