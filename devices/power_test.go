package devices

import (
	"reflect"
	"testing"
)

// requests counts what a guest asks of the machine.
type requests struct {
	off, reset int
	panics     []PanicEvent
}

func (r *requests) power() Power {
	return Power{
		Off:   func() { r.off++ },
		Reset: func() { r.reset++ },
		Panic: func(e PanicEvent) { r.panics = append(r.panics, e) },
	}
}

func TestPVPanic(t *testing.T) {
	var r requests
	p := NewPVPanic(r.power())
	if got := in8(p, 0); got != 3 {
		t.Errorf("events offered: %#x, want 3", got)
	}
	for _, b := range []byte{0, 1, 2, 0xfc, 0xff} {
		out8(p, 0, b)
	}
	if want := []PanicEvent{PanicHalted, PanicCrashKernel, PanicHalted | PanicCrashKernel}; !reflect.DeepEqual(r.panics, want) {
		t.Errorf("events %v, want %v", r.panics, want)
	}
	out8(NewPVPanic(Power{}), 0, 1) // nobody cares
}

func TestResetRegister(t *testing.T) {
	tests := []struct {
		name   string
		writes []byte
		resets int
		reads  byte
	}{
		{"ACPI", []byte{ResetValue}, 1, 0x02},
		{"two steps", []byte{0x02, 0x06}, 1, 0x02},
		{"Linux cold", []byte{0x02, 0x0e}, 1, 0x0a},
		{"kind only", []byte{0x02, 0x0a}, 0, 0x0a},
		{"rest is not kept", []byte{0xf1}, 0, 0x00},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var r requests
			reg := NewResetRegister(r.power())
			for _, b := range test.writes {
				out8(reg, 0, b)
			}
			if r.reset != test.resets || in8(reg, 0) != test.reads {
				t.Errorf("%d resets and reads %#x, want %d and %#x", r.reset, in8(reg, 0), test.resets, test.reads)
			}
			roundTrip(t, reg.Save, NewResetRegister(Power{}))
		})
	}
	reg := NewResetRegister(Power{})
	for _, s := range []ResetRegisterState{{Version: 2}, {Version: 1, Kind: resetCPU}} {
		if reg.Restore(s) == nil {
			t.Errorf("restored %+v", s)
		}
	}
}

func TestI8042(t *testing.T) {
	var r requests
	d := NewI8042(r.power())
	status := in8(d, i8042Status)
	if status&i8042InputFull != 0 {
		t.Error("a reset by the keyboard controller waits for the input buffer, in vain")
	}
	if status&1 == 0 || in8(d, i8042Data) != 0xff {
		t.Error("a probe does not see at once that there is no controller")
	}
	for _, b := range []byte{0xd1, 0xff, 0xf1, 0xaa, 0x00} {
		out8(d, i8042Status, b)
		out8(d, i8042Data, 0xfe)
	}
	if r.reset != 0 {
		t.Error("reset by something else than the reset command")
	}
	out8(d, i8042Status, 0xfe)
	if r.reset != 1 {
		t.Errorf("%d resets after the reset command", r.reset)
	}
}

func TestPortB(t *testing.T) {
	d := NewI8042(Power{})
	a, b := in8(d, i8042PortB), in8(d, i8042PortB)
	if (a^b)&portBRefresh == 0 {
		t.Error("the refresh bit stands still")
	}
	out8(d, i8042PortB, 0xff)
	for range 2 {
		got := in8(d, i8042PortB)
		if got&0xc0 != 0 {
			t.Errorf("port B %#x reports an NMI source", got)
		}
		if got&portBTimer2 == 0 || got&portBKept != portBKept {
			t.Errorf("port B %#x: timer 2 not done, or bits not kept", got)
		}
	}
	roundTrip(t, d.Save, NewI8042(Power{}))
	for _, s := range []I8042State{{Version: 0}, {Version: 1, PortB: 0x10}} {
		if d.Restore(s) == nil {
			t.Errorf("restored %+v", s)
		}
	}
}

func TestSmallDevicesAllocateNothing(t *testing.T) {
	data := make([]byte, 1)
	for _, h := range []Handler{NewPVPanic(Power{}), NewResetRegister(Power{}), NewI8042(Power{})} {
		noAllocs(t, "an access", func() {
			h.Read(0, data)
			h.Write(0, data)
		})
	}
}

func FuzzI8042(f *testing.F) {
	f.Add([]byte{1, i8042Status, 0xfe, 0, 0, i8042PortB, 0, 0, 7, 0, 1, 2})
	f.Fuzz(func(t *testing.T, program []byte) {
		var r requests
		d := NewI8042(r.power())
		play(d, I8042Ports, program)
		roundTrip(t, d.Save, NewI8042(Power{}))
	})
}
