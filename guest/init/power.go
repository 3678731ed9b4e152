package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The ways to end, as reboot(2) takes them.
const (
	poweroff = unix.LINUX_REBOOT_CMD_POWER_OFF
	reboot   = unix.LINUX_REBOOT_CMD_RESTART
	halt     = unix.LINUX_REBOOT_CMD_HALT
)

// power writes what is dirty to the disks, and what was printed to the console,
// and ends the machine. It returns only on failure.
func power(how int) error {
	unix.Sync()
	if console, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
		// As tcdrain(3). A console that cannot is no reason to stay on.
		unix.IoctlSetInt(int(console.Fd()), unix.TCSBRK, 1)
	}
	if err := unix.Reboot(how); err != nil {
		return fmt.Errorf("reboot(2): %w", err)
	}
	return nil
}

// Values of struct input_event (linux/input-event-codes.h).
const (
	evKey    = 1
	keyPower = 116
	// inputEventSize: two 64-bit words of time, type, code, value.
	inputEventSize = 24
)

// watchPowerButton powers the machine off when its power button is pressed. It
// returns if there is none.
func watchPowerButton() error {
	// The pattern is fixed, so Glob cannot fail.
	names, _ := filepath.Glob("/sys/class/input/event*/device/name")
	for _, file := range names {
		name, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(name)) != "Power Button" {
			continue
		}
		return watchButton(filepath.Join("/dev/input", filepath.Base(filepath.Dir(filepath.Dir(file)))))
	}
	return nil
}

func watchButton(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return fmt.Errorf("power button: %w", err)
	}
	defer f.Close()
	event := make([]byte, inputEventSize)
	for {
		if _, err := f.Read(event); err != nil {
			return fmt.Errorf("power button: %w", err)
		}
		kind, code := binary.NativeEndian.Uint16(event[16:]), binary.NativeEndian.Uint16(event[18:])
		if pressed := binary.NativeEndian.Uint32(event[20:]) == 1; kind == evKey && code == keyPower && pressed {
			return power(poweroff)
		}
	}
}
