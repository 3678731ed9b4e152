package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/guest/agent"
)

// The ways to end, as reboot(2) takes them.
const (
	poweroff = unix.LINUX_REBOOT_CMD_POWER_OFF
	reboot   = unix.LINUX_REBOOT_CMD_RESTART
	halt     = unix.LINUX_REBOOT_CMD_HALT
)

// signals ask the first process to end the machine. They are those that other
// small inits understand.
var signals = map[int]syscall.Signal{
	poweroff: syscall.SIGUSR2,
	reboot:   syscall.SIGTERM,
	halt:     syscall.SIGUSR1,
}

// endings are the ways as the agent tells them.
var endings = map[int]agent.Ending{
	poweroff: agent.Poweroff,
	reboot:   agent.Reboot,
	halt:     agent.Halt,
}

// ask asks the first process to end the machine.
func ask(how int) error {
	if err := syscall.Kill(1, signals[how]); err != nil {
		return fmt.Errorf("ask init to end: %w", err)
	}
	return nil
}

// power asks the first process, which is this one, to end the machine, and does
// not return. It returns if that cannot be asked for.
func power(how int) error {
	if err := ask(how); err != nil {
		return err
	}
	for {
		// With its signals handled by the runtime, it sleeps until its end.
		_ = unix.Pause()
	}
}

// watchSignals ends the machine when somebody asks for it. The first who does is
// the one who says how.
func watchSignals(server *agent.Server) {
	asked := make(chan os.Signal, 1)
	for _, s := range signals {
		signal.Notify(asked, s)
	}
	go func() {
		s := <-asked
		for how, want := range signals {
			if s == want {
				complain(end(server, how))
			}
		}
	}()
}

// agentPatience is how long the machine's end waits for commands that the agent
// runs to end by themselves, as the one that asked for it does, and how long for
// clients to learn how their commands ended.
const agentPatience = time.Second

// end ends all processes, brings the disks to rest and what was printed to the
// console, and ends the machine. It returns only on failure.
func end(server *agent.Server, how int) error {
	server.BeginEnd(endings[how], agentPatience)
	complain(endProcesses())
	server.FinishEnd(agentPatience)
	complain(settleDisks())
	drainConsole()
	return endNow(how)
}

// endNow ends the machine without further ado.
func endNow(how int) error {
	unix.Sync()
	if err := unix.Reboot(how); err != nil {
		return fmt.Errorf("reboot(2): %w", err)
	}
	return nil
}

// drainConsole waits until what was printed to the console is sent, as
// tcdrain(3).
func drainConsole() {
	if console, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
		// A console that cannot is no reason to stay on.
		unix.IoctlSetInt(int(console.Fd()), unix.TCSBRK, 1)
		console.Close()
	}
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
