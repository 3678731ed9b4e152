package devices

import (
	"testing"
	"testing/synctest"
	"time"
)

// clock reads the RTC the way Linux does, in whatever format it is set to, and
// without its waiting.
func clock(r *RTC) time.Time {
	reg := func(n byte) byte { return cmosRead(r, n) }
	decode := func(b byte) int {
		if reg(rtcB)&rtcBBinary != 0 {
			return int(b)
		}
		return int(b>>4)*10 + int(b&15)
	}
	hour := decode(reg(rtcHours))
	if reg(rtcB)&rtcB24Hours == 0 {
		h := reg(rtcHours)
		hour = decode(h&0x7f) % 12
		if h&0x80 != 0 {
			hour += 12
		}
	}
	return time.Date(decode(reg(RTCCentury))*100+decode(reg(rtcYear)), time.Month(decode(reg(rtcMonth))),
		decode(reg(rtcDay)), hour, decode(reg(rtcMinutes)), decode(reg(rtcSeconds)), 0, time.UTC)
}

func cmosRead(r *RTC, reg byte) byte {
	out8(r, 0, reg)
	return in8(r, 1)
}

func cmosWrite(r *RTC, reg, b byte) { r.Write(0, []byte{reg, b}) }

// setClock does what Linux does to set the time.
func setClock(r *RTC, regs [7]byte) {
	b, a := cmosRead(r, rtcB), cmosRead(r, rtcA)
	cmosWrite(r, rtcB, b|rtcBSet)
	cmosWrite(r, rtcA, a|0x70)
	for i, reg := range []byte{rtcYear, rtcMonth, rtcDay, rtcHours, rtcMinutes, rtcSeconds, RTCCentury} {
		cmosWrite(r, reg, regs[i])
	}
	cmosWrite(r, rtcB, b)
	cmosWrite(r, rtcA, a)
}

// testRTC makes a clock whose host's clock the test turns.
func testRTC(start time.Time) (r *RTC, irq *wire, now *time.Time) {
	irq, now = &wire{}, &start
	return NewRTC(RTCConfig{IRQ: irq, Now: func() time.Time { return *now }}), irq, now
}

var someTime = time.Date(2024, time.February, 29, 23, 59, 58, 500_000_000, time.UTC)

func TestRTCFormats(t *testing.T) {
	tests := []struct {
		name string
		b    byte
		hour int
		want byte // hour register
	}{
		{"BCD", rtcB24Hours, 23, 0x23},
		{"binary", rtcB24Hours | rtcBBinary, 23, 23},
		{"BCD midnight", 0, 0, 0x12},
		{"BCD one", 0, 1, 0x01},
		{"BCD noon", 0, 12, 0x92},
		{"BCD evening", 0, 23, 0x91},
		{"binary noon", rtcBBinary, 12, 0x8c},
		{"binary eleven", rtcBBinary, 11, 11},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			at := time.Date(2199, time.December, 31, test.hour, 45, 7, 0, time.UTC)
			r, _, _ := testRTC(at)
			defer r.Close()
			cmosWrite(r, rtcB, test.b)
			if got := cmosRead(r, rtcHours); got != test.want {
				t.Errorf("hours %#x, want %#x", got, test.want)
			}
			if got := clock(r); !got.Equal(at) {
				t.Errorf("reads %v, want %v", got, at)
			}
			if got := cmosRead(r, rtcWeekday); got != 3 { // a Tuesday
				t.Errorf("weekday %d", got)
			}
		})
	}
}

