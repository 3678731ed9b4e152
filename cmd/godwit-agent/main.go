// Command godwit-agent is godwit's agent for any Linux guest: with it running,
// "godwit exec", "godwit cp", "godwit wait" and a clean shutdown work as they do
// with godwit's own initramfs, which has the agent in its init.
//
// It is one static program. To install it in a guest that has systemd:
//
//	install godwit-agent /usr/local/bin/
//	/usr/local/bin/godwit-agent --print-unit > /etc/systemd/system/godwit-agent.service
//	systemctl enable --now godwit-agent
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/internal/version"
)

func main() {
	printUnit := flag.Bool("print-unit", false, "print a systemd unit for this program, and end")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "Usage: godwit-agent [--print-unit]\n\nServe the host that runs this virtual machine: see godwit exec, cp and wait.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	run := serve
	if *printUnit {
		run = func() error { return writeUnit(os.Stdout) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "godwit-agent:", err)
		os.Exit(1)
	}
}

// serve serves the host until there is an error.
func serve() error {
	l, err := agent.ListenVsock(agent.Port)
	if errors.Is(err, agent.ErrNoVsock) {
		return fmt.Errorf("%w: is this a guest whose VMM gave it one, and is the kernel module vmw_vsock_virtio_transport there?", err)
	}
	if err != nil {
		return err
	}
	server := &agent.Server{Version: version.String(), Reaper: agent.NewReaper(), Shutdown: shutdown, SetTime: agent.SetClock, Reseed: agent.Reseed, SetMAC: agent.SetMAC}
	go agent.Announce(nil)
	return server.ServeVsock(l)
}

// shutdown asks the system's own init to end everything.
func shutdown(reboot bool) error {
	name := "poweroff"
	if reboot {
		name = "reboot"
	}
	if out, err := exec.Command(name).CombinedOutput(); err != nil {
		err = fmt.Errorf("%s: %w: %s", name, err, out)
		fmt.Fprintln(os.Stderr, "godwit-agent:", err)
		return err
	}
	return nil
}

// unit is started again when it ends, as it does where the device comes late.
const unit = `[Unit]
Description=godwit guest agent
Documentation=https://github.com/godwit-vmm/godwit
ConditionVirtualization=vm

[Service]
ExecStartPre=-/sbin/modprobe vmw_vsock_virtio_transport
ExecStart=%s
Restart=always
RestartSec=2

[Install]
WantedBy=multi-user.target
`

func writeUnit(w io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, unit, self)
	return err
}
