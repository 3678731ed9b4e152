package main

import (
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"

	"github.com/godwit-vmm/godwit/devices/virtio/console"
	"github.com/godwit-vmm/godwit/machine"
	"golang.org/x/sys/unix"
)

// The values of --console: which device the terminal is.
const (
	consoleSerial = "serial"
	consoleHVC    = "hvc"
)

func checkConsole(name string) error {
	if name != consoleSerial && name != consoleHVC {
		return fmt.Errorf("--console %s: want %s or %s", name, consoleSerial, consoleHVC)
	}
	return nil
}

// consoleWord tells the kernel which device its console is.
func (o *bootOptions) consoleWord() string {
	if o.console == consoleHVC && len(o.command) == 0 {
		return "console=hvc0"
	}
	return "console=ttyS0"
}

// addHVC makes the terminal the virtio console instead of the serial port. What
// an early kernel or a boot loader says on the latter is shown as well.
func addHVC(c *machine.Config) {
	c.HVC = &console.Config{Out: c.Console}
	if s := windowSize(); s != nil {
		c.HVC.Cols, c.HVC.Rows = s.Cols, s.Rows
	}
}

// followWindow tells the virtio console of the machine of the moment when the
// terminal's window changes, until stop.
func followWindow(current *atomic.Pointer[machine.Machine]) (stop func()) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, unix.SIGWINCH)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-changes:
				m, s := current.Load(), windowSize()
				if m != nil && m.HVC() != nil && s != nil {
					m.HVC().Resize(s.Cols, s.Rows)
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(changes)
		close(done)
	}
}
