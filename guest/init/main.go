// Init is the first process of godwit's guests and of the emulated hosts of
// the lab. It mounts the usual file systems, loads the kernel modules of the
// devices there are, brings the network up, and then either serves the agent
// protocol (package agent), through which the host runs commands, or runs a
// shell on the console; when that shell ends, the machine powers off. It
// reaps orphans, and powers off when the power button is pressed.
//
// With root= on the command line, all that happens in the file system of that
// disk, and the files of the initramfs are at /run/godwit. But if the disk has
// an init of its own and the agent is not asked for, that init takes over.
//
// Words on the kernel's command line that it understands:
//
//	godwit.agent=ttyS1         serve the agent protocol on a serial port
//	godwit.agent=vport:PREFIX  serve it on each virtio console port whose name starts with PREFIX
//	godwit.agent=vsock,ttyS1   serve it on the first of these that there is, and have no shell
//	godwit.holdkvm             load KVM with the right TSC frequency (see awaitTSC) and keep it in use (see holdKVM)
//	godwit.hostname=NAME       host name (default: godwit)
//	godwit.ip=ADDR/LEN[,GW]    IPv4 address of the first Ethernet interface, and gateway
//	godwit.ip=dhcp             wait for a DHCP server (default: a second, if there is an interface)
//	godwit.ip=off              leave Ethernet interfaces alone
//	godwit.modules=A,B         modules to load besides those of the devices found
//	godwit.term=TERM           terminal type of the console (default: linux)
//	godwit.winsize=ROWSxCOLS   size of the console's window
//	godwit.thp                 huge pages for shared memory too, as virtual machines want them
//
// and those about the root file system that the kernel and other initramfs have:
//
//	root=/dev/NAME|UUID=ID|LABEL=NAME
//	ro, rw                     how to mount it (default: ro)
//	rootfstype=, rootflags=    as what, and with which options
//	rootwait                   wait for the disk as long as it takes
//	init=FILE                  run this program of it, whoever else is asked for
//
// The same program does the work of modprobe, poweroff, reboot, halt and nproc
// when it is called by one of these names.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

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
	kernelEnv := os.Environ()
	children := agent.NewReaper()
	server := newAgent(children)
	watchSignals(server)
	complain(mountAll())
	line, err := os.ReadFile("/proc/cmdline")
	complain(err)
	o := parseCmdline(string(line))
	complain(unix.Sethostname([]byte(o.hostname)))
	loader, err := kmod.NewLoader()
	complain(err)
	if o.holdKVM {
		complain(awaitTSC())
	}
	if loader != nil {
		complain(loadModules(loader, o))
	}
	complain(reopenConsole())
	if o.root.device != "" && !startRoot(o, kernelEnv) {
		o.root = rootOptions{}
	}
	setEnvironment(o)
	complain(bringUpNetwork(o))
	if o.thp {
		complain(enableHugePages())
	}
	if o.holdKVM {
		complain(holdKVM())
	}
	go func() { complain(watchPowerButton()) }()

	overVsock := serveVsock(server)
	if o.agent != "" {
		complain(serveAgent(server, o.agent, overVsock))
		return
	}
	complain(runShell(o, children))
}

// startRoot goes over to the root file system, and to its init if that is to run.
// It returns whether it has; if not, a shell is to tell what the matter is.
func startRoot(o options, kernelEnv []string) bool {
	err := mountRoot(o.root)
	if err == nil {
		err = enterRoot()
	}
	if err != nil && o.agent == "" && o.root.init == "" {
		complain(err)
		complain(errors.New("this is a shell in the initramfs"))
		return false
	}
	if file := initOf(o.root); err == nil && file != "" && (o.agent == "" || o.root.init != "") {
		if o.network == netStatic {
			complain(bringUpNetwork(o))
		}
		err = runInit(file, kernelEnv)
	}
	if err != nil {
		// Commands must not run in another root than they were meant for.
		// The kernel panics, as it does when it cannot mount its root.
		complain(err)
		drainConsole()
		os.Exit(1)
	}
	complain(os.WriteFile("/proc/sys/kernel/modprobe", []byte(filepath.Join(ownFiles, "bin/modprobe")), 0))
	return true
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
