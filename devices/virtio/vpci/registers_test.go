package vpci

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/godwit-vmm/godwit/devices/pci"
	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

func memBuffer(at memory.GPA) virtiotest.Buffer {
	return virtiotest.Buffer{GPA: at, Len: 16, Write: true}
}

// pciPBA is where the pending bits of MSI-X are in their BAR.
func (f *Function) pciPBA() uint64 { return 2048 }

// TestStatus goes through sequences of writes to the status register.
func TestStatus(t *testing.T) {
	const (
		ack      = statusAcknowledge
		driver   = ack | statusDriver
		features = driver | statusFeaturesOK
		ok       = features | statusDriverOK
	)
	type step struct{ write, want uint64 }
	good := virtio.FeatureVersion1 | virtio.FeatureIndirect
	tests := []struct {
		name     string
		features uint64
		steps    []step
		starts   int
	}{
		{"as the book says", good, []step{{ack, ack}, {driver, driver}, {features, features}, {ok, ok}}, 1},
		{"all at once", good, []step{{ok, ok}}, 1},
		{"twice", good, []step{{ok, ok}, {ok, ok}}, 1},
		{"again after a reset", good, []step{{ok, ok}, {0, 0}, {ok, driver}}, 1},
		{"without FEATURES_OK", good, []step{{driver, driver}, {driver | statusDriverOK, driver}}, 0},
		{"DRIVER_OK first", good, []step{{statusDriverOK, 0}, {ack, ack}}, 0},
		{"FEATURES_OK without a driver", good, []step{{ack | statusFeaturesOK, ack}}, 0},
		{"not VERSION_1", virtio.FeatureIndirect, []step{{driver, driver}, {features, driver}, {ok, driver}}, 0},
		{"no features", 0, []step{{features, driver}}, 0},
		{"features that were not offered", good | 1<<40, []step{{driver, driver}, {features, driver}, {ok, driver}}, 0},
		{"a device feature that was not offered", good | 1, []step{{features, driver}}, 0},
		{"bits cannot be cleared", good, []step{{features, features}, {ack, features}, {statusDriverOK, ok}, {driver, ok}}, 1},
		{"unknown bits", good, []step{{ack | 16 | 32, ack}, {16, ack}}, 0},
		{"NEEDS_RESET is the device's", good, []step{{ack | statusNeedsReset, ack}, {ok | statusNeedsReset, ok}}, 1},
		{"given up", good, []step{{features, features}, {features | statusFailed, features | statusFailed}, {ok, ok | statusFailed}}, 0},
		{"given up while it runs", good, []step{{ok, ok}, {ok | statusFailed, ok | statusFailed}, {ok, ok | statusFailed}}, 1},
		{"wide zero", good, []step{{ok, ok}, {0, 0}, {0, 0}}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := &echoDevice{queues: 1}
			r := newRig(t, d, nil)
			r.decode(true)
			r.setFeatures(tt.features)
			for i, s := range tt.steps {
				r.set(regStatus, s.write)
				r.wantStatus(fmt.Sprintf("step %d, %#x", i, s.write), s.want)
			}
			if starts, stops, _ := d.counts(); r.get(regStatus)&statusFailed != 0 && starts != stops {
				t.Error("a device that was given up goes on")
			}
			r.f.Pause()
			if starts, stops, _ := d.counts(); starts != tt.starts || stops != starts {
				t.Errorf("%d starts and %d stops, want %d", starts, stops, tt.starts)
			}
		})
	}
}

