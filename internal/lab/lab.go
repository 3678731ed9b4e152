// Package lab runs emulated hosts: x86-64 machines with hardware
// virtualization (AMD SVM with nested paging), which QEMU emulates in software.
// In such a host Linux has a /dev/kvm that runs unmodified guests, whatever
// machine the lab itself runs on.
//
// A host boots the cached guest kernel with the initramfs "host" (package
// guest) and serves the agent protocol (package guest/agent) on virtio console
// ports. Start gives a host that lives until Close or until the process ends,
// however it ends: no QEMU is ever left behind. Hosts on one Network share an
// Ethernet link.
//
// A Keeper holds a group of hosts for other processes, which find them by name
// in a state folder (Find).
package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/guest/agent"
)

// Options describe a host. The zero value is a host with one CPU and 2 GiB of
// memory without a network.
type Options struct {
	// Number tells the hosts of a group apart, from 1 to MaxHosts. It
	// determines the host's name (hN), address and MAC address; 1 if zero.
	Number int
	// CPUs, 1 if zero. QEMU 7.2 emulates each by a thread of its own; with
	// more than one, a host under load dies or hangs now and then, because
	// one processor runs code that another has patched. Several hosts of
	// one CPU make use of several processors as well.
	CPUs int
	// MemoryMiB of the host, 2048 if zero.
	MemoryMiB int
	// Files are put into the host before it starts.
	Files []File
	// Disks are raw image files here that are disks of the host, vda, vdb and so on.
	// Several hosts may have the same ones: nothing keeps them apart.
	Disks []string
	// Network that the host is plugged into; none if nil.
	Network *Network
	// Kernel that the host boots, with its initramfs; guest.CachedKernel
	// if empty.
	Kernel guest.Kernel
	// Dir holds the console log and, if Shared is set, the sockets for
	// other processes. A temporary folder if empty.
	Dir string
	// Shared lets other processes Connect to the host through Dir.
	Shared bool
	// BootTimeout ends a Start that takes longer; 3 minutes if zero.
	BootTimeout time.Duration
}

// MaxHosts is how many hosts can share a network.
const MaxHosts = 64

// Address of a host on its network.
func Address(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(number)}), 24)
}

// HostName of a host in its group.
func HostName(number int) string { return fmt.Sprintf("h%d", number) }

