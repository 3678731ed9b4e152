package vsock

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// TestTransportReset moves a guest to another device: its old connections are
// gone, and nothing comes before it has seen the event that says so.
func TestTransportReset(t *testing.T) {
	old, d := newDevice(t), newDevice(t)
	g := startGuest(t, old, virtiotest.Options{})
	events := g.drv.Queues[eventQueue]
	at := g.drv.Memory.Alloc(16, 8)
	add := func() { events.Publish(events.Chain(virtiotest.Buffer{GPA: at, Len: eventSize, Write: true})) }
	add()
	add()
	events.Kick()
	host, _ := pair(t, old, g)

	if err := d.Restore(State{Version: stateVersion, CID: 2}); err == nil {
		t.Error("state with the CID of the host: no error")
	}
	if err := d.Restore(State{Version: 99, CID: 3}); err == nil {
		t.Error("state of a later version: no error")
	}
	g.drv.Memory.Set(at, bytes.Repeat([]byte{0xff}, eventSize))
	g.close() // the queues have one user at a time
	g.drv.Move(d, func() {
		if err := d.Restore(old.Save()); err != nil {
			t.Fatal(err)
		}
		if err := old.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the host's end of the old connection: %v", err)
	}
	if _, n := events.Wait(); n != eventSize || !bytes.Equal(g.drv.Memory.Get(at, eventSize), make([]byte, eventSize)) {
		t.Fatalf("event of %d bytes: % x", n, g.drv.Memory.Get(at, eventSize))
	}
	// The driver has the event and has not looked at it.
	rx := g.drv.Queues[rxQueue]
	before := rx.UsedIndex()
	refused(g.drv)
	go Dial(t.Context(), d.cfg.Path, 9)
	time.Sleep(20 * time.Millisecond)
	// Also when the machine is paused meanwhile: the event comes again.
	g.drv.Stop()
	g.drv.Resume()
	if _, n := events.Wait(); n != eventSize {
		t.Fatalf("event of %d bytes", n)
	}
	time.Sleep(20 * time.Millisecond)
	if got := rx.UsedIndex() - before; got != 0 {
		t.Errorf("%d packets before the driver has seen the event", got)
	}
	add()
	events.Kick()
	for range 2 { // the refused packet's answer, and the host's request
		if _, n := rx.Wait(); n != headerSize {
			t.Errorf("packet of %d bytes", n)
		}
	}
	if g.drv.Stop(); d.reset != resetNone {
		t.Error("the reset is still to come")
	}
}

// TestResetWaitsForBuffer has a driver without a buffer for the event.
func TestResetWaitsForBuffer(t *testing.T) {
	d := newDevice(t)
	if err := d.Restore(State{Version: stateVersion, CID: 7}); err != nil {
		t.Fatal(err)
	}
	if got := configOf(d, 0, 1); got[0] != 7 {
		t.Errorf("CID %d, want the saved one", got[0])
	}
	drv := virtiotest.Start(t, d, virtiotest.Options{})
	events := drv.Queues[eventQueue]
	for range 2 {
		events.Publish(events.Chain(virtiotest.Buffer{GPA: drv.Memory.Alloc(16, 8), Len: eventSize, Write: true}))
		events.Kick()
	}
	events.Wait()
	drv.Reset() // a new driver has no connections
	rx := drv.Queues[rxQueue]
	rx.Publish(rx.Chain(virtiotest.Buffer{GPA: drv.Memory.Alloc(64, 8), Len: 64, Write: true}))
	h := header{srcCID: 7, dstCID: HostCID, kind: kindStream, op: opData}
	var b [headerSize]byte
	h.encode(&b)
	drv.Queues[txQueue].Do([][]byte{b[:]})
	if _, n := rx.Wait(); n != headerSize {
		t.Errorf("answer of %d bytes", n)
	}
}

func TestSmallEventBuffer(t *testing.T) {
	d := newDevice(t)
	if err := d.Restore(State{Version: stateVersion, CID: 3}); err != nil {
		t.Fatal(err)
	}
	drv := virtiotest.Start(t, d, virtiotest.Options{})
	events := drv.Queues[eventQueue]
	events.Publish(events.Chain(virtiotest.Buffer{GPA: drv.Memory.Alloc(16, 8), Len: 3, Write: true}))
	events.Kick()
	if err := drv.AwaitFail(); err == nil {
		t.Error("no error")
	}
}
