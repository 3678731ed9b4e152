package vpci

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/pci"
	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

// typed is a device of any kind.
type typed struct {
	echoDevice
	kind virtio.DeviceType
}

func (d *typed) Type() virtio.DeviceType { return d.kind }

func TestIdentity(t *testing.T) {
	for kind, class := range map[virtio.DeviceType]uint64{
		virtio.TypeNet: 0x020000, virtio.TypeBlock: 0x010000, virtio.TypeConsole: 0x078000,
		virtio.TypeEntropy: 0x00ff00, virtio.TypeBalloon: 0x00ff00, virtio.TypeVsock: 0x078000,
	} {
		r := newRig(t, &typed{echoDevice{queues: 3}, kind}, nil)
		for _, tt := range []struct {
			what       string
			reg, width int
			want       uint64
		}{
			{"vendor", 0x00, 2, 0x1af4},
			{"device", 0x02, 2, 0x1040 + uint64(kind)},
			{"revision and class", 0x08, 4, class<<8 | 1},
			{"subsystem vendor", 0x2c, 2, 0x1af4},
			{"subsystem", 0x2e, 2, 0x40 + uint64(kind)},
			{"BAR 0", 0x10, 4, barBase}, // 32-bit memory, not prefetchable
			{"interrupt pin", 0x3d, 1, 0},
		} {
			if got := r.configRead(tt.reg, tt.width); got != tt.want {
				t.Errorf("%s: %s is %#x, want %#x", kind, tt.what, got, tt.want)
			}
		}
	}
}

func TestCapabilities(t *testing.T) {
	r := newRig(t, &echoDevice{queues: 3}, nil)
	for _, tt := range []struct {
		kind                     uint64
		size, bar, offset, least uint64
	}{
		{capCommon, 16, 0, 0x0000, 56},
		{capISR, 16, 0, 0x1000, 1},
		{capDevice, 16, 0, 0x2000, 8},
		{capNotify, 20, 0, 0x3000, 3 * 4},
		{capPCI, 20, 0, 0, 0},
	} {
		at := r.capability(pci.CapabilityVendor, tt.kind)
		if n := r.configRead(at+2, 1); n != tt.size {
			t.Errorf("capability %d has %d bytes, want %d", tt.kind, n, tt.size)
		}
		if bar, offset := r.configRead(at+4, 1), r.configRead(at+8, 4); bar != tt.bar || offset != tt.offset {
			t.Errorf("capability %d is in BAR %d at %#x", tt.kind, bar, offset)
		}
		if length := r.configRead(at+12, 4); length < tt.least || tt.offset+length > barSize {
			t.Errorf("capability %d has a structure of %d bytes", tt.kind, length)
		}
		if tt.kind == capNotify && r.configRead(at+16, 4) != notifyMultiplier {
			t.Errorf("notify_off_multiplier is %d", r.configRead(at+16, 4))
		}
	}
	msix := r.capability(pci.CapabilityMSIX, 0)
	if n := r.configRead(msix+2, 2) + 1; n != 4 {
		t.Errorf("%d vectors, want one for the configuration and 3 for queues", n)
	}
	if bar := r.configRead(msix+4, 4) & 7; bar != msixBAR {
		t.Errorf("MSI-X table in BAR %d", bar)
	}
}

type badSizes struct {
	echoDevice
	sizes []uint16
}

func (d *badSizes) QueueSizes() []uint16 { return d.sizes }

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		sizes []uint16
		want  string
	}{
		{[]uint16{64, 0}, "power of two"},
		{[]uint16{100}, "power of two"},
		{make([]uint16, MaxQueues+1), "the limit is 1024"},
	} {
		d := &badSizes{sizes: tt.sizes}
		_, err := New(Config{Name: "bad", Device: d, Vectors: pci.NewSoftwareVectors(1, nil)})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%d queues: %v, want %q in it", len(tt.sizes), err, tt.want)
		}
	}
}

// TestTraffic is the life of a good driver.
func TestTraffic(t *testing.T) {
	const own = 1 << 5
	d := &echoDevice{queues: 2, features: own}
	r := newRig(t, d, nil)
	r.start(own | virtio.FeatureVersion1 | virtio.FeatureEventIdx)
	if got := d.lastDriver; got.Features != own|virtio.FeatureVersion1|virtio.FeatureEventIdx ||
		!got.Has(own) || got.Has(virtio.FeatureIndirect) || got.Mem != r.mem.Guest {
		t.Errorf("the device was started with features %#x", got.Features)
	}
	for range 100 {
		r.echo(0, "first queue")
		r.echo(1, "second queue")
	}
	if isr := r.read(barBase+isrPage, 1); isr != isrQueue {
		t.Errorf("ISR status %#x, want %#x", isr, isrQueue)
	}
	if isr := r.read(barBase+isrPage, 1); isr != 0 {
		t.Errorf("ISR status %#x after it was read", isr)
	}
	// A queue that is not enabled is not there for the device.
	r.negotiate(virtio.FeatureVersion1)
	r.set(regStatus, running)
	if len(d.lastDriver.Queues) != 2 || d.lastDriver.Queues[0] != nil {
		t.Errorf("queues %v, want none enabled", d.lastDriver.Queues)
	}
	if starts, stops, resets := d.counts(); starts != 2 || stops != 1 || resets != 2 {
		t.Errorf("%d starts, %d stops, %d resets", starts, stops, resets)
	}
}