func (o *Options) setDefaults() error {
	if o.Number == 0 {
		o.Number = 1
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.MemoryMiB == 0 {
		o.MemoryMiB = 2048
	}
	if o.BootTimeout == 0 {
		o.BootTimeout = 3 * time.Minute
	}
	switch {
	case o.Number < 1 || o.Number > MaxHosts:
		return fmt.Errorf("lab host number %d: want 1 to %d", o.Number, MaxHosts)
	case o.CPUs < 1 || o.CPUs > 255:
		return fmt.Errorf("lab host with %d CPUs: want 1 to 255", o.CPUs)
	case o.MemoryMiB < 256:
		return fmt.Errorf("lab host with %d MiB of memory: want at least 256", o.MemoryMiB)
	}
	if o.Kernel == (guest.Kernel{}) {
		kernel, err := guest.CachedKernel()
		if err != nil {
			return fmt.Errorf("lab host: %w", err)
		}
		o.Kernel = kernel
	}
	return nil
}

// Host is a running host. Its methods may be called from any goroutine.
type Host struct {
	*agent.Client
	name    string
	dir     string
	machine *machine
	cleanup []func()
	close   sync.Once
}

// Cmd is a command to run in a host.
type Cmd = agent.Command

// Start starts a host and returns when it takes commands.
func Start(ctx context.Context, o Options) (*Host, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	h := &Host{name: HostName(o.Number), dir: o.Dir}
	if err := h.start(ctx, o); err != nil {
		h.Close()
		return nil, fmt.Errorf("lab host %s: %w", h.name, err)
	}
	return h, nil
}

func (h *Host) start(ctx context.Context, o Options) error {
	if h.dir == "" {
		dir, err := os.MkdirTemp("", "godwit-lab-")
		if err != nil {
			return err
		}
		h.dir = dir
		h.cleanup = append(h.cleanup, func() { os.RemoveAll(dir) })
	}
	initrd, err := composeInitrd(o)
	if err != nil {
		return err
	}
	defer initrd.Close()
	near, far, err := socketPair()
	if err != nil {
		return err
	}
	defer far.Close()
	h.cleanup = append(h.cleanup, func() { near.Close() })

	q := newInvocation(o, h.dir)
	q.initrd(initrd)
	q.privatePort(far)
	for i, path := range o.Disks {
		q.disk(i, path)
	}
	if o.Shared {
		q.sharedPorts()
		q.monitor()
	}
	if o.Network != nil {
		port, err := o.Network.plug()
		if err != nil {
			return err
		}
		defer port.Close()
		q.network(port, o.Number)
	}
	h.machine, err = q.start(ctx)
	if err != nil {
		return err
	}
	return h.awaitBoot(ctx, near, o.BootTimeout)
}

// awaitBoot connects to the host's agent. If that fails, the error has the end
// of the console's output.
func (h *Host) awaitBoot(ctx context.Context, line *os.File, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not up after %v", timeout))
	defer cancel()
	ctx, ended := context.WithCancelCause(ctx)
	defer ended(nil)
	go func() {
		select {
		case <-h.machine.done:
			ended(fmt.Errorf("QEMU has ended: %w", h.machine.err))
		case <-ctx.Done():
		}
	}()
	client, err := agent.Dial(ctx, line)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("boot: %w%s", err, h.logTails())
	}
	h.Client = client
	return nil
}

// logTails is the end of what QEMU and the host's kernel have printed.
func (h *Host) logTails() string {
	var text strings.Builder
	for _, log := range []struct{ what, file string }{
		{"QEMU", qemuLog}, {"the console", consoleLog},
	} {
		if t := tail(filepath.Join(h.dir, log.file)); t != "" {
			fmt.Fprintf(&text, "\nthe last lines from %s:\n%s", log.what, t)
		}
	}
	return text.String()
}

// Name of the host, which is also its host name.
func (h *Host) Name() string { return h.name }

// Dir is the folder with the host's logs.
func (h *Host) Dir() string { return h.dir }

// Run runs a command in the host and gives its exit status, which for a command
// that was killed is 128 and the signal. Many may run at once.
func (h *Host) Run(ctx context.Context, cmd Cmd) (int, error) {
	exit, err := h.Client.Run(ctx, cmd)
	if err != nil {
		return 0, h.explain(err)
	}
	return exit.Status(), nil
}

// Put copies a file into the host.
func (h *Host) Put(ctx context.Context, from, to string) error {
	return PutFile(ctx, h.Client, from, to)
}

// Get copies a file out of the host.
func (h *Host) Get(ctx context.Context, from, to string) error {
	return GetFile(ctx, h.Client, from, to)
}

// explain adds to the error of a connection why the host is gone.
func (h *Host) explain(err error) error {
	if !errors.Is(err, agent.ErrClosed) {
		return err
	}
	select {
	case <-h.machine.done:
		return fmt.Errorf("lab host %s: QEMU has ended: %w%s", h.name, err, h.logTails())
	default:
		return fmt.Errorf("lab host %s: %w", h.name, err)
	}
}

// Done is closed when the host has ended, by itself or by Close.
func (h *Host) Done() <-chan struct{} { return h.machine.done }

// Close ends the host at once, as if its power was cut, and removes what Start
// made.
func (h *Host) Close() error {
	h.close.Do(func() {
		if h.machine != nil {
			h.machine.kill()
		}
		if h.Client != nil {
			// It has ended with the machine.
			h.Client.Close()
		}
		for _, f := range h.cleanup {
			f()
		}
	})
	return nil
}
