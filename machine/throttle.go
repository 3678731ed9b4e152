package machine

import (
	"sync"
	"time"
)

// throttlePeriod is how long a turn of standing still and running takes.
const throttlePeriod = 20 * time.Millisecond

// throttle has the processors stand still for a part of the time.
type throttle struct {
	mu   sync.Mutex
	stop chan struct{} // nil when it is off
	done chan struct{}
}

// Throttle has the processors of a running guest stand still for so many percent of the
// time, at most 99, so that it writes less; 0 ends that. Nobody else may pause the guest
// meanwhile.
func (m *Machine) Throttle(percent int) {
	t := &m.throttle
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stop != nil {
		close(t.stop)
		<-t.done
		t.stop = nil
	}
	if percent <= 0 {
		return
	}
	t.stop, t.done = make(chan struct{}), make(chan struct{})
	go m.alternate(min(percent, 99), t.stop, t.done)
}

// alternate stops and resumes the processors in turn, and leaves them running.
func (m *Machine) alternate(percent int, stop, done chan struct{}) {
	defer close(done)
	still := throttlePeriod * time.Duration(percent) / 100
	for {
		m.pauseCPUs()
		ended := sleep(still, stop)
		for _, v := range m.cpus {
			v.Resume()
		}
		if ended || sleep(throttlePeriod-still, stop) {
			return
		}
	}
}

// sleep sleeps until stop, which it tells.
func sleep(d time.Duration, stop <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false
	case <-stop:
		return true
	}
}
