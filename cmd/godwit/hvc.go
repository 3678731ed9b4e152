package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/godwit-vmm/godwit/devices/virtio/console"
	"github.com/godwit-vmm/godwit/internal/vmm"
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

// newHVC makes the terminal the virtio console instead of the serial port. What an
// early kernel or a boot loader says on the latter is shown as well.
func newHVC(out io.Writer) *console.Config {
	c := &console.Config{Out: out}
	if s := windowSize(); s != nil {
		c.Cols, c.Rows = s.Cols, s.Rows
	}
	return c
}

// followWindow tells the guest's virtio console when the terminal's window changes,
// until stop.
func followWindow(vm *vmm.VM) (stop func()) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, unix.SIGWINCH)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-changes:
				m, s := vm.Machine(), windowSize()
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