func TestRTCDefaults(t *testing.T) {
	r, _, _ := testRTC(someTime)
	defer r.Close()
	for reg, want := range map[byte]byte{rtcA: 0x26, rtcB: 0x02, rtcC: 0, rtcD: 0x80} {
		if got := cmosRead(r, reg); got != want {
			t.Errorf("register %#x is %#x, want %#x", reg, got, want)
		}
	}
	if got := in8(r, 0); got != 0xff {
		t.Errorf("the index port reads %#x", got)
	}
	cmosWrite(r, 0x80|0x0f, 0x0a) // with the NMI mask
	if cmosRead(r, 0x0f) != 0x0a {
		t.Error("CMOS memory does not keep")
	}
	cmosWrite(r, rtcC, 0xff)
	cmosWrite(r, rtcD, 0)
	if cmosRead(r, rtcC) != 0 || cmosRead(r, rtcD) != rtcDValid {
		t.Error("read-only registers are not")
	}
}

func TestRTCUpdateFlag(t *testing.T) {
	tests := []struct {
		nanos int
		set   bool
	}{{0, false}, {500_000_000, false}, {999_755_999, false}, {999_756_000, true}, {999_999_999, true}}
	for _, test := range tests {
		r, _, now := testRTC(someTime.Truncate(time.Second).Add(time.Duration(test.nanos)))
		if got := cmosRead(r, rtcA)&rtcAUpdating != 0; got != test.set {
			t.Errorf("at %d ns the update flag is %v", test.nanos, got)
		}
		cmosWrite(r, rtcB, rtcBSet|rtcB24Hours)
		*now = now.Add(time.Second)
		if cmosRead(r, rtcA)&rtcAUpdating != 0 {
			t.Error("the update flag is set on a stopped clock")
		}
		r.Close()
	}
}

func TestRTCSet(t *testing.T) {
	r, _, now := testRTC(someTime.Add(250 * time.Millisecond))
	defer r.Close()
	setClock(r, [7]byte{0x30, 0x12, 0x31, 0x23, 0x59, 0x59, 0x20})
	want := time.Date(2030, time.December, 31, 23, 59, 59, 0, time.UTC)
	if got := clock(r); !got.Equal(want) {
		t.Fatalf("reads %v, was set to %v", got, want)
	}
	// The divider was reset: the next second comes half a second later.
	*now = now.Add(499 * time.Millisecond)
	if got := clock(r); !got.Equal(want) {
		t.Errorf("after 499 ms it reads %v", got)
	}
	*now = now.Add(time.Millisecond)
	if got := clock(r); !got.Equal(want.Add(time.Second)) {
		t.Errorf("after 500 ms it reads %v", got)
	}
	// One register of the running clock.
	cmosWrite(r, rtcMinutes, 0x30)
	if got, want := clock(r), time.Date(2031, time.January, 1, 0, 30, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("after setting the minutes it reads %v, want %v", got, want)
	}
	// The stopped clock stands still, and goes on from there.
	cmosWrite(r, rtcB, rtcBSet|rtcB24Hours)
	*now = now.Add(time.Hour)
	if got := clock(r).Minute(); got != 30 {
		t.Errorf("a stopped clock goes to minute %d", got)
	}
	cmosWrite(r, rtcB, rtcB24Hours)
	if got := clock(r).Minute(); got != 30 {
		t.Errorf("the clock started again shows minute %d", got)
	}
	// What is no date must do no harm.
	setClock(r, [7]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	if y := clock(r).Year(); y < 1900 || y > 2250 {
		t.Errorf("year %d", y)
	}
}

func TestRTCAlarm(t *testing.T) {
	tests := []struct {
		name    string
		h, m, s byte
		want    time.Duration // from 23:59:58.5; 0 is never
	}{
		{"next second", 0x23, 0x59, 0x59, 500 * time.Millisecond},
		{"this second was", 0x23, 0x59, 0x58, 24*time.Hour - 500*time.Millisecond},
		{"midnight", 0x00, 0x00, 0x00, 1500 * time.Millisecond},
		{"every second", 0xff, 0xff, 0xff, 500 * time.Millisecond},
		{"every minute", 0xc0, 0xc0, 0x05, 6500 * time.Millisecond},
		{"every hour", 0xff, 0x30, 0x00, 30*time.Minute + 1500*time.Millisecond},
		{"any minute of an hour", 0x07, 0xff, 0x10, 7*time.Hour + 11500*time.Millisecond},
		{"any second", 0x12, 0x34, 0xff, 12*time.Hour + 34*time.Minute + 1500*time.Millisecond},
		{"no hour", 0x24, 0xff, 0xff, 0},
		{"no minute", 0xff, 0x60, 0xff, 0},
		{"no second", 0xff, 0xff, 0x99, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				irq := &wire{}
				began := time.Now()
				r := NewRTC(RTCConfig{IRQ: irq, Now: func() time.Time { return someTime.Add(time.Since(began)) }})
				defer r.Close()
				cmosWrite(r, rtcHoursAlarm, test.h)
				cmosWrite(r, rtcMinutesAlarm, test.m)
				cmosWrite(r, rtcSecondsAlarm, test.s)
				cmosWrite(r, rtcB, rtcB24Hours|rtcBAlarm)
				wait := test.want
				if wait == 0 {
					wait = 72 * time.Hour
				}
				time.Sleep(wait - time.Millisecond)
				synctest.Wait()
				if irq.high() {
					t.Fatal("too early")
				}
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if irq.high() != (test.want != 0) {
					t.Fatalf("interrupt %v", irq.high())
				}
				if test.want == 0 {
					return
				}
				if c := cmosRead(r, rtcC); c&(rtcCPending|rtcBAlarm) != rtcCPending|rtcBAlarm || irq.high() {
					t.Errorf("register C %#x, line %v after reading it", c, irq.high())
				}
				if c := cmosRead(r, rtcC); c != 0 {
					t.Errorf("register C %#x the second time", c)
				}
			})
		})
	}
}

