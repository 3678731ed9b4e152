package devices

import (
	"errors"
	"reflect"
	"testing"
)

// lapics is the other side of an I/O APIC.
type lapics struct {
	sent   []MSI
	routes [IOAPICPins]MSI
	used   uint32
	sets   int // calls of SetRoutes
	fail   error
}

func (l *lapics) ioapic() *IOAPIC {
	return NewIOAPIC(IOAPICConfig{
		Send: func(m MSI) error { l.sent = append(l.sent, m); return l.fail },
		SetRoutes: func(r [IOAPICPins]MSI, used uint32) error {
			l.routes, l.used = r, used
			l.sets++
			return l.fail
		},
	})
}

// take returns what was sent since the last call.
func (l *lapics) take() []MSI {
	sent := l.sent
	l.sent = nil
	return sent
}

func program(a *IOAPIC, pin int, entry uint64) {
	out32(a, ioapicSelect, uint32(ioapicRedirection+2*pin+1))
	out32(a, ioapicWindow, uint32(entry>>32))
	out32(a, ioapicSelect, uint32(ioapicRedirection+2*pin))
	out32(a, ioapicWindow, uint32(entry))
}

func entryOf(a *IOAPIC, pin int) uint64 {
	out32(a, ioapicSelect, uint32(ioapicRedirection+2*pin))
	low := in32(a, ioapicWindow)
	out32(a, ioapicSelect, uint32(ioapicRedirection+2*pin+1))
	return uint64(in32(a, ioapicWindow))<<32 | uint64(low)
}

func TestIOAPICRegisters(t *testing.T) {
	a := new(lapics).ioapic()
	read := func(index uint32) uint32 {
		out32(a, ioapicSelect, index)
		return in32(a, ioapicWindow)
	}
	if v := read(ioapicVersion); v != 0x00170020 {
		t.Errorf("version %#x", v)
	}
	out32(a, ioapicSelect, ioapicID)
	out32(a, ioapicWindow, 0xffff_ffff)
	if v := read(ioapicID); v != 0x0f00_0000 || read(ioapicArbitration) != v {
		t.Errorf("ID %#x", v)
	}
	if e := entryOf(a, 5); e != rteMasked {
		t.Errorf("entry %#x out of reset", e)
	}
	program(a, 5, ^uint64(0))
	if e := entryOf(a, 5); e != rteWritable {
		t.Errorf("entry %#x with all ones written, want %#x", e, uint64(rteWritable))
	}
	for _, index := range []uint32{3, 0x0f, 0x40, 0xff} {
		if v := read(index); v != 0 {
			t.Errorf("register %#x reads %#x", index, v)
		}
		out32(a, ioapicWindow, 0xffff_ffff)
	}
	if v := in32(a, 0x04); v != 0 {
		t.Errorf("between the registers: %#x", v)
	}
}

func TestIOAPICMessages(t *testing.T) {
	tests := []struct {
		name  string
		entry uint64
		want  []MSI
	}{
		{"fixed physical", 0x31 | 3<<56, []MSI{{0xfee0_3000, 0x31}}},
		{"lowest priority, logical", 0x31 | deliverLowest | rteLogical | 0xff<<56, []MSI{{0xfeef_f004, 0x131}}},
		{"extended destination", 0x31 | 0x7f<<49 | 1<<56, []MSI{{0xfee0_1fe0, 0x31}}},
		{"level", 0x31 | rteLevel, []MSI{{0xfee0_0000, 0xc031}}},
		{"polarity is ignored", 0x31 | 1<<13, []MSI{{0xfee0_0000, 0x31}}},
		{"NMI", deliverNMI, []MSI{{0xfee0_0000, 0x400}}},
		{"level NMI goes as an edge", deliverNMI | rteLevel, []MSI{{0xfee0_0000, 0x400}}},
		{"masked", 0x31 | rteMasked, nil},
		{"masked level", 0x31 | rteMasked | rteLevel, nil},
		{"ExtINT", 0x31 | 7<<8, nil},
		{"SMI", 0x31 | 2<<8, nil},
		{"INIT", 0x31 | 5<<8, nil},
		{"low vector", 0x0f, nil},
		{"low vector level", 0x0f | rteLevel, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var l lapics
			a := l.ioapic()
			program(a, 4, test.entry)
			a.Pin(4).Set(true)
			a.Pin(4).Set(true)
			if got := l.take(); !reflect.DeepEqual(got, test.want) {
				t.Errorf("sent %#x, want %#x", got, test.want)
			}
		})
	}
}

