package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/guest/kmod"
)

// command does the work of the commands that init is linked as and gives
// their exit status.
func command(name string, args []string) int {
	var err error
	switch name {
	case "poweroff":
		err = powerCommand(poweroff, args)
	case "reboot":
		err = powerCommand(reboot, args)
	case "halt":
		err = powerCommand(halt, args)
	case "nproc":
		err = nproc()
	case "modprobe":
		err = modprobe(args)
	default:
		err = fmt.Errorf("not one of init's commands")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// powerCommand ends the machine, with -f without asking init. On a terminal it
// ends with the machine, so that no shell prompts before that.
func powerCommand(how int, args []string) error {
	if slices.Contains(args, "-f") {
		return endNow(how)
	}
	// That the machine takes this process along is no failure of it.
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGTERM, unix.SIGHUP)
	if err := ask(how); err != nil {
		return err
	}
	if _, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS); err == nil {
		<-ended
	}
	return nil
}

// nproc prints how many CPUs this process may run on.
func nproc() error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return err
	}
	fmt.Println(set.Count())
	return nil
}

// modprobe loads modules by name or alias. The kernel calls it with -q and --
// for what it misses.
func modprobe(args []string) error {
	// In another root file system the modules are where this program is.
	if self, err := os.Executable(); err == nil && filepath.Dir(self) == ownFiles {
		if err := unix.Chroot(ownFiles); err != nil {
			return err
		}
	}
	loader, err := kmod.NewLoader()
	if err != nil {
		return err
	}
	quiet := false
	for _, a := range args {
		switch {
		case a == "-q":
			quiet = true
		case strings.HasPrefix(a, "-"):
		default:
			if err := loader.Load(a); err != nil && !quiet {
				return err
			}
		}
	}
	return nil
}