// TestRTCRepeating counts interrupts of two seconds.
func TestRTCRepeating(t *testing.T) {
	tests := []struct {
		name     string
		b, rate  byte
		min, max int
	}{
		{"update", rtcBUpdate, 6, 2, 2},
		{"64 Hz", rtcBPeriodic, 10, 128, 128},
		{"2 Hz", rtcBPeriodic, 15, 4, 4},
		{"256 Hz", rtcBPeriodic, 1, 512, 512},
		{"off", rtcBPeriodic, 0, 0, 0},
		{"8192 Hz is bounded", rtcBPeriodic, 3, 1900, 2050},
		{"nothing enabled", 0, 3, 0, 0},
		{"stopped", rtcBUpdate | rtcBSet, 6, 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				irq := &wire{}
				r := NewRTC(RTCConfig{IRQ: irq})
				defer r.Close()
				cmosWrite(r, rtcA, rtcADividerRun|test.rate)
				cmosWrite(r, rtcB, rtcB24Hours|test.b)
				n := 0
				// The guest takes 50 us to come to read register C.
				for end := time.Now().Add(2*time.Second + time.Millisecond); time.Now().Before(end); time.Sleep(50 * time.Microsecond) {
					if irq.high() {
						cmosRead(r, rtcC)
						n++
					}
				}
				if n < test.min || n > test.max {
					t.Errorf("%d interrupts, want %d to %d", n, test.min, test.max)
				}
			})
		})
	}
}

func TestRTCPolledFlags(t *testing.T) {
	r, irq, now := testRTC(someTime)
	defer r.Close()
	cmosRead(r, rtcC)
	*now = now.Add(100 * time.Microsecond)
	if c := cmosRead(r, rtcC); c != 0 {
		t.Errorf("flags %#x after 100 us", c)
	}
	*now = now.Add(time.Second)
	if c := cmosRead(r, rtcC); c != rtcBUpdate|rtcBPeriodic {
		t.Errorf("flags %#x after a second, want update and periodic", c)
	}
	cmosWrite(r, rtcSecondsAlarm, 0xff)
	cmosWrite(r, rtcMinutesAlarm, 0xff)
	cmosWrite(r, rtcHoursAlarm, 0xff)
	cmosWrite(r, rtcYear, 0x30)
	if c := cmosRead(r, rtcC); c != 0 {
		t.Errorf("flags %#x after setting the clock, which is not the passing of time", c)
	}
	cmosWrite(r, rtcB, rtcB24Hours|rtcBSet)
	*now = now.Add(time.Minute)
	if c := cmosRead(r, rtcC); c != 0 {
		t.Errorf("flags %#x of a stopped clock", c)
	}
	cmosWrite(r, rtcB, rtcB24Hours)
	*now = now.Add(-time.Hour)
	if c := cmosRead(r, rtcC); c != 0 || irq.high() {
		t.Errorf("flags %#x after the host's clock went back", c)
	}
}

