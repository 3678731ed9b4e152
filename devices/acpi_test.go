package devices

import (
	"testing"
	"time"
)

// testPM makes a power management block with a clock that the test turns.
func testPM() (p *PM, sci *wire, r *requests, now *time.Duration) {
	sci, r, now = &wire{}, &requests{}, new(time.Duration)
	p = NewPM(PMConfig{SCI: sci, Power: r.power(), Clock: func() time.Duration { return *now }})
	return p, sci, r, now
}

func TestPMTimer(t *testing.T) {
	tests := []struct {
		after time.Duration
		want  uint32
	}{
		{0, 0},
		{time.Second, pmTimerHz},
		{time.Second / 2, pmTimerHz / 2},
		{time.Hour, uint32(pmTimerHz * 3600 % (1 << 32))},
		{1200 * time.Second, uint32(pmTimerHz * 1200 % (1 << 32))},
		{-time.Second, 0}, // a clock that is not as monotonic as it should be
		{1<<63 - 1, 0x5ad2df60},
	}
	for _, test := range tests {
		p, _, _, now := testPM()
		*now = test.after
		if got := in32(p, pmTimer); got != test.want {
			t.Errorf("after %v: %#x, want %#x", test.after, got, test.want)
		}
	}
	p, _, _, now := testPM()
	*now = time.Second
	out32(p, pmTimer, 0)
	if got := in32(p, pmTimer); got != pmTimerHz {
		t.Errorf("a write changed the timer to %d", got)
	}
	if NewPM(PMConfig{SCI: &wire{}}).Save().Timer > pmTimerHz {
		t.Error("the default clock does not start at 0")
	}
}

func TestPowerButton(t *testing.T) {
	p, sci, _, _ := testPM()
	p.PressPowerButton()
	if sci.high() {
		t.Fatal("interrupt for an event that is not enabled")
	}
	out8(p, pm1Enable+1, pm1PowerButton>>8)
	if !sci.high() || in8(p, pm1Status+1) != 1 {
		t.Fatal("the button pressed before is not seen when it is enabled")
	}
	out8(p, pm1Status, 0xff) // the other byte
	out8(p, pm1Status+1, 0)
	if !sci.high() {
		t.Error("cleared by writing zeros")
	}
	out8(p, pm1Status+1, 1)
	if sci.high() || in8(p, pm1Status+1) != 0 {
		t.Error("not cleared by writing one")
	}
	out32(p, pm1Status, 0xffff_ffff)
	if got := in32(p, pm1Status); got != pm1Enables<<16 {
		t.Errorf("status and enable read %#x, want %#x", got, uint32(pm1Enables)<<16)
	}
}

func TestGPE(t *testing.T) {
	p, sci, _, _ := testPM()
	for _, n := range []int{-1, 16} {
		if p.RaiseGPE(n) == nil {
			t.Errorf("event %d exists", n)
		}
	}
	out32(p, gpe0, 0x0200<<16)
	for n, want := range map[int]bool{8: false, 9: true} {
		p, sci, _, _ := testPM()
		out32(p, gpe0, 0x0200<<16)
		if err := p.RaiseGPE(n); err != nil || sci.high() != want {
			t.Errorf("event %d: error %v, interrupt %v, want %v", n, err, sci.high(), want)
		}
	}
	if err := p.RaiseGPE(9); err != nil {
		t.Fatal(err)
	}
	out8(p, gpeStatus+1, 2)
	if sci.high() || in32(p, gpe0) != 0x0200<<16 {
		t.Error("event not cleared")
	}
}

func TestSleepControl(t *testing.T) {
	const on, off = pmSleepEnable | SleepTypeOff<<pmSleepShift, SleepTypeOff << pmSleepShift
	tests := []struct {
		name  string
		write func(p *PM)
		off   int
	}{
		{"ACPICA, type first", func(p *PM) {
			p.Write(pm1Control, []byte{off & 0xff, off >> 8})
			p.Write(pm1Control, []byte{on & 0xff, on >> 8})
		}, 1},
		{"byte", func(p *PM) { out8(p, pm1Control+1, on>>8) }, 1},
		{"type only", func(p *PM) { out8(p, pm1Control+1, off>>8) }, 0},
		{"another state", func(p *PM) { out8(p, pm1Control+1, (pmSleepEnable|1<<pmSleepShift)>>8) }, 0},
		{"low byte", func(p *PM) { out8(p, pm1Control, on>>8) }, 0},
		{"dword from the register before", func(p *PM) { p.Write(pm1Control-2, []byte{0, 0, 0, on >> 8}) }, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, _, r, _ := testPM()
			test.write(p)
			if r.off != test.off {
				t.Errorf("switched off %d times, want %d", r.off, test.off)
			}
			if c := in8(p, pm1Control); c&pmSCIEnabled == 0 {
				t.Errorf("control %#x says that ACPI is off", c)
			}
			if c := in8(p, pm1Control+1); c&(pmSleepEnable>>8) != 0 {
				t.Errorf("SLP_EN reads as set: %#x", c)
			}
		})
	}
}

func TestPMState(t *testing.T) {
	p, _, _, now := testPM()
	*now = 10 * time.Second
	p.PressPowerButton()
	out8(p, pm1Enable+1, pm1PowerButton>>8)
	other, sci, _, later := testPM()
	*later = time.Hour
	roundTrip(t, p.Save, other)
	if !sci.high() {
		t.Error("the interrupt is lost")
	}
	*later += time.Second
	if got := in32(other, pmTimer); got != 11*pmTimerHz {
		t.Errorf("the timer goes on at %d, want %d", got, 11*pmTimerHz)
	}
	for _, s := range []PMState{{Version: 7}, {Version: 1, Status: 1}, {Version: 1, Enable: 2}, {Version: 1, Control: pmSleepEnable}} {
		if other.Restore(s) == nil {
			t.Errorf("restored %+v", s)
		}
	}
}

func TestPMAllocatesNothing(t *testing.T) {
	p := NewPM(PMConfig{SCI: &wire{}})
	data := make([]byte, 4)
	noAllocs(t, "an access", func() {
		p.Read(pmTimer, data)
		p.Write(pm1Status, data)
	})
}

func FuzzPM(f *testing.F) {
	f.Add([]byte{1, pm1Control + 1, 0x34, 0, 4, pmTimer, 0, 0, 7, gpe0, 0xff, 1})
	f.Fuzz(func(t *testing.T, program []byte) {
		p, sci, _, _ := testPM()
		p.PressPowerButton()
		play(p, PMPorts, program)
		if want := p.status&p.enable != 0; sci.high() != want {
			t.Errorf("interrupt %v, want %v", sci.high(), want)
		}
		other, _, _, _ := testPM()
		roundTrip(t, p.Save, other)
	})
}
