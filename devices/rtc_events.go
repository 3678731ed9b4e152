package devices

import "time"

// The clock's interrupts. Register C notes events whether their interrupt is
// enabled or not, and guests poll it; so events are found by looking back when
// somebody looks, and the timer runs only for an interrupt that is enabled.

const daySeconds = 24 * 60 * 60

// advance notes in register C what happened since the last time.
func (r *RTC) advance(now time.Time) {
	since := r.seen
	r.seen = now
	if r.stopped() || !now.After(since) {
		return
	}
	if now.Unix() != since.Unix() {
		r.cmos[rtcC] |= rtcBUpdate
	}
	if at, ok := r.nextAlarm(since); ok && !at.After(now) {
		r.cmos[rtcC] |= rtcBAlarm
	}
	if p := r.period(); p != 0 && now.UnixNano()/int64(p) != since.UnixNano()/int64(p) {
		r.cmos[rtcC] |= rtcBPeriodic
	}
}

// pending tells whether an event has happened whose interrupt is enabled.
func (r *RTC) pending() bool { return r.cmos[rtcC]&r.cmos[rtcB]&rtcCFlags != 0 }

// update drives the line, and sets the timer if an interrupt is to come. While
// one is pending no other can come before the guest reads register C, so that
// even the fastest periodic interrupt costs a timer event per interrupt taken.
func (r *RTC) update(now time.Time) {
	r.irq.Set(r.pending())
	wait, ok := r.nextInterrupt(now)
	if !ok || r.pending() || r.stopped() {
		r.timer.Stop()
		return
	}
	r.timer.Reset(min(wait, longestWait))
}

// expire is what the timer runs.
func (r *RTC) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.time()
	r.advance(now)
	r.update(now)
}

// nextInterrupt says how long it is from now to the next enabled event.
func (r *RTC) nextInterrupt(now time.Time) (wait time.Duration, ok bool) {
	at := func(d time.Duration) {
		if !ok || d < wait {
			wait, ok = d, true
		}
	}
	b := r.cmos[rtcB]
	if b&rtcBUpdate != 0 {
		at(time.Second - time.Duration(now.Nanosecond()))
	}
	if b&rtcBAlarm != 0 {
		if t, ok := r.nextAlarm(now); ok {
			at(t.Sub(now))
		}
	}
	if p := r.period(); b&rtcBPeriodic != 0 && p != 0 {
		at(max(p-time.Duration(now.UnixNano()%int64(p)), shortestPeriod))
	}
	return wait, ok
}

// period is that of the periodic interrupt; 0 is none.
func (r *RTC) period() time.Duration {
	rate := r.cmos[rtcA] & rtcARate
	switch rate {
	case 0:
		return 0
	case 1, 2:
		rate += 7 // with a 32 kHz crystal these are 256 and 128 Hz
	}
	return time.Second << (rate - 1) / 32768
}

// nextAlarm finds the first second after t that matches the alarm registers.
func (r *RTC) nextAlarm(t time.Time) (time.Time, bool) {
	second, okS := r.alarmField(rtcSecondsAlarm, 60)
	minute, okM := r.alarmField(rtcMinutesAlarm, 60)
	hour, okH := r.alarmField(rtcHoursAlarm, 24)
	if !okS || !okM || !okH {
		return time.Time{}, false
	}
	// Go on by whole hours to a matching hour, then minute, then second: at
	// most one turn of each. A mismatch at the end of the larger unit leads
	// back to the search for that unit.
	start := t.Unix() + 1
	for s := start; s <= start+daySeconds; {
		h, m, sec := time.Unix(s, 0).UTC().Clock()
		switch {
		case hour != alarmAny && hour != h:
			s += int64(3600 - m*60 - sec)
		case minute != alarmAny && minute != m:
			s += int64(60 - sec)
		case second != alarmAny && second != sec:
			s++
		default:
			return time.Unix(s, 0).UTC(), true
		}
	}
	return time.Time{}, false
}

const alarmAny = -1

// alarmField decodes an alarm register: a number below limit, or alarmAny.
func (r *RTC) alarmField(reg, limit int) (v int, ok bool) {
	b := r.cmos[reg]
	if b >= rtcAlarmAny {
		return alarmAny, true
	}
	if reg == rtcHoursAlarm {
		v = r.decodeHour(b)
	} else {
		v = r.decode(b)
	}
	return v, v < limit
}