func TestIOAPICEdge(t *testing.T) {
	var l lapics
	a := l.ioapic()
	pin := a.Pin(4)
	pin.Set(true) // while masked: lost
	program(a, 4, 0x31)
	if len(l.take()) != 0 {
		t.Error("an edge on a masked pin is delivered at unmasking")
	}
	for range 3 {
		pin.Set(false)
		pin.Set(true)
	}
	if n := len(l.take()); n != 3 {
		t.Errorf("%d interrupts for 3 edges", n)
	}
	a.EOI(0x31)
	if len(l.take()) != 0 || l.sets != 0 {
		t.Error("an edge triggered pin reacts to EOI or has a route")
	}
}

func TestIOAPICLevel(t *testing.T) {
	var l lapics
	a := l.ioapic()
	pin := a.Pin(9)
	expect := func(what string, n int) {
		t.Helper()
		if got := len(l.take()); got != n {
			t.Errorf("%s: %d interrupts, want %d", what, got, n)
		}
	}
	pin.Set(true)
	expect("masked", 0)
	program(a, 9, 0x41|rteLevel)
	expect("unmasked while asserted", 1)
	if entryOf(a, 9)&rteRemoteIRR == 0 {
		t.Error("no remote IRR")
	}
	pin.Set(false)
	pin.Set(true)
	expect("again before EOI", 0)
	a.EOI(0x42)
	expect("EOI of another vector", 0)
	a.EOI(0x41)
	expect("EOI while asserted", 1)
	pin.Set(false)
	a.EOI(0x41)
	expect("EOI after the line fell", 0)
	if entryOf(a, 9)&rteRemoteIRR != 0 {
		t.Error("remote IRR after EOI")
	}
	pin.Set(true)
	expect("asserted anew", 1)
	out32(a, ioapicEOI, 0x41)
	expect("EOI register", 1)
	program(a, 9, 0x41|rteMasked)
	program(a, 9, 0x41|rteLevel)
	expect("Linux's way around a stuck remote IRR", 1)
}

// TestIOAPICMigration masks a pin in its handler, as Linux does to move an
// interrupt: KVM must go on reporting the EOI of the old vector.
func TestIOAPICMigration(t *testing.T) {
	var l lapics
	a := l.ioapic()
	program(a, 9, 0x41|rteLevel)
	a.Pin(9).Set(true)
	program(a, 9, 0x41|rteLevel|rteMasked)
	if l.used != 1<<9 || l.routes[9].Data&0xff != 0x41 {
		t.Fatal("the route is gone before the EOI")
	}
	a.EOI(0x41)
	program(a, 9, 0x51|rteLevel|rteMasked|1<<56)
	if l.used != 0 {
		t.Error("an idle masked pin has a route")
	}
	l.take()
	program(a, 9, 0x51|rteLevel|1<<56)
	if got, want := l.take(), []MSI{{0xfee0_1000, 0xc051}}; !reflect.DeepEqual(got, want) {
		t.Errorf("after the move: sent %#x, want %#x", got, want)
	}
	if l.used != 1<<9 || l.routes[9] != (MSI{0xfee0_1000, 0xc051}) {
		t.Errorf("routes %#x %#x after the move", l.used, l.routes[9])
	}
}

func TestIOAPICRoutesOnlyOnChange(t *testing.T) {
	var l lapics
	a := l.ioapic()
	for pin := range IOAPICPins {
		program(a, pin, uint64(0x30+pin))           // edge
		program(a, pin, uint64(0x30+pin)|rteMasked) // masked
		program(a, pin, rteMasked|rteLevel)
	}
	if l.sets != 0 {
		t.Errorf("routes set %d times for entries that need none", l.sets)
	}
	program(a, 9, 0x41|rteLevel)
	program(a, 9, 0x41|rteLevel)
	a.Pin(9).Set(true)
	a.EOI(0x41)
	if l.sets != 1 {
		t.Errorf("routes set %d times, want 1", l.sets)
	}
	program(a, 9, 0x42|rteLevel)
	if l.sets != 2 || l.routes[9].Data&0xff != 0x42 {
		t.Errorf("routes set %d times after another vector, the last %#x", l.sets, l.routes[9])
	}
}

