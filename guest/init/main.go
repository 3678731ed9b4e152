// Init is the first process of godwit's guests and of the emulated hosts of
// the lab. It mounts the usual file systems, loads the kernel modules of the
// devices there are, brings the network up, and then either serves the agent
// protocol (package agent), through which the host runs commands, or runs a
// shell on the console; when that shell ends, the machine powers off. It
// reaps orphans, and powers off when the power button is pressed.
//
// Words on the kernel's command line that it understands:
//
//	godwit.agent=ttyS1         serve the agent protocol on a serial port
//	godwit.agent=vport:PREFIX  serve it on each virtio console port whose name starts with PREFIX
//	godwit.holdkvm             load KVM with the right TSC frequency (see awaitTSC) and keep it in use (see holdKVM)
//	godwit.hostname=NAME       host name (default: godwit)
//	godwit.ip=ADDR/LEN[,GW]    IPv4 address of the first Ethernet interface, and gateway
//	godwit.modules=A,B         modules to load besides those of the devices found
//	godwit.term=TERM           terminal type of the console (default: linux)
//	godwit.winsize=ROWSxCOLS   size of the console's window
//	godwit.thp                 huge pages for shared memory too, as virtual machines want them
//
// The same program does the work of modprobe, poweroff, reboot, halt and nproc
// when it is called by one of these names.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/guest/kmod"
)

func main() {
	if name := filepath.Base(os.Args[0]); name != "init" {
		os.Exit(command(name, os.Args[1:]))
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: only the kernel starts me; did you mean poweroff or reboot?")
		os.Exit(1)
	}
	// Whatever goes wrong is said and then lived with: a guest that can
	// still run a command is worth more than a kernel panic.
	start()
	power(poweroff)
}

// start brings the system up and returns when it is to be powered off.
func start() {
	complain(mountAll())
	line, err := os.ReadFile("/proc/cmdline")
	complain(err)
	o := parseCmdline(string(line))
	setEnvironment(o)
	loader, err := kmod.NewLoader()
	complain(err)
	if o.holdKVM {
		complain(awaitTSC())
	}
	if loader != nil {
		complain(loadModules(loader, o))
	}
	complain(bringUpNetwork(o))
	if o.thp {
		complain(enableHugePages())
	}
	if o.holdKVM {
		complain(holdKVM())
	}
	go func() { complain(watchPowerButton()) }()

	children := agent.NewReaper()
	if o.agent != "" {
		complain(serveAgent(o.agent, children))
		return
	}
	complain(runShell(o, children))
}

// complain says on the console, as a line of the kernel log would be, that
// something did not work.
func complain(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
	}
}

func loadModules(loader *kmod.Loader, o options) error {
	complain(os.WriteFile("/proc/sys/kernel/modprobe", []byte("/bin/modprobe"), 0))
	for _, n := range loader.Nodes() {
		complain(makeNode(n))
	}
	err := loader.Coldplug()
	for _, name := range o.modules {
		complain(loader.Load(name))
	}
	return err
}
