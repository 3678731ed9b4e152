package net

import (
	"encoding/binary"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

// TestWholeFrames tests that a driver which polls never sees a part of a frame:
// all its buffers are used at once (§5.1.6.4.1).
func TestWholeFrames(t *testing.T) {
	g := newGuest(t, Config{}, virtiotest.Options{})
	r := newRingDriver(g, g.rx())
	r.receiveBuffers(g)
	frame := testFrame(20000, 1)
	const frames, each = 2000, 5
	r.give(len(r.heads))
	go func() {
		for range frames {
			g.wire.put(frame)
		}
	}()
	for seen := uint16(0); seen != uint16(frames*each); seen += each {
		used := r.used()
		for used == seen {
			used = r.used()
		}
		id, err := r.mem.Uint32(r.q.Used + 4 + 8*memory.GPA(seen%r.q.Size))
		if err != nil {
			t.Fatal(err)
		}
		at, err := r.mem.Uint64(r.q.Desc + 16*memory.GPA(id))
		if err != nil {
			t.Fatal(err)
		}
		var n [2]byte
		if err := r.mem.Read(memory.GPA(at)+headerBuffers, n[:]); err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint16(n[:]); got != each || used-seen < each {
			t.Fatalf("%d of %d buffers are used", used-seen, got)
		}
		r.give(each)
	}
}