func TestFeatures(t *testing.T) {
	const own = 1<<3 | 1<<40
	r := newRig(t, &echoDevice{queues: 1, features: own}, nil)
	r.decode(true)
	var offered uint64
	for i := range uint64(2) {
		r.set(regFeatureSelect, i)
		if r.get(regFeatureSelect) != i {
			t.Errorf("select reads %d", r.get(regFeatureSelect))
		}
		offered |= r.get(regFeature) << (32 * i)
	}
	if offered != own|virtio.TransportFeatures {
		t.Errorf("offered %#x, want %#x", offered, own|virtio.TransportFeatures)
	}
	r.set(regFeature, 0) // read-only
	for _, i := range []uint64{2, 3, math.MaxUint32} {
		r.set(regFeatureSelect, i)
		r.set(regAcceptSelect, i)
		r.set(regAccept, math.MaxUint32)
		if r.get(regFeature) != 0 || r.get(regAccept) != 0 {
			t.Errorf("half %#x of the features is there", i)
		}
	}
	r.setFeatures(own | virtio.FeatureVersion1)
	r.set(regStatus, statusAcknowledge|statusDriver|statusFeaturesOK)
	r.setFeatures(0) // too late
	r.set(regAcceptSelect, 0)
	if got := r.get(regAccept); got != own&math.MaxUint32 {
		t.Errorf("accepted features changed to %#x after FEATURES_OK", got)
	}
}

// TestQueueRegisters checks when the registers of a queue can be written.
func TestQueueRegisters(t *testing.T) {
	r := newRig(t, &echoDevice{queues: 2}, nil)
	r.decode(true)
	write := func() {
		r.set(regQueueSelect, 1)
		r.set(regQueueSize, 8)
		r.set(regQueueDesc, 0x1000)
		r.set(regQueueAvail, 0x2000)
		r.set(regQueueUsed, 0x3000)
	}
	all := func() [5]uint64 {
		r.set(regQueueSelect, 1)
		return [5]uint64{r.get(regQueueSize), r.get(regQueueDesc), r.get(regQueueAvail), r.get(regQueueUsed), r.get(regQueueEnable)}
	}
	want := func(when string, w [5]uint64) {
		t.Helper()
		if got := all(); got != w {
			t.Errorf("%s: %#x, want %#x", when, got, w)
		}
	}
	fresh := [5]uint64{32}
	set := [5]uint64{8, 0x1000, 0x2000, 0x3000, 0}
	enabled := [5]uint64{8, 0x1000, 0x2000, 0x3000, 1}

	write()
	r.set(regQueueEnable, 1)
	want("out of reset", fresh)
	r.negotiate(virtio.FeatureVersion1)
	want("after the features", fresh)
	write()
	want("written", set)
	for _, size := range []uint64{0, 3, 64, 0x8000, 0xffff} {
		r.set(regQueueSize, size)
		want(fmt.Sprintf("size %d", size), set)
	}
	for _, x := range []uint64{0, 2, 0xffff} {
		r.set(regQueueEnable, x)
		want(fmt.Sprintf("enable %d", x), set)
	}
	r.set(regQueueEnable, 1)
	want("enabled", enabled)
	r.set(regQueueSize, 16)
	r.set(regQueueDesc, 0x8000)
	r.set(regQueueEnable, 0)
	want("written when enabled", enabled)
	if r.get(regNotifyOffset) != 1 || r.get(regNumQueues) != 2 {
		t.Errorf("notify offset %d of queue 1, %d queues", r.get(regNotifyOffset), r.get(regNumQueues))
	}
	r.set(regStatus, running)
	r.set(regQueueSelect, 0)
	r.set(regQueueSize, 8)
	r.set(regQueueEnable, 1)
	if r.get(regQueueSize) != 64 || r.get(regQueueEnable) != 0 {
		t.Error("a queue was changed after DRIVER_OK")
	}
	r.set(regStatus, 0)
	want("after the reset", fresh)
	if r.get(regQueueVector) != noVector || r.get(regConfigVector) != noVector {
		t.Error("vectors survive a reset")
	}

	// There is no such queue.
	r.negotiate(virtio.FeatureVersion1)
	for _, i := range []uint64{2, 0x100, 0xffff} {
		r.set(regQueueSelect, i)
		for _, reg := range []int{regQueueSize, regQueueVector, regQueueEnable, regNotifyOffset, regQueueDesc, regQueueAvail, regQueueUsed} {
			r.set(reg, 1)
			if got := r.get(reg); got != 0 {
				t.Errorf("register %d of queue %d is %#x", reg, i, got)
			}
		}
		if r.get(regQueueSelect) != i {
			t.Errorf("select %d reads %d", i, r.get(regQueueSelect))
		}
	}
	want("after writes to other queues", fresh)
}