func TestRTCState(t *testing.T) {
	r, _, _ := testRTC(someTime)
	defer r.Close()
	setClock(r, [7]byte{0x30, 0x12, 0x31, 0x10, 0x00, 0x00, 0x20})
	cmosWrite(r, rtcHoursAlarm, 0x10)
	cmosWrite(r, rtcMinutesAlarm, 0x05)
	cmosWrite(r, rtcB, rtcB24Hours|rtcBAlarm)
	s := r.Save()

	other, irq, _ := testRTC(someTime.Add(10 * time.Minute))
	defer other.Close()
	if err := other.Restore(s); err != nil {
		t.Fatal(err)
	}
	if got, want := clock(other), time.Date(2030, time.December, 31, 10, 10, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("reads %v after the restore, want %v", got, want)
	}
	if !irq.high() {
		t.Error("the alarm that passed meanwhile is lost")
	}

	same, _, _ := testRTC(someTime)
	defer same.Close()
	roundTrip(t, r.Save, same)

	for name, change := range map[string]func(*RTCState){
		"version": func(s *RTCState) { s.Version++ },
		"short":   func(s *RTCState) { s.CMOS = s.CMOS[:127] },
		"none":    func(s *RTCState) { s.CMOS = nil },
		"A":       func(s *RTCState) { s.CMOS[rtcA] |= rtcAUpdating },
		"C":       func(s *RTCState) { s.CMOS[rtcC] = rtcCPending },
		"D":       func(s *RTCState) { s.CMOS[rtcD] = 0 },
	} {
		s := r.Save()
		change(&s)
		if other.Restore(s) == nil {
			t.Errorf("%s: restored", name)
		}
	}
}

func TestRTCAllocatesNothing(t *testing.T) {
	r := NewRTC(RTCConfig{IRQ: &wire{}})
	defer r.Close()
	regs := []byte{rtcSeconds, rtcA, rtcC, rtcHours}
	data := make([]byte, 1)
	noAllocs(t, "reading the clock", func() {
		for i := range regs {
			r.Write(0, regs[i:i+1])
			r.Read(1, data)
		}
	})
}

func FuzzRTC(f *testing.F) {
	f.Add([]byte{3, 0, rtcB, 0x70, 3, 0, rtcA, 0x23, 3, 0, rtcHours, 0x99, 3, 0, rtcB, 0x82, 0, 1, 0, 0}, int64(1e9))
	f.Add([]byte{3, 0, RTCCentury, 0xff, 3, 0, rtcYear, 0xff, 3, 0, rtcHoursAlarm, 0xff}, int64(-1e18))
	f.Fuzz(func(t *testing.T, program []byte, step int64) {
		r, irq, now := testRTC(someTime)
		defer r.Close()
		for ; len(program) >= 4; program = program[4:] {
			play(r, RTCPorts, program[:4])
			*now = now.Add(time.Duration(step % int64(24*time.Hour)))
		}
		if irq.high() != r.pending() {
			t.Error("line and register C disagree")
		}
		if y := r.time().Year(); y < 1700 || y > 2400 {
			t.Errorf("year %d", y)
		}
		other := NewRTC(RTCConfig{IRQ: &wire{}, Now: func() time.Time { return *now }})
		defer other.Close()
		// Look once, so that the restore finds nothing new.
		r.mu.Lock()
		r.advance(r.time())
		r.mu.Unlock()
		roundTrip(t, r.Save, other)
	})
}
