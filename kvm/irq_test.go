package kvm

import (
	"encoding/binary"
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lapicMSIAddr is the MSI address of APIC ID 0, physical destination
// (SDM Vol. 3 §11.11.1).
const lapicMSIAddr = 0xfee00000

// Registers of the local APIC (SDM Vol. 3 §11.4.1).
const (
	lapicSVR = 0xf0
	lapicISR = 0x100
	lapicTMR = 0x180
	lapicIRR = 0x200
)

// level is the trigger mode bit of MSI data.
const msiLevel = 1 << 15

func splitIRQChip(m *VM) {
	if err := m.EnableSplitIRQChip(KVM_IOAPIC_NUM_PINS); err != nil {
		panic(err)
	}
}

// enableLAPIC sets the software enable bit, without which a local APIC takes
// no interrupt.
func (g *guest) enableLAPIC() {
	g.t.Helper()
	g.setLAPIC(func(l *LAPICState) { binary.LittleEndian.PutUint32(l.Regs[lapicSVR:], 0x1ff) })
}

func (g *guest) setLAPIC(change func(*LAPICState)) {
	g.t.Helper()
	l, err := g.cpu.GetLAPIC()
	ok(g.t, err)
	change(&l)
	ok(g.t, g.cpu.SetLAPIC(l))
}

// bit tells about a vector's bit in one of the 256-bit registers.
func (g *guest) bit(reg int, vector uint8) bool {
	g.t.Helper()
	l, err := g.cpu.GetLAPIC()
	ok(g.t, err)
	return l.Regs[reg+int(vector)/32*16+int(vector)%32/8]>>(vector%8)&1 == 1
}

// setBit sets a vector's bit in one of the 256-bit registers.
func setBit(l *LAPICState, reg int, vector uint8) {
	l.Regs[reg+int(vector)/32*16+int(vector)%32/8] |= 1 << (vector % 8)
}

// await polls for something that another thread of the kernel does.
func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("no %s", what)
		}
	}
}