// TestWidths checks that only accesses of the right width have an effect
// (§4.1.3.1).
func TestWidths(t *testing.T) {
	r := newRig(t, &echoDevice{queues: 1}, nil)
	r.negotiate(virtio.FeatureVersion1)
	before := r.f.Save()
	exact := map[uint64]int{}
	for reg, width := range widths {
		exact[uint64(reg)] = width
		if width == 8 {
			exact[uint64(reg)], exact[uint64(reg)+4] = 4, 4
		}
	}
	for offset := range uint64(memory.PageSize) {
		for _, width := range []int{1, 2, 4, 8} {
			if offset+uint64(width) > memory.PageSize {
				continue
			}
			half := exact[offset] == 4 || exact[offset+4] == 4
			if exact[offset] == width || width == 8 && half {
				continue
			}
			r.write(barBase+offset, width, 0xffff_ffff_ffff_ffff)
			if got := r.read(barBase+offset, width); got != 0 {
				t.Errorf("%d bytes at %d read %#x", width, offset, got)
			}
		}
	}
	if after := r.f.Save(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("state %+v, was %+v", after, before)
	}
	// The halves of an address, one after the other, and both at once.
	r.set(regQueueSelect, 0)
	r.write(barBase+regQueueDesc, 4, 0x2222_2000)
	r.write(barBase+regQueueDesc+4, 4, 0x1111)
	if got := r.get(regQueueDesc); got != 0x1111_2222_2000 {
		t.Errorf("address %#x", got)
	}
	r.set(regQueueDesc, 0x3333_4444_5000)
	if low, high := r.read(barBase+regQueueDesc, 4), r.read(barBase+regQueueDesc+4, 4); low != 0x4444_5000 || high != 0x3333 {
		t.Errorf("halves %#x and %#x", low, high)
	}
}

func TestDeviceConfig(t *testing.T) {
	d := &echoDevice{queues: 1, config: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}}
	r := newRig(t, d, nil)
	r.start(virtio.FeatureVersion1)
	for _, tt := range []struct {
		offset uint64
		width  int
		want   uint64
	}{{0, 1, 1}, {1, 4, 0x05040302}, {4, 8, 0x08070605}, {6, 4, 0x0807}, {memory.PageSize - 8, 8, 0}} {
		if got := r.read(barBase+devicePage+tt.offset, tt.width); got != tt.want {
			t.Errorf("%d bytes at %d: %#x, want %#x", tt.width, tt.offset, got, tt.want)
		}
	}
	r.write(barBase+devicePage+2, 2, 0xbbaa)
	if d.config != [8]byte{1, 2, 0xaa, 0xbb, 5, 6, 7, 8} {
		t.Errorf("configuration %x", d.config)
	}

	before := r.get(regGeneration)
	if again := r.get(regGeneration); again != before {
		t.Error("the generation changes by itself")
	}
	d.lastDriver.ConfigChanged()
	r.awaitMessage(0x40)
	if r.get(regGeneration) == before {
		t.Error("the generation does not change with the configuration")
	}
	if isr := r.read(barBase+isrPage, 4); isr&isrConfig == 0 {
		t.Errorf("ISR status %#x", isr)
	}
	// Before DRIVER_OK there is no interrupt, but the generation counts.
	r.set(regStatus, 0)
	before = r.get(regGeneration)
	d.lastDriver.ConfigChanged()
	if r.get(regGeneration) == before || r.read(barBase+isrPage, 1) != 0 {
		t.Error("a change before DRIVER_OK")
	}
}