func TestFail(t *testing.T) {
	d := &echoDevice{queues: 2}
	r := newRig(t, d, nil)
	for round := range 3 {
		r.start(virtio.FeatureVersion1)
		r.echo(0, "before")
		// An avail index that jumps breaks the queue, and the device with it.
		r.queues[0].SetAvailIndex(r.queues[0].AvailIndex() + 100)
		r.kick(0)
		r.awaitMessage(0x40)
		r.wantStatus("after the failure", running|statusNeedsReset)
		if err := r.f.Err(); !errors.Is(err, virtio.ErrBroken) || !strings.Contains(err.Error(), "virtio device test") {
			t.Errorf("the reason is %v", err)
		}
		r.f.stopping.Wait()
		if starts, stops, _ := d.counts(); stops != starts {
			t.Error("the device was not stopped")
		}
		// Nothing but a reset helps.
		r.set(regStatus, running)
		r.f.Pause()
		r.f.Resume()
		r.send(1, "lost")
		r.kick(1)
		if starts, _, _ := d.counts(); starts != round+1 {
			t.Error("the device was started again")
		}
		r.set(regStatus, 0)
		r.wantStatus("after the reset", 0)
		if r.f.Err() != nil {
			t.Errorf("after the reset the reason is %v", r.f.Err())
		}
	}
	if len(r.warnings) != 1 {
		t.Errorf("%d warnings, want one", len(r.warnings))
	}
}

// TestFailTooLate: a worker that reports a failure after the reset does not
// concern the new driver.
func TestFailTooLate(t *testing.T) {
	d := &echoDevice{queues: 1}
	r := newRig(t, d, nil)
	r.start(virtio.FeatureVersion1)
	stale := d.lastDriver.Fail
	r.start(virtio.FeatureVersion1)
	stale(errors.New("from a former life"))
	r.wantStatus("after the failure", running)
	if len(r.warnings) != 0 || len(r.messages) != 0 {
		t.Errorf("%d warnings and %d interrupts", len(r.warnings), len(r.messages))
	}
	r.echo(0, "still there")
}

func TestStartError(t *testing.T) {
	d := &echoDevice{queues: 1, startErr: errors.New("no luck")}
	r := newRig(t, d, nil)
	r.start(virtio.FeatureVersion1)
	r.awaitMessage(0x40)
	r.wantStatus("after the failure", running|statusNeedsReset)
	if !errors.Is(r.f.Err(), d.startErr) {
		t.Errorf("the reason is %v", r.f.Err())
	}
	r.f.stopping.Wait()
	d.startErr = nil
	r.start(virtio.FeatureVersion1)
	r.echo(0, "works again")
}

func TestFailWithoutReason(t *testing.T) {
	d := &echoDevice{queues: 1}
	r := newRig(t, d, nil)
	r.start(virtio.FeatureVersion1)
	d.lastDriver.Fail(nil)
	r.wantStatus("after the failure", running|statusNeedsReset)
}

// TestQueuesOutside puts queues where no RAM is.
func TestQueuesOutside(t *testing.T) {
	for _, reg := range []int{regQueueDesc, regQueueAvail, regQueueUsed} {
		for _, at := range []uint64{uint64(memory.PCIHoleStart), 1 << 40, 1<<64 - 4096, 3} {
			r := newRig(t, &echoDevice{queues: 1}, nil)
			r.negotiate(virtio.FeatureVersion1)
			r.set(regQueueDesc, 0x1000)
			r.set(regQueueAvail, 0x2000)
			r.set(regQueueUsed, 0x3000)
			r.set(reg, at)
			r.set(regQueueEnable, 1)
			r.wantStatus("after the queue", statusAcknowledge|statusDriver|statusFeaturesOK|statusNeedsReset)
			if r.get(regQueueEnable) != 0 {
				t.Errorf("a queue with register %d = %#x is enabled", reg, at)
			}
			r.set(regQueueDesc, 0x4000) // too late
			r.set(regStatus, running)
			if starts, _, _ := r.f.device.(*echoDevice).counts(); starts != 0 {
				t.Error("the device was started")
			}
		}
	}
}