func eventfd(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	ok(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func signal(t testing.TB, fd int) {
	t.Helper()
	_, err := unix.Write(fd, binary.LittleEndian.AppendUint64(nil, 1))
	ok(t, err)
}

// count reads and resets an eventfd.
func count(t testing.TB, fd int) uint64 {
	t.Helper()
	var b [8]byte
	_, err := unix.Read(fd, b[:])
	if err == unix.EAGAIN {
		return 0
	}
	ok(t, err)
	return binary.LittleEndian.Uint64(b[:])
}

func TestSignalMSI(t *testing.T) {
	g := newGuest(t, nil, splitIRQChip)
	if delivered, err := g.vm.SignalMSI(lapicMSIAddr, 0x51); err != nil || delivered {
		t.Errorf("with the local APIC off: delivered %v, %v", delivered, err)
	}
	g.enableLAPIC()
	delivered, err := g.vm.SignalMSI(lapicMSIAddr, 0x51)
	ok(t, err)
	if !delivered || !g.bit(lapicIRR, 0x51) {
		t.Errorf("delivered %v, requested %v", delivered, g.bit(lapicIRR, 0x51))
	}
	if _, full := newTestVM(t); !errors.Is(second(full.SignalMSI(lapicMSIAddr, 0x51)), unix.EINVAL) {
		t.Error("an MSI without local APICs should fail with EINVAL")
	}
}

func second[T any](_ T, err error) error { return err }

func TestIRQFD(t *testing.T) {
	g := newGuest(t, nil, splitIRQChip)
	g.enableLAPIC()
	const gsi = 30
	ok(t, g.vm.SetGSIRouting([]IRQRoutingEntry{
		RouteMSI(gsi, lapicMSIAddr, 0x62),
		RouteMSI(gsi+1, lapicMSIAddr, 0x63),
	}))
	fd := eventfd(t)
	ok(t, g.vm.AssignIRQFD(fd, gsi))
	signal(t, fd)
	await(t, "interrupt", func() bool { return g.bit(lapicIRR, 0x62) })

	// A new route takes effect on an irqfd that is assigned.
	ok(t, g.vm.SetGSIRouting([]IRQRoutingEntry{RouteMSI(gsi, lapicMSIAddr, 0x64)}))
	signal(t, fd)
	await(t, "interrupt by the new route", func() bool { return g.bit(lapicIRR, 0x64) })
	if g.bit(lapicIRR, 0x63) {
		t.Error("the other GSI fired")
	}

	ok(t, g.vm.SetGSIRouting([]IRQRoutingEntry{RouteMSI(gsi, lapicMSIAddr, 0x65)}))
	ok(t, g.vm.DeassignIRQFD(fd, gsi))
	signal(t, fd)
	if n := count(t, fd); n == 0 {
		t.Error("the deassigned irqfd took the event")
	}
	if g.bit(lapicIRR, 0x65) {
		t.Error("the deassigned irqfd fired")
	}

	if err := g.vm.AssignIRQFD(-1, gsi); !errors.Is(err, unix.EBADF) {
		t.Errorf("a bad eventfd gave %v", err)
	}
	ok(t, g.vm.SetGSIRouting(nil))
}

// eoi is guest code that ends the interrupt in service, through a mapping of
// the local APIC's page at 3 GiB upwards that newEOIGuest makes.
var eoi = []byte{
	0xbb, 0xb0, 0x00, 0xe0, 0xfe, // mov ebx, 0xfee000b0
	0x31, 0xc0, // xor eax, eax
	0x89, 0x03, // mov [rbx], eax
	0xe6, 0x10, // out 0x10, al
	0xeb, 0xf8, // jmp to the mov
}

func newEOIGuest(t *testing.T, setup func(*VM)) *guest {
	g := newGuest(t, eoi, setup)
	const pd3Addr = 0x4000
	binary.LittleEndian.PutUint64(g.mem[pdptAddr+3*8:], pd3Addr|0b111)
	for i := range uint64(512) {
		binary.LittleEndian.PutUint64(g.mem[pd3Addr+8*i:], 3<<30|i<<21|1<<7|0b111)
	}
	g.enableLAPIC()
	return g
}

// TestIOAPICEOI: with the split controller, the end of an interrupt that a
// level-triggered route names leaves KVM_RUN.
func TestIOAPICEOI(t *testing.T) {
	g := newEOIGuest(t, splitIRQChip)
	const gsi, vector, edge = 9, 0x71, 0x72
	ok(t, g.vm.SetGSIRouting([]IRQRoutingEntry{RouteMSI(gsi, lapicMSIAddr, msiLevel|vector)}))
	g.setLAPIC(func(l *LAPICState) {
		setBit(l, lapicISR, vector)
		setBit(l, lapicTMR, vector)
	})
	g.run(KVM_EXIT_IOAPIC_EOI)
	if got := g.cpu.IOAPICEOI(); got != vector {
		t.Errorf("end of vector %#x, want %#x", got, vector)
	}
	g.runTo(0x10)
	// Another vector ends without an exit.
	g.setLAPIC(func(l *LAPICState) { setBit(l, lapicISR, edge) })
	g.runTo(0x10)
	if g.bit(lapicISR, vector) || g.bit(lapicISR, edge) {
		t.Error("an interrupt is still in service")
	}
}

// TestResampleIRQFD: a level-triggered interrupt of the in-kernel I/O APIC
// tells its device when the guest has served it.
func TestResampleIRQFD(t *testing.T) {
	g := newEOIGuest(t, func(m *VM) { ok(t, m.CreateIRQChip()) })
	const gsi, vector = 10, 0x73
	chip, err := g.vm.GetIRQChip(KVM_IRQCHIP_IOAPIC)
	ok(t, err)
	// struct kvm_ioapic_state: 24 bytes, then the redirection table.
	binary.LittleEndian.PutUint64(chip.Chip[24+8*gsi:], msiLevel|vector)
	ok(t, g.vm.SetIRQChip(chip))

	fd, resample := eventfd(t), eventfd(t)
	ok(t, g.vm.AssignResampleIRQFD(fd, resample, gsi))
	signal(t, fd)
	await(t, "interrupt", func() bool { return g.bit(lapicIRR, vector) })
	g.setLAPIC(func(l *LAPICState) { // the guest takes it
		clear(l.Regs[lapicIRR:][:0x80])
		setBit(l, lapicISR, vector)
		setBit(l, lapicTMR, vector)
	})
	if n := count(t, resample); n != 0 {
		t.Fatalf("resampled %d times before the end of the interrupt", n)
	}
	g.runTo(0x10)
	if n := count(t, resample); n != 1 {
		t.Errorf("resampled %d times, want once", n)
	}
	ok(t, g.vm.DeassignIRQFD(fd, gsi))
}

// TestResampleNeedsFullIRQChip pins a limit that a user-space I/O APIC must
// work around.
func TestResampleNeedsFullIRQChip(t *testing.T) {
	_, vm := newTestVM(t)
	splitIRQChip(vm)
	if err := vm.AssignResampleIRQFD(eventfd(t), eventfd(t), 9); !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v, want %v", err, unix.EINVAL)
	}
}

func TestIRQChipState(t *testing.T) {
	_, vm := newTestVM(t)
	ok(t, vm.CreateIRQChip())
	ok(t, vm.CreatePIT2())

	for _, c := range []uint32{KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE} {
		s, err := vm.GetIRQChip(c)
		ok(t, err)
		s.Chip[2] = 0xa0 | byte(c) // imr
		ok(t, vm.SetIRQChip(s))
		got, err := vm.GetIRQChip(c)
		ok(t, err)
		if got != s {
			t.Errorf("PIC %d: got %+v, set %+v", c, got, s)
		}
	}
	if _, err := vm.GetIRQChip(7); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an interrupt controller that is not there gave %v", err)
	}

	pit, err := vm.GetPIT2()
	ok(t, err)
	pit.Channels[2].Count = 0x1234
	pit.Channels[2].Mode = 3
	ok(t, vm.SetPIT2(pit))
	got, err := vm.GetPIT2()
	ok(t, err)
	if c := got.Channels[2]; c.Count != 0x1234 || c.Mode != 3 {
		t.Errorf("PIT channel 2: %+v", c)
	}

	// A pin of the I/O APIC shows in its request register.
	ok(t, vm.IRQLine(11, true))
	s, err := vm.GetIRQChip(KVM_IRQCHIP_IOAPIC)
	ok(t, err)
	if irr := binary.LittleEndian.Uint32(s.Chip[16:]); irr>>11&1 == 0 {
		t.Errorf("request register %#x without line 11", irr)
	}
	ok(t, vm.IRQLine(11, false))
	ok(t, vm.SetGSIRouting([]IRQRoutingEntry{RouteIRQChip(5, KVM_IRQCHIP_IOAPIC, 12), RouteIRQChip(5, KVM_IRQCHIP_PIC_SLAVE, 4)}))
	ok(t, vm.IRQLine(5, true))
	s, err = vm.GetIRQChip(KVM_IRQCHIP_IOAPIC)
	ok(t, err)
	if irr := binary.LittleEndian.Uint32(s.Chip[16:]); irr>>12&1 == 0 {
		t.Errorf("request register %#x without line 12, where GSI 5 goes", irr)
	}
}

