package machine

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/memory"
)

// Where the entropy device is: it is the first on the bus.
const (
	rngSlot     = 1
	rngCommon   = uint64(memory.PCIWindowStart)
	rngDoorbell = rngCommon + 0x3000
	rngMSIX     = rngCommon + 0x4000
	rngVector   = 0x61 // of the queue
	// driverMemory is away from what micro-guests use.
	driverMemory = 16 << 20
)

// access does what an instruction of the guest would that leaves it.
func access(m *Machine, addr uint64, width int, x uint64) {
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], x)
	m.mmio.Write(addr, p[:width])
}

// setUpRNG does what a driver of the entropy device does, and returns its queue
// with n requests of 64 bytes in it, of which the device does not know yet.
func setUpRNG(t *testing.T, m *Machine, n int) *virtiotest.Queue {
	t.Helper()
	config := uint64(memory.ECAMStart) + rngSlot<<15
	common := func(reg uint64, width int, x uint64) { access(m, rngCommon+reg, width, x) }
	mem := virtiotest.Wrap(t, m.mem, driverMemory)
	q := virtiotest.NewQueue(t, mem, 8)
	for range n {
		q.Publish(q.Chain(virtiotest.Buffer{GPA: mem.Alloc(64, 64), Len: 64, Write: true}))
	}

	access(m, config+4, 2, 6) // memory decoding, bus master
	access(m, rngMSIX+16, 8, 0xfee00000)
	access(m, rngMSIX+24, 8, rngVector)
	access(m, config+0x40+2, 2, 1<<15) // MSI-X, the first capability
	common(20, 1, 3)                   // status: driver
	common(8, 4, 1)
	common(12, 4, 1) // VERSION_1
	common(20, 1, 3|8)
	common(24, 2, uint64(q.Size))
	common(32, 8, uint64(q.Desc))
	common(40, 8, uint64(q.Avail))
	common(48, 8, uint64(q.Used))
	common(26, 2, 1)
	common(28, 2, 1)
	return q
}

// driverOK makes the device start.
func driverOK(m *Machine) { access(m, rngCommon+20, 1, 15) }

// awaitUsed waits until the device has answered n requests.
func awaitUsed(t *testing.T, q *virtiotest.Queue, n uint16) {
	t.Helper()
	for end := time.Now().Add(virtiotest.Patience); q.UsedIndex() != n; {
		if time.Now().After(end) {
			t.Fatalf("%d requests answered, want %d", q.UsedIndex(), n)
		}
	}
}

func TestVirtioInterrupt(t *testing.T) {
	m := idleMachine(t)
	q := setUpRNG(t, m, 3)
	if requested(t, m, rngVector) {
		t.Fatal("an interrupt before the device was started")
	}
	driverOK(m)
	await(t, m, rngVector)
	awaitUsed(t, q, 3)
	if p, _ := m.mem.View(driverMemory, 4096); bytes.Count(p, []byte{0}) == len(p) {
		t.Error("no random bytes")
	}
}

// TestVirtioDoorbell has a guest ring the doorbell all the time, which KVM takes.
func TestVirtioDoorbell(t *testing.T) {
	sys := openKVM(t)
	var trace bytes.Buffer
	m, err := New(sys, Config{
		CPUs: 1, Memory: 32 << 20, ExitTrace: &trace,
		Kernel: program(t)(micro.MMIOLoop(micro.Write, rngDoorbell, micro.Word, 1<<40, micro.PowerOff())),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	q := setUpRNG(t, m, 0)
	driverOK(m)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := m.Run(ctx)
		ended <- err
	}()
	for n := range uint16(20) {
		q.Publish(q.Chain(virtiotest.Buffer{GPA: driverMemory + 1<<20, Len: 64, Write: true}))
		awaitUsed(t, q, n+1)
		q.Take()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if lines := strings.Count(trace.String(), "mmio"); lines > 0 {
		t.Errorf("%d exits for doorbells:\n%.1000s", lines, trace.String())
	}
}

func TestVirtioPause(t *testing.T) {
	m := idleMachine(t)
	q := setUpRNG(t, m, 2)
	m.Pause()
	driverOK(m)
	access(m, rngDoorbell, 2, 0)
	if q.UsedIndex() != 0 {
		t.Error("a paused device answers")
	}
	m.Resume()
	awaitUsed(t, q, 2)
	m.Pause()
	m.Resume()
}

// TestVirtioClose closes machines whose device is at work.
func TestVirtioClose(t *testing.T) {
	sys := openKVM(t)
	kernel := program(t)(micro.Spin())
	for range 10 {
		m, err := New(sys, Config{CPUs: 1, Memory: 32 << 20, Kernel: kernel})
		if err != nil {
			t.Fatal(err)
		}
		q := setUpRNG(t, m, 8)
		driverOK(m)
		q.Kick = func() { access(m, rngDoorbell, 2, 0) }
		q.Kick()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if err := m.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
	}
}

func TestNoRNG(t *testing.T) {
	vendor := func(c Config) uint32 {
		c.CPUs, c.Memory, c.Kernel = 1, 32<<20, program(t)(micro.Spin())
		m, err := New(openKVM(t), c)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		var id [4]byte
		m.mmio.Read(uint64(memory.ECAMStart)+rngSlot<<15, id[:])
		return binary.LittleEndian.Uint32(id[:])
	}
	if id := vendor(Config{}); id != 0x1044_1af4 {
		t.Errorf("slot %d has %#x, want an entropy device", rngSlot, id)
	}
	if id := vendor(Config{NoRNG: true}); id != 0xffff_ffff {
		t.Errorf("slot %d has %#x, want nothing", rngSlot, id)
	}
}

// TestDoorbellErrors: KVM says what is wrong, and what works can be undone.
func TestDoorbellErrors(t *testing.T) {
	m := idleMachine(t)
	v, err := m.router.newVectors(1) // for an eventfd
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	const at = memory.GPA(rngDoorbell)
	d, err := newDoorbells(m.vm)
	if err != nil {
		t.Fatal(err)
	}
	fd := v.all[0].fd
	if err := d.Remove(fd, at); err == nil {
		t.Error("a doorbell that is not there was removed")
	}
	for range 2 {
		if err := d.Assign(fd, at); err != nil {
			t.Fatal(err)
		}
		if err := d.Remove(fd, at); err != nil {
			t.Fatal(err)
		}
	}
}
