package devices

import (
	"fmt"
	"sync"
	"time"
)

// Registers of the MC146818, and the century byte that PCs have added. Those
// below rtcA hold the time, but for the three alarm registers among them.
const (
	rtcSeconds      = 0x00
	rtcSecondsAlarm = 0x01
	rtcMinutes      = 0x02
	rtcMinutesAlarm = 0x03
	rtcHours        = 0x04
	rtcHoursAlarm   = 0x05
	rtcWeekday      = 0x06 // 1 is Sunday
	rtcDay          = 0x07
	rtcMonth        = 0x08
	rtcYear         = 0x09
	rtcA            = 0x0a
	rtcB            = 0x0b
	rtcC            = 0x0c
	rtcD            = 0x0d

	rtcSize = 128
)

const (
	rtcNMIMask = 1 << 7 // in the index port

	rtcAUpdating    = 1 << 7 // UIP, read only
	rtcADivider     = 7 << 4
	rtcADividerRun  = 2 << 4 // the clock runs with this divider only
	rtcARate        = 0x0f
	rtcADefault     = rtcADividerRun | 6 // with 1,024 Hz, as firmware leaves it
	rtcBSet         = 1 << 7             // stops the clock, so that it can be set
	rtcBPeriodic    = 1 << 6
	rtcBAlarm       = 1 << 5
	rtcBUpdate      = 1 << 4
	rtcBBinary      = 1 << 2
	rtcB24Hours     = 1 << 1
	rtcCPending     = 1 << 7
	rtcCFlags       = 7 << 4 // same places as the enable bits in rtcB
	rtcDValid       = 1 << 7 // the battery is good
	rtcHoursPM      = 1 << 7
	rtcAlarmAny     = 0xc0 // an alarm byte of this or more matches always
	rtcIdlePortByte = 0xff
)

const (
	// updateLead is how long before the change of a second the update flag
	// is set: who reads it clear has that long to read a consistent time.
	// Linux does so, and retries on a set flag; the chance of that is 1 in
	// 4,000, which is why the flag must not be set for longer.
	updateLead = 244 * time.Microsecond
	// shortestPeriod bounds the rate of timer events on the host. The chip
	// itself can do 8,192 Hz; faster rates than this tick at this one.
	shortestPeriod = time.Second / 1024
	// longestWait is how late an alarm can be after a step of the host's clock.
	longestWait = time.Minute
)

// RTCConfig says how the clock is wired.
type RTCConfig struct {
	// IRQ is the interrupt line, edge triggered on a PC.
	IRQ Line
	// Now is the host's wall clock; nil means time.Now.
	Now func() time.Time
}

// RTC is the battery-backed clock of a PC, an MC146818, with its 128 bytes of
// CMOS memory. It shows UTC. When the guest sets it, it keeps the distance to
// the host's clock; it does not tick, but looks at the host's clock when asked.
type RTC struct {
	irq Line
	now func() time.Time

	mu    sync.Mutex
	index byte // as written to the index port, with the NMI mask
	// cmos is registers and memory. The bytes of the time are valid only
	// while the clock is stopped; then the guest may be setting them.
	cmos [rtcSize]byte
	// offset is the guest's time less the host's.
	offset time.Duration
	// seen is the guest's time up to which events are in register C.
	seen time.Time
	// timer runs when an enabled interrupt is to come.
	timer *time.Timer
}

// NewRTC makes a clock that shows the host's time. Close stops its timer.
func NewRTC(c RTCConfig) *RTC {
	r := &RTC{irq: c.IRQ, now: c.Now}
	if r.now == nil {
		r.now = time.Now
	}
	r.cmos[rtcA] = rtcADefault
	// Linux takes no other than a 24-hour clock.
	r.cmos[rtcB] = rtcB24Hours
	r.cmos[rtcD] = rtcDValid
	r.seen = r.time()
	r.timer = time.AfterFunc(longestWait, r.expire)
	r.timer.Stop()
	return r
}

// Close stops the timer for good.
func (r *RTC) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cmos[rtcB] &^= rtcBPeriodic | rtcBAlarm | rtcBUpdate
	r.timer.Stop()
}

// Read serves the index port, which cannot be read, and the data port.
func (r *RTC) Read(offset uint64, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range data {
		data[i] = rtcIdlePortByte
		if offset+uint64(i) == 1 {
			data[i] = r.read(int(r.index &^ rtcNMIMask))
		}
	}
}

// Write serves the index port and the data port.
func (r *RTC) Write(offset uint64, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, b := range data {
		switch offset + uint64(i) {
		case 0:
			r.index = b
		case 1:
			r.write(int(r.index&^rtcNMIMask), b)
		}
	}
}

func (r *RTC) read(reg int) byte {
	now := r.time()
	switch {
	case isTime(reg) && !r.stopped():
		r.latch(now)
	case reg == rtcA && !r.stopped() && now.Nanosecond() >= int(time.Second-updateLead):
		return r.cmos[rtcA] | rtcAUpdating
	case reg == rtcC:
		r.advance(now)
		c := r.cmos[rtcC]
		if r.pending() {
			c |= rtcCPending
		}
		r.cmos[rtcC] = 0
		r.update(now)
		return c
	}
	return r.cmos[reg]
}

func (r *RTC) write(reg int, b byte) {
	now := r.time()
	switch {
	case isTime(reg):
		if r.stopped() {
			r.cmos[reg] = b
			return
		}
		r.latch(now)
		r.cmos[reg] = b
		r.set(now)
		return
	case reg == rtcC || reg == rtcD:
		return
	}
	// What came before is by the old alarm, rate and enables.
	r.advance(now)
	switch reg {
	case rtcA:
		r.control(now, b&^rtcAUpdating, r.cmos[rtcB])
	case rtcB:
		if b&rtcBSet != 0 {
			b &^= rtcBUpdate
		}
		r.control(now, r.cmos[rtcA], b)
	default:
		r.cmos[reg] = b
	}
	r.update(r.time())
}