// TestWindow reaches the BAR through configuration space.
func TestWindow(t *testing.T) {
	d := &echoDevice{queues: 1, config: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}}
	r := newRig(t, d, nil) // without memory decoding
	at := r.capability(pci.CapabilityVendor, capPCI)
	point := func(bar, offset, length uint64) {
		r.configWrite(at+4, 1, bar)
		r.configWrite(at+8, 4, offset)
		r.configWrite(at+12, 4, length)
	}
	const data = 16
	point(0, devicePage+4, 4)
	if got := r.configRead(at+data, 4); got != 0x08070605 {
		t.Errorf("read %#x", got)
	}
	point(0, devicePage+2, 2)
	r.configWrite(at+data, 4, 0xddccbbaa)
	if d.config != [8]byte{1, 2, 0xaa, 0xbb, 5, 6, 7, 8} {
		t.Errorf("configuration %x", d.config)
	}
	point(0, commonPage+regStatus, 1)
	r.configWrite(at+data, 1, statusAcknowledge)
	if got := r.configRead(at+data, 1); got != statusAcknowledge {
		t.Errorf("status %#x", got)
	}
	r.configWrite(at+data, 1, 0)

	// A window that points nowhere does nothing.
	reads, writes := d.configReads, d.configOut
	for _, w := range [][3]uint64{
		{0, devicePage, 0}, {0, devicePage, 3}, {0, devicePage, 8}, {0, devicePage, 0xffff_ffff}, {0, devicePage + 1, 2},
		{0, barSize, 4}, {0, 0xffff_fffc, 4}, {1, devicePage, 4}, {5, devicePage, 4}, {0xff, devicePage, 4},
	} {
		point(w[0], w[1], w[2])
		r.configWrite(at+data, 4, 0x12345678)
		if got := r.configRead(at+data, 4); got != 0x12345678 {
			t.Errorf("window %#x: %#x", w, got)
		}
	}
	// Nor does it act when only its own registers are accessed.
	point(0, devicePage, 4)
	r.configRead(at+8, 8)
	if d.configReads != reads || d.configOut != writes {
		t.Errorf("%d reads and %d writes by a window that points nowhere", d.configReads-reads, d.configOut-writes)
	}
}

func TestDoorbells(t *testing.T) {
	r := newRig(t, &echoDevice{queues: 3}, nil)
	want := func(when string, base uint64) {
		t.Helper()
		if base == 0 {
			if len(r.bells.at) != 0 {
				t.Errorf("%s: doorbells %v", when, r.bells.at)
			}
			return
		}
		for i := range r.f.queues {
			if at := r.bells.at[r.f.queues[i].EventFD()]; uint64(at) != base+notifyPage+4*uint64(i) {
				t.Errorf("%s: doorbell %d at %#x", when, i, at)
			}
		}
	}
	want("at the start", 0)
	r.decode(true)
	want("decoding", barBase)
	const other = barBase + 1<<20
	r.configWrite(0x10, 4, other)
	want("moved", other)
	r.configWrite(0x10, 4, 0xffff_ffff) // as for sizing: over the end of the address space's lower 4 GiB
	r.configWrite(0x10, 4, barBase)
	want("moved back", barBase)
	r.configWrite(0x10, 4, uint64(memory.ECAMStart)) // taken by another
	want("where it cannot be", 0)
	r.decode(false)
	want("not decoding", 0)
	r.configWrite(0x10, 4, barBase)
	r.start(virtio.FeatureVersion1)
	want("decoding again", barBase)
	if len(r.warnings) != 0 {
		t.Errorf("warning: %v", <-r.warnings)
	}
	// The BAR rings as well: for the hypervisor may have refused.
	r.echo(2, "through the BAR")
	for _, offset := range []uint64{1, 2, 3, 12, 16, 4000, memory.PageSize - 8} {
		r.write(barBase+notifyPage+offset, 8, math.MaxUint64)
	}
	if got := r.read(barBase+notifyPage, 8); got != 0 {
		t.Errorf("a doorbell reads %#x", got)
	}
	r.echo(0, "still there")
}

func TestDoorbellsRefused(t *testing.T) {
	r := newRig(t, &echoDevice{queues: 3}, nil)
	r.bells.deny = true
	r.start(virtio.FeatureVersion1)
	r.echo(1, "without a doorbell")
	r.decode(false)
	if r.bells.log != 3 {
		t.Errorf("%d calls: what was not assigned was removed", r.bells.log)
	}
	if len(r.warnings) != 1 {
		t.Errorf("%d warnings, want one", len(r.warnings))
	}
	r.bells.deny = false
	r.decode(true)
	if len(r.bells.at) != 3 {
		t.Errorf("%d doorbells when the hypervisor has some again", len(r.bells.at))
	}
	r.f.noteBell(errors.New("another"))
	if len(r.warnings) != 1 {
		t.Error("warned again")
	}
}
