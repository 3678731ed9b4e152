package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// vmmOptions are the flags of vmm.
type vmmOptions struct {
	naming
	socket        string
	configFile    string
	reboot        bool
	allowSoftware bool
}

func newVMM() *cobra.Command {
	var o vmmOptions
	c := &cobra.Command{
		Use:   "vmm --api-sock PATH [flags]",
		Short: "Run a guest that a program configures",
		Long: `Run a guest that is configured, started and controlled over HTTP on a unix socket,
by the same requests as Firecracker. GET /openapi.yaml describes them.

The guest's serial console is on this terminal. SIGTERM presses the guest's power
button, a second one kills the guest. A guest that reboots ends, unless --reboot is
given.`,
		Example: `  godwit vmm --api-sock /tmp/vm.sock
  curl --unix-socket /tmp/vm.sock -X PUT http://localhost/boot-source \
       -d '{"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0"}'
  curl --unix-socket /tmp/vm.sock -X PUT http://localhost/actions \
       -d '{"action_type": "InstanceStart"}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.named = cmd.Flags().Changed("id")
			// Without a socket of its own the one in the folder is all there is.
			o.needed = o.named || o.socket == ""
			return runVMM(cmd.Context(), &o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.socket, "api-sock", "", "make the API's socket at `PATH` (default: only in the folder of the running guest)")
	f.StringVar(&o.name, "id", "godwit", "name of the guest (default: the first free one of godwit, godwit-2, ...)")
	f.StringVar(&o.configFile, "config-file", "", "configure the guest by this JSON `FILE`, which has the requests' bodies in one object, and start it")
	f.BoolVar(&o.reboot, "reboot", false, "reboot a guest that reboots, instead of ending")
	f.BoolVar(&o.allowSoftware, "allow-software-kvm", false, "go on where KVM emulates ring 0 (Linux will not boot there)")
	return c
}

func runVMM(ctx context.Context, o *vmmOptions) error {
	sys, err := openKVM(o.allowSoftware, nil)
	if sys != nil {
		defer sys.Close()
	}
	if err != nil {
		return err
	}
	i, err := newInstance(o.naming)
	if err != nil {
		return err
	}
	run := vmm.Options{System: sys, Name: i.name, Identify: i.identify, NoReboot: !o.reboot}
	return errors.Join(serveVMM(ctx, run, o, i), i.close())
}

// serveVMM leads a guest from its configuration to its end.
func serveVMM(ctx context.Context, run vmm.Options, o *vmmOptions, i *instance) (err error) {
	h := newHost(&run, os.Stdout)
	var t *terminal
	var built atomic.Bool
	run.Built = func() error {
		h.watch(nil)
		var err error
		if t, err = openTerminal(os.Stdin); err != nil {
			return err
		}
		if !background(os.Stdin) {
			go typeKeys(h.vm, os.Stdin, t != nil)
		}
		built.Store(true)
		return nil
	}
	h.vm = vmm.New(ctx, run, api.Defaults())
	defer func() { err = errors.Join(err, h.close()) }()
	signals := watchSignals(h.vm, unix.SIGTERM, unix.SIGINT)
	defer signals.stop()
	<-signals.begun
	defer func() { t.restore() }()
	// Last: who sees the socket may send a signal.
	l, err := i.listenAPI(o.socket)
	if err != nil {
		return err
	}
	h.serveOn(i, func() (net.Listener, error) { return l, nil })
	if o.configFile != "" {
		if err := h.startBy(o.configFile); err != nil {
			return err
		}
	}
	outcome, err := h.vm.Wait()
	t.restore()
	switch {
	case outcome != machine.Killed:
		return ended(outcome, err)
	case !built.Load():
		return nil // there was no guest yet
	}
	return quitStatus(h.vm.Cause())
}

// startBy configures and starts the guest by a file.
func (h *host) startBy(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("--config-file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, api.MaxFile+1))
	switch {
	case err != nil:
		return fmt.Errorf("--config-file: %w", err)
	case len(text) > api.MaxFile:
		return fmt.Errorf("--config-file %s: larger than %d bytes", path, api.MaxFile)
	}
	server, ok := h.api()
	if !ok {
		return vmm.ErrEnded
	}
	if err := server.Configure(text); err != nil {
		return fmt.Errorf("--config-file %s: %w", path, err)
	}
	return server.Start()
}

// listenAPI makes the API's socket, at path if that is not empty, and has it found in
// the guest's folder.
func (i *instance) listenAPI(path string) (net.Listener, error) {
	if path == "" {
		return net.Listen("unix", i.dir.Path(rundir.APIFile))
	}
	l, err := listenAlone(path)
	if err != nil {
		return nil, fmt.Errorf("--api-sock %s: %w", path, err)
	}
	if i.dir == nil {
		return l, nil
	}
	path, err = filepath.Abs(path)
	if err == nil {
		err = os.Symlink(path, i.dir.Path(rundir.APIFile))
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// dialTimeout bounds how long it takes to find out whether a socket is in use.
const dialTimeout = time.Second

// listenAlone makes a socket that only this user can connect to, in the place of one
// that a process left which was killed.
func listenAlone(path string) (net.Listener, error) {
	// Two processes do not take the same socket for left over.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close() // releases the lock
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock the folder: %w", err)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, errors.New("there is something else than a socket")
		}
		c, err := net.DialTimeout("unix", path, dialTimeout)
		if err == nil {
			_ = c.Close()
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return nil, errors.New("another process serves this socket: give another path")
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// The mode that the socket has before it gets its path is what that gets.
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var chmod error
		err := raw.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	return c.Listen(context.Background(), "unix", path)
}