func TestIOAPICFailures(t *testing.T) {
	l := lapics{fail: errors.New("no")}
	a := l.ioapic()
	program(a, 9, 0x41|rteLevel)
	a.Pin(9).Set(true)
	if n, err := a.Failures(); n != 2 || !errors.Is(err, l.fail) {
		t.Errorf("%d failures, last %v", n, err)
	}
	if err := l.ioapic().Restore(a.Save()); !errors.Is(err, l.fail) {
		t.Errorf("restore with routes refused: %v", err)
	}
}

func TestIOAPICState(t *testing.T) {
	var l, l2 lapics
	a := l.ioapic()
	program(a, 4, 0x31)
	program(a, 9, 0x41|rteLevel)
	a.Pin(4).Set(true)
	a.Pin(9).Set(true)
	b := l2.ioapic()
	roundTrip(t, a.Save, b)
	if len(l2.take()) != 0 {
		t.Error("interrupts that were accepted before are sent again")
	}
	if l2.routes != l.routes || l2.used != l.used {
		t.Error("routes differ")
	}
	b.EOI(0x41)
	if len(l2.take()) != 1 {
		t.Error("the line that is still asserted does not interrupt after EOI")
	}
	for name, change := range map[string]func(*IOAPICState){
		"version":        func(s *IOAPICState) { s.Version++ },
		"ID":             func(s *IOAPICState) { s.ID = 1 },
		"pins":           func(s *IOAPICState) { s.Asserted = 1 << 24 },
		"bits":           func(s *IOAPICState) { s.Redirection[3] = 1 << 12 },
		"edge remoteIRR": func(s *IOAPICState) { s.Redirection[3] = rteRemoteIRR },
	} {
		s := a.Save()
		change(&s)
		if b.Restore(s) == nil {
			t.Errorf("%s: restored", name)
		}
	}
}

func TestIOAPICAllocatesNothing(t *testing.T) {
	a := NewIOAPIC(IOAPICConfig{
		Send:      func(MSI) error { return nil },
		SetRoutes: func([IOAPICPins]MSI, uint32) error { return nil },
	})
	program(a, 4, 0x31)
	program(a, 9, 0x41|rteLevel)
	data := []byte{0x31, 0, 0, 0}
	noAllocs(t, "an interrupt", func() {
		for _, pin := range []int{4, 9} {
			a.Pin(pin).Set(true)
			a.Pin(pin).Set(false)
		}
		a.EOI(0x41)
		a.Read(ioapicWindow, data)
		a.Write(ioapicSelect, data)
	})
}

func FuzzIOAPIC(f *testing.F) {
	f.Add([]byte{5, ioapicSelect, 0x10, 0, 5, ioapicWindow, 0x41, 0x80, 0xff, 0, 1, 0, 0xfe, 0, 0x41, 0})
	f.Fuzz(func(t *testing.T, text []byte) {
		var l lapics
		a := l.ioapic()
		for ; len(text) >= 4; text = text[4:] {
			switch text[0] {
			case 0xff:
				a.Pin(int(text[1]) % IOAPICPins).Set(text[2]&1 != 0)
			case 0xfe:
				a.EOI(text[2])
			default:
				play(a, 0x48, text[:4])
			}
			l.take()
			for n, e := range a.rte {
				due := a.asserted>>n&1 != 0 && isLevel(e) && deliverable(e) && e&rteMasked == 0
				if due && e&rteRemoteIRR == 0 {
					t.Fatalf("pin %d is asserted and unmasked, and was not sent: %#x", n, e)
				}
				if e&rteRemoteIRR != 0 && deliverable(e) && a.used>>n&1 == 0 {
					t.Fatalf("pin %d waits for an EOI that KVM will not report: %#x", n, e)
				}
			}
		}
		roundTrip(t, a.Save, new(lapics).ioapic())
	})
}