func TestIOEvent(t *testing.T) {
	g := newGuest(t, []byte{
		0xb0, 0x07, // mov al, 7
		0xe6, 0x40, // out 0x40, al: matches
		0xb0, 0x08, // mov al, 8
		0xe6, 0x40, // out 0x40, al: does not match
		0xbb, 0x00, 0x00, 0x00, 0x10, // mov ebx, mmioAddr
		0x88, 0x03, // mov [rbx], al: any length
		0x89, 0x03, // mov [rbx], eax
		0x89, 0x43, 0x10, // mov [rbx+16], eax: 4 bytes
		0x88, 0x43, 0x10, // mov [rbx+16], al: not 4 bytes
		0xe6, 0x10, // out 0x10, al
		0x89, 0x03, // mov [rbx], eax: deassigned by now
	})
	port, anyLen, dword := eventfd(t), eventfd(t), eventfd(t)
	ok(t, g.vm.AssignIOEvent(IOEvent{FD: port, Addr: 0x40, PIO: true, Len: 1, Match: true, Data: 7}))
	doorbell := IOEvent{FD: anyLen, Addr: mmioAddr}
	ok(t, g.vm.AssignIOEvent(doorbell))
	ok(t, g.vm.AssignIOEvent(IOEvent{FD: dword, Addr: mmioAddr + 16, Len: 4}))
	if err := g.vm.AssignIOEvent(doorbell); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a second eventfd for the same writes gave %v", err)
	}

	if io := g.runTo(0x40); io.Data[0] != 8 {
		t.Errorf("exit for the write of %d", io.Data[0])
	}
	g.run(KVM_EXIT_MMIO)
	if m := g.cpu.MMIO(); m.Addr != mmioAddr+16 || len(m.Data) != 1 {
		t.Errorf("exit for %+v", m)
	}
	g.runTo(0x10)
	for name, c := range map[string]struct {
		fd   int
		want uint64
	}{"port": {port, 1}, "any length": {anyLen, 2}, "4 bytes": {dword, 1}} {
		if n := count(t, c.fd); n != c.want {
			t.Errorf("%s: %d events, want %d", name, n, c.want)
		}
	}

	ok(t, g.vm.DeassignIOEvent(doorbell))
	g.run(KVM_EXIT_MMIO)
	if n := count(t, anyLen); n != 0 {
		t.Errorf("%d events after deassignment", n)
	}
	if err := g.vm.DeassignIOEvent(doorbell); !errors.Is(err, unix.ENOENT) {
		t.Errorf("deassigning twice gave %v", err)
	}
}

