package rng

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

func newDevice(t testing.TB, c Config) *Device {
	t.Helper()
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// random tells whether p looks random: of so many bytes about a 256th are zero.
func random(p []byte) bool {
	zeros := bytes.Count(p, []byte{0})
	return zeros < len(p)/64+8
}

func TestRequests(t *testing.T) {
	tests := []struct {
		name    string
		in      []int
		written uint32
	}{
		{"one byte", []int{1}, 1},
		{"a cache line", []int{64}, 64},
		{"three buffers", []int{1000, 1, 3000}, 4001},
		{"the most", []int{MaxRequest}, MaxRequest},
		{"more", []int{MaxRequest - 100, 200, 5000}, MaxRequest},
	}
	for _, without := range []uint64{0, virtio.FeatureEventIdx, virtio.FeatureIndirect} {
		d := virtiotest.Start(t, newDevice(t, Config{}), virtiotest.Options{Without: without})
		for _, tt := range tests {
			answer, written := d.Queues[0].Do(nil, tt.in...)
			if written != tt.written {
				t.Errorf("%s: %d bytes, want %d", tt.name, written, tt.written)
			}
			all := bytes.Join(answer, nil)
			if !random(all[:written]) {
				t.Errorf("%s: not random: %x", tt.name, all[:min(64, len(all))])
			}
			if rest := all[written:]; len(bytes.Trim(rest, "\x00")) > 0 {
				t.Errorf("%s: something was written behind the end", tt.name)
			}
		}
	}
}

func TestStats(t *testing.T) {
	d := newDevice(t, Config{})
	q := virtiotest.Start(t, d, virtiotest.Options{}).Queues[0]
	q.Do(nil, 100)
	q.Do(nil, MaxRequest+1)
	if got, want := d.Stats(), (Stats{Requests: 2, Bytes: 100 + MaxRequest}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestManyRequests lets the indices of the queue wrap around.
func TestManyRequests(t *testing.T) {
	d := virtiotest.Start(t, newDevice(t, Config{}), virtiotest.Options{})
	q := d.Queues[0]
	at := d.Memory.Alloc(64, 64)
	for done := 0; done < 70_000; {
		for q.Free() > 0 {
			q.Publish(q.Chain(virtiotest.Buffer{GPA: at, Len: 8, Write: true}))
		}
		q.Kick()
		for q.Free() < QueueSize {
			if _, written := q.Wait(); written != 8 {
				t.Fatalf("request %d: %d bytes", done, written)
			}
			done++
		}
	}
}

func TestBrokenRequests(t *testing.T) {
	d := virtiotest.Start(t, newDevice(t, Config{}), virtiotest.Options{})
	q := d.Queues[0]
	at := d.Memory.Alloc(4096, 16)
	for _, tt := range []struct {
		name    string
		buffers []virtiotest.Buffer
	}{
		{"nothing to write", []virtiotest.Buffer{{GPA: at, Len: 16}}},
		{"something to read", []virtiotest.Buffer{{GPA: at, Len: 16}, {GPA: at, Len: 16, Write: true}}},
		{"outside of RAM", []virtiotest.Buffer{{GPA: 1 << 40, Len: 16, Write: true}}},
	} {
		q.Publish(q.Chain(tt.buffers...))
		q.Kick()
		if err := d.AwaitFail(); !errors.Is(err, virtio.ErrBroken) {
			t.Errorf("%s: %v, want a broken virtqueue", tt.name, err)
		}
		// The reset makes it work again.
		d.Reset()
		if _, written := q.Do(nil, 32); written != 32 {
			t.Errorf("%s: after the reset a request gets %d bytes", tt.name, written)
		}
	}
}

func TestLimit(t *testing.T) {
	const rate = 100 << 10
	device := newDevice(t, Config{Limit: limit.Config{Bandwidth: limit.Rate{PerSecond: rate, Burst: 1 << 10}}})
	d := virtiotest.Start(t, device, virtiotest.Options{})
	q := d.Queues[0]
	at := d.Memory.Alloc(1<<10, 16)
	for range 8 {
		q.Publish(q.Chain(virtiotest.Buffer{GPA: at, Len: 1 << 10, Write: true}))
	}
	q.Kick()
	q.Wait() // what the burst allows
	d.Stop()
	left := 7
	for _, _, ok := q.Take(); ok; _, _, ok = q.Take() {
		left--
	}
	if left == 0 {
		t.Fatal("8 KiB at once, with a burst of 1 KiB")
	}
	// What waits for the limit when the device is stopped goes on later,
	// also in another device.
	other := newDevice(t, Config{Limit: limit.Config{Bandwidth: limit.Rate{PerSecond: rate}}})
	d.Move(other, func() {
		if err := other.Restore(device.Save()); err != nil {
			t.Error(err)
		}
	})
	for range left {
		q.Wait()
	}
}

func TestStopResume(t *testing.T) {
	d := virtiotest.Start(t, newDevice(t, Config{}), virtiotest.Options{})
	q := d.Queues[0]
	at := d.Memory.Alloc(64, 16)
	for range 100 {
		q.Publish(q.Chain(virtiotest.Buffer{GPA: at, Len: 64, Write: true}))
		q.Kick()
		d.Stop()
		d.Resume()
		q.Wait()
	}
	d.Stop()
	d.Stop() // of a stopped device does nothing
}

func TestQueueNotEnabled(t *testing.T) {
	virtiotest.Start(t, newDevice(t, Config{}), virtiotest.Options{Skip: map[int]bool{0: true}})
}

func TestState(t *testing.T) {
	d := newDevice(t, Config{Limit: limit.Config{Operations: limit.Rate{PerSecond: 10}}})
	text, err := json.Marshal(d.Save())
	if err != nil {
		t.Fatal(err)
	}
	var s State
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	if err := d.Restore(s); err != nil {
		t.Error(err)
	}
	s.Version++
	if err := d.Restore(s); !errors.Is(err, devices.ErrVersion) {
		t.Errorf("restore of an unknown version: %v", err)
	}
}

func TestConfigSpace(t *testing.T) {
	d := newDevice(t, Config{})
	d.WriteConfig(0, []byte{1, 2, 3})
	p := []byte{1, 2, 3, 4}
	d.ReadConfig(1, p)
	if !bytes.Equal(p, make([]byte, 4)) {
		t.Errorf("the configuration space reads %x", p)
	}
	if _, err := New(Config{Limit: limit.Config{Bandwidth: limit.Rate{Burst: 1}}}); err == nil {
		t.Error("a burst without a rate was accepted")
	}
}

// TestAllocations checks that a request costs no memory.
func TestAllocations(t *testing.T) {
	device := newDevice(t, Config{})
	d := virtiotest.Start(t, device, virtiotest.Options{Without: virtio.FeatureEventIdx})
	d.Stop() // served by hand below
	side := d.Device(0)
	side.Hold(false)
	device.queue = side
	q := d.Queues[0]
	q.Chain(virtiotest.Buffer{GPA: d.Memory.Alloc(64, 16), Len: 64, Write: true})
	q.Publish(0)
	device.serve()
	allocs := testing.AllocsPerRun(1000, func() {
		q.SetAvailIndex(q.AvailIndex() + 1)
		device.serve()
	})
	device.queue = nil
	if allocs != 0 {
		t.Errorf("%v allocations a request", allocs)
	}
	if q.UsedIndex() != 1002 {
		t.Errorf("%d requests answered", q.UsedIndex())
	}
}
