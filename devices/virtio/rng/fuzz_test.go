package rng

import (
	"encoding/binary"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

// FuzzDevice fills the pages of the queue with what the input says, a third of it
// before each of three rounds of service, and saves and restores the device in between.
func FuzzDevice(f *testing.F) {
	le := binary.LittleEndian
	descriptor := func(address uint64, length uint32, flags, next uint16) []byte {
		d := le.AppendUint32(le.AppendUint64(nil, address), length)
		return le.AppendUint16(le.AppendUint16(d, flags), next)
	}
	const write, chained, indirect = 2, 1, 4
	// The descriptors come first, then at 0x400 the avail ring: flags, index, heads.
	input := func(heads int, descriptors ...[]byte) []byte {
		p := make([]byte, 0x404+2*heads)
		at := 0
		for _, d := range descriptors {
			at += copy(p[at:], d)
		}
		le.PutUint16(p[0x402:], uint16(heads))
		return p
	}
	f.Add(input(1, descriptor(0x8000, 100, write, 0)))
	f.Add(input(1, descriptor(0x8000, 100, write|chained, 1), descriptor(0x9000, 1<<20, write, 0)))
	f.Add(input(1, descriptor(0x8000, 100, 0, 0)))
	f.Add(input(1, descriptor(0x2000, 16, indirect, 0)))
	f.Add(input(17, descriptor(1<<40, 8, write, 0)))
	f.Add(input(1, descriptor(0x8000, 8, write|chained, 0)))
	f.Fuzz(func(t *testing.T, in []byte) {
		g := virtiotest.NewFuzzGuest(t)
		features := virtio.TransportFeatures
		g.Enable(1, features)
		q := g.Queues[0]
		newDevice := func() *Device {
			d, err := New(Config{Limit: limit.Config{Bandwidth: limit.Rate{PerSecond: 1 << 20}}})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		d := newDevice()
		defer func() { d.Close() }()
		failed := false
		driver := virtio.Driver{Mem: g.Guest, Features: features, Fail: func(error) { failed = true }}
		d.driver, d.queue = driver, q
		for round := range 3 {
			part := in[len(in)*round/3 : len(in)*(round+1)/3]
			if round == 0 {
				part = in
			}
			if err := g.Write(memory.PageSize, part[:min(len(part), 0x1000)]); err != nil {
				t.Fatal(err)
			}
			d.serve()
			if failed {
				return
			}
			saved := d.Save()
			other := newDevice()
			if err := other.Restore(saved); err != nil {
				t.Fatalf("restore what was saved: %v", err)
			}
			d.Close()
			d = other
			d.driver, d.queue = driver, q
		}
	})
}