func TestCoalesced(t *testing.T) {
	g := newGuest(t, []byte{
		0xbb, 0x00, 0x00, 0x00, 0x10, // mov ebx, mmioAddr
		0xb8, 0x01, 0x02, 0x03, 0x04, // mov eax, 0x04030201
		0x89, 0x03, // mov [rbx], eax
		0x66, 0x89, 0x43, 0x04, // mov [rbx+4], ax
		0xe6, 0x50, // out 0x50, al
		0xe6, 0x10, // out 0x10, al
		0x89, 0x03, // mov [rbx], eax
	})
	mmio, pio := CoalescedZone{Addr: mmioAddr, Size: 16}, CoalescedZone{Addr: 0x50, Size: 1, PIO: true}
	ok(t, g.vm.RegisterCoalesced(mmio))
	ok(t, g.vm.RegisterCoalesced(pio))
	if w, found := g.cpu.NextCoalesced(); found {
		t.Fatalf("queued before the guest ran: %+v", w)
	}
	g.runTo(0x10)
	for _, want := range []CoalescedWrite{
		{Addr: mmioAddr, Len: 4, Data: [8]byte{1, 2, 3, 4}},
		{Addr: mmioAddr + 4, Len: 2, Data: [8]byte{1, 2}},
		{Addr: 0x50, PIO: true, Len: 1, Data: [8]byte{1}},
	} {
		w, found := g.cpu.NextCoalesced()
		clear(w.Data[w.Len:]) // what an earlier write left in the slot
		if !found || w != want {
			t.Errorf("queued %+v (%v), want %+v", w, found, want)
		}
	}
	if w, found := g.cpu.NextCoalesced(); found {
		t.Errorf("one write too many: %+v", w)
	}
	ok(t, g.vm.UnregisterCoalesced(mmio))
	g.run(KVM_EXIT_MMIO)
}

func BenchmarkSignalMSI(b *testing.B) {
	g := newGuest(b, nil, splitIRQChip)
	g.enableLAPIC()
	b.ReportAllocs()
	for b.Loop() {
		_, err := g.vm.SignalMSI(lapicMSIAddr, 0x51)
		ok(b, err)
	}
}