// TestResetInFlight resets the device while it works on a request: the reset
// waits for the request, and nothing of the queues is touched afterwards.
func TestResetInFlight(t *testing.T) {
	d := &echoDevice{queues: 1, hold: make(chan struct{}), taken: make(chan struct{}, 1)}
	r := newRig(t, d, nil)
	r.start(virtio.FeatureVersion1)
	r.send(0, "slow")
	r.kick(0)
	<-d.taken
	used := r.queues[0].UsedIndex()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.set(regStatus, 0)
	}()
	select {
	case <-done:
		t.Error("the reset was over while a request was under way")
	default:
	}
	close(d.hold)
	<-done
	r.wantStatus("after the reset", 0)
	if got := r.queues[0].UsedIndex(); got != used+1 {
		t.Errorf("used index %d, want %d: the request was completed", got, used+1)
	}
	d.hold = nil
	r.start(virtio.FeatureVersion1)
	r.echo(0, "works again")
}

// TestResetUnderFlood resets the device while another processor adds a request
// for each that is answered, so that the queue is never empty.
func TestResetUnderFlood(t *testing.T) {
	d := &echoDevice{queues: 1}
	r := newRig(t, d, nil)
	r.start(virtio.FeatureVersion1)
	q := r.queues[0]
	head := q.Chain(memBuffer(0x1000))
	for slot := range q.Size {
		q.SetAvail(slot, head)
	}
	flooded := make(chan struct{})
	answered := 0
	d.mu.Lock()
	d.answered = func() {
		q.SetAvailIndex(q.AvailIndex() + 1)
		if answered++; answered == 100 {
			close(flooded)
		}
	}
	d.mu.Unlock()
	q.SetAvailIndex(1)
	r.kick(0)
	<-flooded
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.set(regStatus, 0)
	}()
	select {
	case <-done:
		r.wantStatus("after the reset", 0)
	case <-time.After(virtiotest.Patience):
		d.mu.Lock()
		d.answered = nil
		d.mu.Unlock()
		t.Fatal("the reset waits for an empty queue")
	}
}

// TestMSIX checks which vector comes, and that masked ones wait.
func TestMSIX(t *testing.T) {
	d := &echoDevice{queues: 2}
	r := newRig(t, d, nil)
	r.start(virtio.FeatureVersion1)
	r.echo(1, "vector 2")
	r.write(msixBase+16*1+12, 4, 1) // mask vector 1, of queue 0
	for len(r.messages) > 0 {
		<-r.messages
	}
	in := r.send(0, "masked")
	r.kick(0)
	pba := msixBase + r.f.pciPBA()
	for r.read(pba, 8)>>1&1 == 0 {
		// The request is under way.
	}
	if len(r.messages) != 0 {
		t.Errorf("message %#x of a masked vector", <-r.messages)
	}
	r.write(msixBase+16*1+12, 4, 0)
	if got := r.receive(0, in); got != "masked" {
		t.Errorf("got %q", got)
	}

	// Two queues may share a vector, and change it while they run.
	r.set(regQueueSelect, 0)
	r.set(regQueueVector, 2)
	in = r.send(0, "shared")
	r.kick(0)
	r.awaitMessage(0x42)
	if _, n, ok := r.queues[0].Take(); !ok || string(r.mem.Get(in, int(n))) != "shared" {
		t.Error("no answer behind the interrupt")
	}
	for _, reg := range []int{regQueueVector, regConfigVector} {
		r.set(reg, 3) // there are 0 to 2
		if got := r.get(reg); got != noVector {
			t.Errorf("vector 3 reads as %#x, want none", got)
		}
	}
	for len(r.messages) > 0 {
		<-r.messages
	}
	d.lastDriver.ConfigChanged()
	if len(r.messages) != 0 {
		t.Error("an interrupt without a vector")
	}
	if r.read(barBase+isrPage, 1)&isrConfig == 0 {
		t.Error("no bit in the ISR status either")
	}
}

// TestHotPathAllocations: neither a doorbell nor an interrupt allocates.
func TestHotPathAllocations(t *testing.T) {
	r := newRig(t, &echoDevice{queues: 1}, nil)
	r.start(virtio.FeatureVersion1)
	r.f.Pause()
	data := []byte{0, 0}
	if n := testing.AllocsPerRun(100, func() { r.mmio.Write(barBase+notifyPage, data) }); n != 0 {
		t.Errorf("%v allocations a doorbell", n)
	}
	if n := testing.AllocsPerRun(100, func() { r.f.interruptQueue(0) }); n != 0 {
		t.Errorf("%v allocations an interrupt", n)
	}
}
