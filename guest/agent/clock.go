package agent

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// SetClock sets the clock of this system, for Server.SetTime.
func SetClock(t time.Time) error {
	now := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}