// control changes registers A and B, and with them may stop or start the clock.
func (r *RTC) control(now time.Time, a, b byte) {
	wasStopped, wasRunning := r.stopped(), r.dividerRuns()
	if !wasStopped {
		r.latch(now)
	}
	r.cmos[rtcA], r.cmos[rtcB] = a, b
	if !wasRunning && r.dividerRuns() {
		// The divider starts from half a second: Linux, which keeps the
		// clock in step by NTP, sets it at that moment.
		r.offset += time.Second/2 - time.Duration(now.Nanosecond())
		now = r.time()
	}
	if wasStopped && !r.stopped() {
		r.set(now)
	}
}

func (r *RTC) dividerRuns() bool { return r.cmos[rtcA]&rtcADivider == rtcADividerRun }

func (r *RTC) stopped() bool { return r.cmos[rtcB]&rtcBSet != 0 || !r.dividerRuns() }

// time is the guest's time. Without the monotonic reading, so that it follows
// the host's wall clock when that is stepped.
func (r *RTC) time() time.Time { return r.now().Add(r.offset).Round(0).UTC() }

// isTime tells whether the register holds a part of the time.
func isTime(reg int) bool {
	switch reg {
	case rtcSecondsAlarm, rtcMinutesAlarm, rtcHoursAlarm:
		return false
	}
	return reg < rtcA || reg == RTCCentury
}

// latch puts the time into its registers.
func (r *RTC) latch(t time.Time) {
	c := &r.cmos
	c[rtcSeconds] = r.encode(t.Second())
	c[rtcMinutes] = r.encode(t.Minute())
	c[rtcHours] = r.encodeHour(t.Hour())
	c[rtcWeekday] = r.encode(int(t.Weekday()) + 1)
	c[rtcDay] = r.encode(t.Day())
	c[rtcMonth] = r.encode(int(t.Month()))
	c[rtcYear] = r.encode(t.Year() % 100)
	c[RTCCentury] = r.encode(t.Year() / 100)
}

// set makes the time what its registers say, and keeps the fraction of the
// second, which is the divider's. Fields out of range carry over, as in
// time.Date.
func (r *RTC) set(now time.Time) {
	c := &r.cmos
	year := r.decode(c[RTCCentury])*100 + r.decode(c[rtcYear])
	// A time.Duration spans 292 years to either side of the host's clock.
	year = min(max(year, 1900), 2199)
	t := time.Date(year, time.Month(r.decode(c[rtcMonth])), r.decode(c[rtcDay]),
		r.decodeHour(c[rtcHours]), r.decode(c[rtcMinutes]), r.decode(c[rtcSeconds]), 0, time.UTC)
	r.offset += time.Duration(t.Unix()-now.Unix()) * time.Second
	// The step is not the passing of time: it raises no events.
	r.seen = r.time()
	r.update(r.seen)
}

func (r *RTC) encode(v int) byte {
	if r.cmos[rtcB]&rtcBBinary != 0 {
		return byte(v)
	}
	return byte(v/10%10<<4 | v%10)
}

func (r *RTC) decode(b byte) int {
	if r.cmos[rtcB]&rtcBBinary != 0 {
		return int(b)
	}
	return int(b>>4)*10 + int(b&0x0f)
}

func (r *RTC) encodeHour(h int) byte {
	if r.cmos[rtcB]&rtcB24Hours != 0 {
		return r.encode(h)
	}
	b := r.encode((h+11)%12 + 1)
	if h >= 12 {
		b |= rtcHoursPM
	}
	return b
}

func (r *RTC) decodeHour(b byte) int {
	if r.cmos[rtcB]&rtcB24Hours != 0 {
		return r.decode(b)
	}
	h := r.decode(b&^rtcHoursPM) % 12
	if b&rtcHoursPM != 0 {
		h += 12
	}
	return h
}

// RTCState is the saved clock.
type RTCState struct {
	Version uint32

	Index  uint8
	CMOS   []byte // 128 bytes
	Offset time.Duration
	// Seen is how far events are noted, in nanoseconds since 1970 of guest
	// time: an alarm that falls between save and restore is not lost.
	Seen int64
}

const rtcVersion = 1

// Save returns the state.
func (r *RTC) Save() RTCState {
	r.mu.Lock()
	defer r.mu.Unlock()
	cmos := r.cmos
	return RTCState{
		Version: rtcVersion,
		Index:   r.index,
		CMOS:    cmos[:],
		Offset:  r.offset,
		Seen:    r.seen.UnixNano(),
	}
}

// Restore takes over a saved state. The clock shows the host's time with the
// offset that the guest had set, and not the time of the save.
func (r *RTC) Restore(s RTCState) error {
	if err := CheckVersion("RTC", s.Version, rtcVersion); err != nil {
		return err
	}
	if len(s.CMOS) != rtcSize {
		return fmt.Errorf("RTC state: %d bytes of CMOS, want %d", len(s.CMOS), rtcSize)
	}
	if s.CMOS[rtcA]&rtcAUpdating != 0 || s.CMOS[rtcC]&^rtcCFlags != 0 || s.CMOS[rtcD] != rtcDValid {
		return fmt.Errorf("RTC state: registers A %#x, C %#x or D %#x hold what they cannot",
			s.CMOS[rtcA], s.CMOS[rtcC], s.CMOS[rtcD])
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index, r.offset = s.Index, s.Offset
	copy(r.cmos[:], s.CMOS)
	r.seen = time.Unix(0, s.Seen).UTC()
	now := r.time()
	r.advance(now)
	r.update(now)
	return nil
}
