package machine

import (
	"context"
	"sync"
	"time"
)

// announcements are the pauses before the network is told again where a guest is that
// has moved: a switch may not listen yet.
var announcements = [...]time.Duration{0, 50 * time.Millisecond, 150 * time.Millisecond, 250 * time.Millisecond, 350 * time.Millisecond, 550 * time.Millisecond}

// announcePlace has the network find a guest where it is now. The function that it returns
// ends that, and waits for the end.
func (m *Machine) announcePlace() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var telling sync.WaitGroup
	for _, d := range m.nets {
		d.Announce() // by the guest, if it can
		telling.Go(func() {
			for _, pause := range announcements {
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return
				}
				// A network that is down is no trouble of the guest's.
				_ = d.ShowPlace()
			}
		})
	}
	return func() {
		cancel()
		telling.Wait()
	}
}
